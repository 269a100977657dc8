"""What the engine is made of without torch: batches, rows, texts."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tunewright.pipeline.chat_template import ChatTemplate
from tunewright.pipeline.inference import answers, batches
from tunewright.pipeline.inference.requests import Request
from tunewright.pipeline.inference.rows import Rows


@pytest.mark.parametrize(
    ("costs", "budget", "most", "expected"),
    [
        ([1, 5, 3], 100, 64, [[1, 2, 0]]),
        ([2, 2, 2, 2], 100, 64, [[0, 1, 2, 3]]),
        ([2] * 5, 7, 64, [[0, 1], [2, 3], [4]]),
        ([2] * 5, 100, 2, [[0, 1], [2, 3], [4]]),
        ([9, 1, 1, 1, 1], 4, 64, [[0], [1, 2, 3, 4]]),
        ([5, 5], -1, 64, [[0], [1]]),
        ([], 10, 64, []),
    ],
)
def test_batches_hold_what_fits_the_dearest_first(
    costs: list[int], budget: int, most: int, expected: list[list[int]]
) -> None:
    assert batches.plan(costs, budget, most) == expected


def rows(requests: list[Request], stop: Callable[[int, int], bool] = lambda index, token: True) -> Rows:
    return Rows([10 + number for number in range(len(requests))], requests, stop, lambda: None)


def test_rows_end_by_their_end_their_limit_or_the_callers_wish() -> None:
    told: list[tuple[int, int]] = []

    def on_token(index: int, token: int) -> bool:
        told.append((index, token))
        return (index, token) != (12, 6)

    made = rows([Request([1], 9, frozenset({5})), Request([1], 2, frozenset()), Request([1], 9, frozenset())], on_token)
    made.take({0: 4, 1: 4, 2: 4})
    assert made.alive == [0, 1, 2]
    made.take({0: 5, 1: 5, 2: 5})
    assert made.alive == [2]
    made.take({0: 99, 1: 99, 2: 6})
    assert made.alive == []
    assert [(answer.ids, answer.ended) for answer in made.results()] == [
        ([4, 5], "stop"), ([4, 5], "length"), ([4, 5, 6], "cancelled"),
    ]  # fmt: skip
    assert told == [(10, 4), (11, 4), (12, 4), (10, 5), (11, 5), (12, 5), (12, 6)]


def test_the_last_token_that_is_an_end_counts_as_one() -> None:
    made = rows([Request([1], 1, frozenset({5}))])
    made.take({0: 5})
    assert made.results()[0].ended == "stop"


@pytest.mark.parametrize(
    ("text", "answer", "thinking"),
    [
        ("Hello.<|im_end|>", "Hello.", ""),
        ("<think>\nFirst.\n</think>\n\nHello.<|im_end|>", "Hello.", "First."),
        ("<think>\nNever done", "", "Never done"),
        ("Hello.<|start_of_role|><end_of_turn> More.", "Hello. More.", ""),
    ],
)
def test_the_answer_is_told_apart_from_the_thinking_and_from_markers(
    toy_folder: Path, text: str, answer: str, thinking: str
) -> None:
    template = ChatTemplate(toy_folder)
    assert answers.split(template, template.ids(text)) == (answer, thinking)
