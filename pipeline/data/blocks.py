"""Parts of a source that another process can turn into rows.

Guarantees that a block yields a value for every row it holds, in order, and never raises: what cannot be read is a
`Broken`. Says nothing about the values' layout.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from tunewright.pipeline.data import privacy

# Large enough that sending one to another process costs little, small enough that several fit in memory.
BLOCK_BYTES = 3_000_000


@dataclass(frozen=True)
class Broken:
    """A row that could not be read. `why` quotes no more than a few characters of it."""

    why: str


@dataclass(frozen=True)
class Block:
    """Consecutive rows of one source, either as `lines` (JSON Lines as they lie in the file) or parsed as `rows`."""

    first: int  # number of its first row or line, from 1
    lines: bytes = b""  # whole lines in `encoding`, blank ones included
    rows: list[object] = field(default_factory=list[object])
    encoding: str = "utf-8"  # one in which a line ends with the byte 0x0A

    def parsed(self) -> Iterator[tuple[int, object]]:
        """Row numbers and values: mostly dicts; `Broken` where a line is no JSON, or whatever malformed stood there."""
        if not self.lines:
            yield from enumerate(self.rows, self.first)
            return
        for number, raw in enumerate(self.lines.split(b"\n"), self.first):
            if raw and not raw.isspace():
                yield number, parsed_line(raw, self.encoding)


def parsed_line(raw: bytes, encoding: str = "utf-8") -> object:
    """The JSON value of one line, or why there is none."""
    try:
        return json.loads(raw.decode(encoding))
    except UnicodeDecodeError as error:
        return Broken(f"not {encoding.upper()}: byte 0x{raw[error.start]:02x}")
    except json.JSONDecodeError as error:
        return Broken(f"no JSON: {error.msg} near {around(error.doc, error.pos)!r}")
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
        return Broken(f"no JSON: {error!s:.100}")


def around(text: str, position: int) -> str:
    """A few characters of a broken text, for an error."""
    # Masked in a wider part, where what is personal is still whole.
    before, after = text[max(0, position - 300) : position], text[position : position + 300]
    return privacy.shown(before)[-20:] + privacy.shown(after)[:40]


def in_blocks(rows: Iterable[tuple[int, object]]) -> Iterator[Block]:
    """Blocks of about BLOCK_BYTES of already parsed `(characters, value)` pairs; the first row is number 1."""
    first, held, size = 1, list[object](), 0
    for characters, value in rows:
        held.append(value)
        size += characters
        if size >= BLOCK_BYTES:
            yield Block(first, rows=held)
            first, held, size = first + len(held), [], 0
    if held:
        yield Block(first, rows=held)
