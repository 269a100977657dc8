"""Rows longer than the sequence: each action leaves only rows that fit, by the model's own count."""

import pytest

from tunewright.pipeline import chat_template
from tunewright.pipeline.data.cleaning import Action
from tunewright.pipeline.data.lengths import Fitter, token_length
from tunewright.pipeline.data.rows import Message, Record, Unusable
from tunewright.pipeline.workspace import Workspace

LIMIT = 64


@pytest.fixture
def template(workspace: Workspace) -> chat_template.ChatTemplate:
    return chat_template.load(workspace, "toy")


def turns(*texts: str) -> list[Message]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def fit(template: chat_template.ChatTemplate, record: Record, action: Action) -> list[Record]:
    made = Fitter(template.folder, LIMIT, action).fit(record)
    assert all(token_length(template, piece) <= LIMIT for piece in made.records)
    return made.records


WORDS = "the quick brown fox jumps over the lazy dog and the cat sleeps in the sun. "


@pytest.mark.parametrize("action", ["drop", "truncate", "split"])
def test_a_row_that_fits_stays_as_it_is(template: chat_template.ChatTemplate, action: Action) -> None:
    record = Record("sft", turns("Hi", "Hello there"))
    assert fit(template, record, action) == [Record("sft", turns("Hi", "Hello there"))]


def test_dropping_says_how_long_the_row_is(template: chat_template.ChatTemplate) -> None:
    record = Record("sft", turns("Hi", WORDS * 20))
    with pytest.raises(
        Unusable, match=rf"{token_length(template, record)} tokens; max_seq_length is {LIMIT}"
    ) as refusal:
        fit(template, record, "drop")
    assert refusal.value.reason == "too_long"


def test_truncating_leaves_out_later_exchanges_first(template: chat_template.ChatTemplate) -> None:
    (record,) = fit(template, Record("sft", turns("Hi", "Hello", "And now?", "Yes.", "More?", WORDS * 20)), "truncate")
    assert record.messages == turns("Hi", "Hello", "And now?", "Yes.")


def test_truncating_cuts_the_only_answer_at_a_break(template: chat_template.ChatTemplate) -> None:
    (record,) = fit(template, Record("sft", turns("Hi", WORDS * 20)), "truncate")
    answer = record.messages[1]["content"]
    assert (WORDS * 20).startswith(answer) and len(answer) > 20 and answer.endswith((".", "the", "fox", "dog"))


def test_a_prompt_that_fills_the_sequence_leaves_nothing_to_train(template: chat_template.ChatTemplate) -> None:
    with pytest.raises(Unusable, match="no room for the answer"):
        fit(template, Record("sft", turns(WORDS * 20, "Yes.")), "truncate")


def test_splitting_makes_rows_of_whole_exchanges_after_the_same_system_message(
    template: chat_template.ChatTemplate,
) -> None:
    system: Message = {"role": "system", "content": "Be brief."}
    pairs = [text for i in range(6) for text in (f"Question {i}, please?", f"Answer {i} is this one.")]
    pieces = fit(template, Record("sft", [system, *turns(*pairs)]), "split")
    assert len(pieces) > 1
    assert all(piece.messages[0] == system for piece in pieces)
    assert [m for piece in pieces for m in piece.messages[1:]] == turns(*pairs)


def test_an_exchange_too_long_alone_drops_the_row(template: chat_template.ChatTemplate) -> None:
    with pytest.raises(Unusable, match="one exchange alone"):
        fit(template, Record("sft", turns("Hi", "Hello", "Go on", WORDS * 20)), "split")


def test_splitting_a_text_loses_no_word(template: chat_template.ChatTemplate) -> None:
    text = "\n\n".join(WORDS * 3 for _ in range(8))
    pieces = fit(template, Record("text", text=text), "split")
    assert len(pieces) > 3
    assert " ".join(piece.text for piece in pieces).split() == text.split()


def test_a_pair_is_cut_in_both_its_answers_and_never_split(template: chat_template.ChatTemplate) -> None:
    def pair() -> Record:
        return Record("preference", turns("Hi"), turns("", WORDS * 20)[1:], turns("", WORDS[4:] * 20)[1:])

    (record,) = fit(template, pair(), "truncate")
    assert record.chosen[0]["content"] and record.rejected[0]["content"]
    short = Record("preference", turns("Hi"), turns("", "Short.")[1:], turns("", WORDS * 20)[1:])
    (record,) = fit(template, short, "truncate")
    assert record.chosen[0]["content"] == "Short." and len(record.rejected[0]["content"]) > 20
    alike = Record("preference", turns("Hi"), turns("", WORDS * 20)[1:], turns("", WORDS * 21)[1:])
    with pytest.raises(Unusable, match="are the same") as refusal:
        fit(template, alike, "truncate")
    assert refusal.value.reason == "no_preference"
    with pytest.raises(Unusable, match="tokens; max_seq_length"):
        fit(template, pair(), "split")
