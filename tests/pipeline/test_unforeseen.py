"""What is behind an error of whichever library, and its one sentence."""

import errno

import pytest

from tunewright.pipeline import unforeseen


class SafetensorError(Exception):
    """As safetensors calls it."""


CAUSES: dict[str, tuple[BaseException, str | None]] = {
    "the card is full": (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB."), "out_of_memory"),
    "the machine's memory is full": (MemoryError(), "out_of_memory"),
    "the disk is full": (OSError(errno.ENOSPC, "No space left on device"), "no_disk_space"),
    "weights meet a full disk": (SafetensorError("I/O error: No space left on device (os error 28)"), "no_disk_space"),
    "weights are cut off": (SafetensorError("header too small"), "weights_damaged"),
    "anything else": (ValueError("no"), None),
}


@pytest.mark.parametrize("case", CAUSES)
def test_a_cause_is_told_whichever_library_met_it(case: str) -> None:
    error, cause = CAUSES[case]
    assert unforeseen.cause(error) == cause


def test_a_page_of_text_becomes_one_sentence_of_its_last_line() -> None:
    assert unforeseen.in_brief(ValueError("a page\n" * 100 + "of text")) == "ValueError: of text."
    assert unforeseen.in_brief(KeyError("x")) == "KeyError: 'x'."
    assert unforeseen.in_brief(RuntimeError("Enough!")) == "RuntimeError: Enough!"
    assert unforeseen.in_brief(RuntimeError()) == "RuntimeError: no message."
    assert len(unforeseen.in_brief(ValueError("x" * 9_000))) < 500
