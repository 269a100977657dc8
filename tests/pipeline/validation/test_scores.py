"""Scores against hand-computed values, the field's libraries, and in every script."""

import random
import re
import string
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sacrebleu.metrics.chrf import CHRF

from tunewright.pipeline.validation import scores

WORDS = ("the", "a", "an", "quick", "fox", "jumps", "over", "lazy", "dog", "and", "runs", "home", "at", "nine", "42")
Score = Callable[[str, str], float]


def pairs(count: int, seed: int) -> list[tuple[str, str]]:
    chance = random.Random(seed)

    def text() -> str:
        return ", ".join(chance.choices(WORDS, k=chance.randint(0, 25))).capitalize() + "."

    return [(text(), text()) for _ in range(count)]


def squads_own_f1(prediction: str, truth: str) -> float:
    """As the evaluation script of SQuAD 2.0 has it."""

    def tokens(text: str) -> list[str]:
        bare = "".join(c for c in text.lower() if c not in set(string.punctuation))
        return re.sub(r"\b(a|an|the)\b", " ", bare).split()

    said, right = tokens(prediction), tokens(truth)
    same = sum((Counter(said) & Counter(right)).values())
    if not said or not right:
        return float(said == right)
    if not same:
        return 0.0
    precision, recall = same / len(said), same / len(right)
    return 2 * precision * recall / (precision + recall)


def test_token_f1_is_squads_on_english() -> None:
    for said, right in pairs(300, 1):
        assert scores.token_f1(said, right) == pytest.approx(100 * squads_own_f1(said, right))


def test_rouge_l_is_rouge_scores_on_english() -> None:
    rouge_scorer = pytest.importorskip("rouge_score.rouge_scorer", reason="comes with the harness extra")
    theirs = rouge_scorer.RougeScorer(["rougeL"])
    for said, right in pairs(300, 2):
        assert scores.rouge_l(said, right) == pytest.approx(100 * theirs.score(right, said)["rougeL"].fmeasure)


def test_chrf_is_sacrebleus() -> None:
    for said, right in [*pairs(50, 3), ("我们九点开门", "我们九点钟开门"), ("🚀", "🚀🚀")]:
        assert scores.chrf(said, right) == CHRF(char_order=6, word_order=0, beta=2).sentence_score(said, [right]).score


@pytest.mark.parametrize(
    ("score", "answer", "reference", "expected"),
    [
        (scores.token_f1, "The cat sat!", "a cat sat down", 100 * 2 * 2 / (2 + 3)),
        # Six of six and seven characters; the stop is no token.
        (scores.token_f1, "我们九点开门。", "我们九点钟开门", 100 * 12 / 13),
        (scores.rouge_l, "我们九点开门。", "我们九点钟开门", 100 * 12 / 13),
        # In another order the words are the same, the longest common subsequence is shorter.
        (scores.token_f1, "门开点九们我", "我们九点开门", 100.0),
        (scores.rouge_l, "门开点九们我", "我们九点开门", 100 / 6),
        (scores.rouge_l, "tea, cups and pots", "We sell tea, cups and pots.", 100 * 8 / 10),
        (scores.token_f1, "“茶”是 tea", "茶 is tea", 100 * 4 / 6),
        (scores.rouge_l, "🚀 go", "🚀 stop", 50.0),
        (scores.rouge_l, "Größe naïve", "größe NAÏVE", 100.0),
        (scores.exact_match, " We  sell tea.\n", "We sell tea.", 100.0),
        (scores.exact_match, "we sell tea.", "We sell tea.", 0.0),
        (scores.token_f1, "", "tea", 0.0),
        (scores.token_f1, "!", "？", 100.0),
        (scores.rouge_l, "", "tea", 0.0),
        (scores.chrf, "", "tea", 0.0),
    ],
)  # fmt: skip
def test_hand_computed_scores(score: Score, answer: str, reference: str, expected: float) -> None:
    assert score(answer, reference) == pytest.approx(expected)


@given(st.text(max_size=60), st.text(max_size=60))
def test_any_two_texts_get_scores_from_0_to_100_and_a_text_is_itself(one: str, other: str) -> None:
    for value in scores.against_reference(one, other).values():
        assert 0 <= value <= 100
    assert scores.token_f1(one, other) == scores.token_f1(other, one)
    assert scores.exact_match(one, one) == scores.token_f1(one, one) == 100


def test_repetition_is_the_share_of_4_grams_that_stood_before() -> None:
    # a b c d a b c d: five 4-grams, the last is the first again.
    assert scores.repetition("abcdabcd") == pytest.approx(100 * (1 - 4 / 5))
    assert scores.repetition("abcdefgh") == 0
    assert scores.repetition("abc") == scores.repetition("") == 0


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ("the shop is open " + "and then " * 4, True),
        ("0" * 16, True),
        ("0" * 15, False),  # 10 to the 15th may be meant
        ("ha" * 3, False),
        ("and then " * 4 + "it stopped", False),
        ("once upon a time there was a shop in Oslo", False),
        ("a longer phrase, three times. " * 3, True),
        ("a longer phrase, only twice!! " * 2, False),
        ("", False),
    ],
)
def test_a_loop_is_a_phrase_that_ends_the_text_three_times_over(tokens: str, expected: bool) -> None:
    assert scores.is_loop(tokens) is expected
