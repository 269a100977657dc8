"""Plain text and Markdown as rows of raw text.

Guarantees that every character but blanks around paragraphs is in some row, that no row is longer than
MAX_ROW_CHARACTERS, and that paragraphs are cut only where one alone is longer.
"""

from collections.abc import Iterator
from pathlib import Path

from tunewright.pipeline.data.blocks import Block, Broken, in_blocks
from tunewright.pipeline.data.encodings import Decoding
from tunewright.pipeline.data.tables import text_lines

MAX_ROW_CHARACTERS = 8000
# Where a paragraph that is too long is cut, best first: after a line, a sentence, a word.
CUTS = ("\n", ". ", "。", "! ", "！", "? ", "？", " ")


def text_blocks(path: Path, pieces: Iterator[bytes], decoding: Decoding) -> Iterator[Block]:
    """Blocks of `{"text": …}`. Raises InvalidInput: `not_text`, `unknown_encoding`."""
    return in_blocks((len(text), _row(text, decoding)) for text in _grouped(path, decoding.text_pieces(pieces)))


def _row(text: str, decoding: Decoding) -> object:
    if decoding.dirty and (why := decoding.misfit(text)):
        return Broken(why)
    return {"text": text}


def _grouped(path: Path, pieces: Iterator[str]) -> Iterator[str]:
    """Paragraphs joined to rows as long as they may be."""
    row = ""
    for paragraph in _paragraphs(path, pieces):
        if row and len(row) + 2 + len(paragraph) > MAX_ROW_CHARACTERS:
            yield row
            row = ""
        row = f"{row}\n\n{paragraph}" if row else paragraph
    if row:
        yield row


def _paragraphs(path: Path, pieces: Iterator[str]) -> Iterator[str]:
    """What blank lines part, in pieces where it is too long for a row."""
    held = ""
    for line in text_lines(path, pieces):
        if not line.strip():
            if held.strip():
                yield held.strip("\r\n")
            held = ""
            continue
        held += line
        while len(held) > MAX_ROW_CHARACTERS:
            cut = _cut(held)
            yield held[:cut].strip("\r\n")
            held = held[cut:]
    if held.strip():
        yield held.strip("\r\n")


def _cut(text: str) -> int:
    """Where to cut off the beginning, in its second half."""
    for mark in CUTS:
        at = text.rfind(mark, MAX_ROW_CHARACTERS // 2, MAX_ROW_CHARACTERS)
        if at >= 0:
            return at + len(mark)
    return MAX_ROW_CHARACTERS
