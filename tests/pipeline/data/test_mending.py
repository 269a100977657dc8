"""What is mended in texts, and above all what is left alone."""

import time
from collections.abc import Callable

import pytest

from tunewright.pipeline.data import mending
from tunewright.pipeline.data.rows import Record, Unusable


@pytest.mark.parametrize(
    ("text", "mended"),
    [
        ("It opens at nine.<|im_end|>", "It opens at nine."),
        ("Yes.</s>", "Yes."),
        ("<s>Yes.</s>", "Yes."),
        ("Yes.<|eot_id|>\n<|end_of_text|>\n", "Yes."),
        ("[INST] What now? [/INST]", "What now?"),
        ("<start_of_turn>Go<end_of_turn>", "Go"),
        ("<\uff5cbegin▁of▁sentence\uff5c>Go", "Go"),
        ("Yes.<end_of_utterance>", "Yes."),
        ("Done.[gMASK]", "Done."),
    ],
)
def test_control_tokens_at_the_edges_are_removed(text: str, mended: str) -> None:
    assert mending.mend_control_tokens(text) == mended


@pytest.mark.parametrize(
    "text",
    [
        "Hi.<|im_end|>\n<|im_start|>user\nAnd?",
        "a <|endoftext|> b",
        "Q [INST] x [/INST] y </s> z",
        "<<SYS>>\nx\n<</SYS>> y",
    ],
)
def test_control_tokens_in_the_middle_make_a_row_unusable(text: str) -> None:
    with pytest.raises(Unusable, match="in the middle of a text") as refusal:
        mending.mend_control_tokens(text)
    assert refusal.value.reason == "control_tokens"


@pytest.mark.parametrize(
    "text",
    [
        "a < b and b > c", "a <- b |> c", "f(x)[0] <= y", "<think>\nWell.\n</think>\n\nYes.", "vector<int> v; a |= b;",
        "  kept as it is \n", "She <3 him", "Use [brackets] here", "x <|> y",
        "It was <s>cheap</s>", "<s>$20</s> now $10", "The <unk> token stands for unknown words.",
    ],
)  # fmt: skip
def test_what_only_looks_like_a_leaked_turn_stays(text: str) -> None:
    assert mending.mend_control_tokens(text) == text


@pytest.mark.parametrize(
    ("mend", "text"),
    [
        (mending.mend_control_tokens, "[a" + " " * 200_000 + "x"),
        (mending.mend_control_tokens, "<s>" * 60_000),
        (mending.mend_html, "<script>" * 60_000),
        (mending.mend_html, "<!--" * 60_000),
        (mending.mend_html, "<b>" + " " * 200_000 + "<li>"),
        (mending.mend_html, "<a " + "x=" * 60_000),
        (mending.mend_mojibake, "Ã" * 200_000),
    ],
)
def test_no_text_takes_long(mend: Callable[[str], str], text: str) -> None:
    begun = time.process_time()
    mend(text)
    assert time.process_time() - begun < 3


@pytest.mark.parametrize(
    ("text", "mended"),
    [
        ("One<br>two<br/>three", "One\ntwo\nthree"),
        ("<p>First.</p><p>Second.</p>", "First.\nSecond."),
        ("<ul><li>tea</li><li class='x'>milk</li></ul>", "- tea\n- milk"),
        ("Fish &amp; chips &#8212; &quot;good&quot;&nbsp;ones", 'Fish & chips — "good" ones'),
        ('See <a href="https://x.org/a?b=1">this</a>.', "See this."),
        ("a<script>alert(1)</script>b<br>", "ab"),
        ('<span style="color: red">Red</span> &lt;3', "Red <3"),
        ("A<!-- note -->B<hr>C", "ABC"),
    ],
)
def test_html_debris_becomes_what_a_browser_shows(text: str, mended: str) -> None:
    assert mending.has_html(text)
    assert mending.mend_html(text) == mended


@pytest.mark.parametrize(
    "text",
    [
        "a < b",
        "R&D and Q&A",
        "AT&T; fine",
        "List<String> x",
        "<think>x</think>",
        "5 > 3 & 2 < 4",
        "&& ||",
        "if a<b and c>d then",
        "x<i && j>k",
        "0<p and q>1",
        "AT&amputee; yes",
        "a<b>c",
        "std::map<a, b>",
        "p<0.05 and n>30",
        "The <title> of it",
    ],
)
def test_what_is_no_html_stays(text: str) -> None:
    assert not mending.has_html(text)
    assert mending.mend_html(text) == text


def test_a_row_about_markup_keeps_its_tags() -> None:
    def row(question: str, answer: str) -> Record:
        return Record("sft", [{"role": "user", "content": question}, {"role": "assistant", "content": answer}])

    assert mending.is_about_markup(row("How do I make a bold word in HTML?", "<b>word</b>"))
    assert mending.is_about_markup(row("怎么写一个网页？", "<p>你好</p>"))
    assert mending.is_about_markup(row("Make it bold", "```\n<b>x</b>\n```"))
    assert not mending.is_about_markup(row("When do you open?", "<p>At nine.</p>"))


@pytest.mark.parametrize(
    ("text", "mended"),
    [
        ("cafÃ© crÃ¨me", "café crème"),
        ("Itâ€™s late", "It’s late"),
        ("naÃ¯ve rÃ©sumÃ©", "naïve résumé"),
        ("РџСЂРёРІРµС‚, РјРёСЂ", "Привет, мир"),
    ],
)
def test_mojibake_is_set_right(text: str, mended: str) -> None:
    assert mending.mend_mojibake(text) == mended


@pytest.mark.parametrize(
    "text",
    [
        "café crème – «voilà…»",
        "Привет, Россия!",
        "你好，世界",
        "naïve “quotes” stay",
        "São Paulo",
        "ÂÃ alone",
        "100 °C ± 2",
        "Ünïcödé ™",
    ],
)
def test_right_letters_stay_as_they_are(text: str) -> None:
    assert mending.mend_mojibake(text) == text
