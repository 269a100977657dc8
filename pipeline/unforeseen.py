"""Errors that nobody foresaw: what is behind them, whichever library met it, and one sentence of them."""

from typing import Literal

from tunewright.pipeline import files

LONGEST_CHARACTERS = 400


def cause(error: BaseException) -> Literal["out_of_memory", "no_disk_space", "weights_damaged"] | None:
    """The code of what a person can mend, where the error tells of such."""
    if isinstance(error, MemoryError) or "out of memory" in str(error).lower():
        return "out_of_memory"
    if files.is_disk_full(error):
        return "no_disk_space"
    # By its name: a process that loads no weights need not load the library.
    return "weights_damaged" if type(error).__name__ == "SafetensorError" else None


def in_brief(error: BaseException) -> str:
    """Its kind and its last line, of a text that may be a page."""
    line = (str(error).strip().splitlines() or ["no message"])[-1][:LONGEST_CHARACTERS]
    return f"{type(error).__name__}: {line}" + ("" if line.endswith((".", "!", "?")) else ".")
