"""Markdown cut along its headings into chunks of about a wanted size.

Guarantees: the same text and size give the same chunks; every letter of the text below some heading or none is in
exactly one chunk, in order (but for a table's header, which each of its pieces repeats); no chunk has more tokens than
wanted; headings inside code fences do not cut. Token counts are estimates: no tokenizer is loaded.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import ceil

from tunewright.pipeline.tokens import CJK, estimate_tokens

HEADING = re.compile(r" {0,3}(#{1,6})(?=[ \t]|$)")
UNDERLINE = re.compile(r" {0,3}(=+|-{2,})[ \t]*")
FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
MAX_HEADING_CHARACTERS = 300  # a longer line is a paragraph that happens to begin so
# What begins a line that must stay a line: items, quotes, tables, indented code.
STRUCTURED = re.compile(r"[-*+>|]|\d{1,3}[.)]|\s{4}")
MARKUP = re.compile(r"!?\[([^\]]{0,300})\]\([^)]{0,2000}\)|[*`]+")

# After these a sentence has ended without a blank, so semchunk, which knows Western writing, would not see it.
SENTENCE_END = re.compile("((?<![。！？…])[。！？…]+[”’」』）]*)(?=[^\\s。！？…”’」』）])")
PADDING = re.compile(r"(?<=\S)[ \t]{3,}")
# Longer than any single blank, so that it is cut there before; removed from the pieces.
SENTENCE_MARK = "\u2028\u2028"
# It fills every piece but the last: so much more than an even share leaves the last one not much shorter.
EVENLY = 1.1
# A section under this share of the wanted size is joined with its neighbour.
SMALL_SHARE = 0.25


@dataclass(frozen=True)
class Piece:
    """A chunk's text and the headings that it stands under, from the outermost; its own heading is not in the text."""

    headings: tuple[str, ...]
    text: str
    tokens: int


def cut(markdown: str, chunk_tokens: int) -> list[Piece]:
    """The chunks of a document, in order, each of at most `chunk_tokens` estimated tokens."""
    pieces = _pieces(_sections(markdown), (), chunk_tokens)
    return [Piece(piece.path, piece.text, estimate_tokens(piece.text)) for piece in pieces if piece.text.strip()]


@dataclass
class _Section:
    """A heading as it is written, what stands directly below it, and its sections."""

    level: int
    title: str
    heading: str
    body: str = ""
    sections: list["_Section"] = field(default_factory=list["_Section"])

    def content(self) -> str:
        return _joined([self.body, *(_joined([below.heading, below.content()]) for below in self.sections)])


@dataclass(frozen=True)
class _Part:
    """A piece on its way. `headed` is its text below its own heading; `is_whole` where it may be joined with others."""

    path: tuple[str, ...]
    text: str
    headed: str
    is_whole: bool


def _joined(texts: Sequence[str]) -> str:
    return "\n\n".join(text for text in texts if text)


def _sections(markdown: str) -> _Section:
    """The document as a tree; its root has no heading."""
    root = _Section(0, "", "")
    above = [root]
    body: list[str] = []
    for line, level, title in _lines(markdown):
        if level is None:
            body.append(line)
            continue
        above[-1].body = "\n".join(body).strip("\n")
        body = []
        section = _Section(level, MARKUP.sub(r"\1", title).strip(), f"{'#' * level} {title}".strip())
        while above[-1].level >= level:
            above.pop()
        above[-1].sections.append(section)
        above.append(section)
    above[-1].body = "\n".join(body).strip("\n")
    return root


def _lines(markdown: str) -> Iterator[tuple[str, int | None, str]]:
    """Each line; of headings, their level and title too. An underlined heading is given once, without its line."""
    lines = markdown.split("\n")
    fence, number = "", 0
    while number < len(lines):
        line, below = lines[number], lines[number + 1] if number + 1 < len(lines) else ""
        number += 1
        fence_before, fence = fence, _fence_after(fence, line)
        if fence or fence_before:
            yield line, None, ""
        elif len(line) <= MAX_HEADING_CHARACTERS and (heading := HEADING.match(line)):
            yield line, len(heading[1]), _without_closing(line[heading.end() :].strip())
        elif (
            (under := UNDERLINE.fullmatch(below))
            and 0 < len(line.strip()) <= MAX_HEADING_CHARACTERS
            and not STRUCTURED.match(line.lstrip(" "))
            and (number == 1 or not lines[number - 2].strip())
        ):
            number += 1
            yield line, 1 if under[1][0] == "=" else 2, line.strip()
        else:
            yield line, None, ""


def _without_closing(title: str) -> str:
    """A heading may end as it begins: `## Safety ##`."""
    bare = title.rstrip("#")
    return bare.rstrip() if not bare or bare[-1] in " \t" else title


def _is_table_rule(line: str) -> bool:
    return "|" in line and "-" in line and not set(line) - set(" \t|:-")


def _fence_after(fence: str, line: str) -> str:
    """The code fence that is open after `line`, `fence` being open before it; empty where there is none."""
    found = FENCE.match(line)
    if not found:
        return fence
    if not fence:
        return found[1]
    closes = found[1].startswith(fence) and not line.strip().strip(fence[0])
    return "" if closes else fence


def _pieces(section: _Section, path: tuple[str, ...], limit: int) -> list[_Part]:
    if not section.body and len(section.sections) == 1:
        # The title above all, most often: what stands below it has its name too.
        (only,) = section.sections
        parts = _pieces(only, (*path, only.title), limit)
        return [replace(part, headed=_joined([section.heading, part.headed])) for part in parts]
    content = section.content()
    if estimate_tokens(content) <= limit:
        return [_Part(path, content, _joined([section.heading, content]), is_whole=True)]
    bodies = _split(section.body, limit) if section.body else []
    parts = [_Part(path, text, text, is_whole=len(bodies) == 1) for text in bodies]
    for below in section.sections:
        parts += _pieces(below, (*path, below.title), limit)
    # Above this section, none of them stands for the whole of it.
    return [replace(part, is_whole=False) for part in _small_joined(parts, path, limit)]


def _small_joined(parts: Sequence[_Part], path: tuple[str, ...], limit: int) -> list[_Part]:
    """Neighbours of which one is small become one, as far as they fit; it stands under the heading that they share."""
    joined: list[_Part] = []
    for part in parts:
        if joined and joined[-1].is_whole and part.is_whole:
            both = _joined([joined[-1].headed, part.headed])
            smaller = min(estimate_tokens(joined[-1].text), estimate_tokens(part.text))
            if smaller < SMALL_SHARE * limit and estimate_tokens(both) <= limit:
                joined[-1] = _Part(path, both, both, is_whole=True)
                continue
        joined.append(part)
    return joined


def _split(body: str, limit: int) -> list[str]:
    """A section's text in pieces of about the same size, cut between blocks where no block alone is too long."""
    units = [unit for block in _blocks(body) for unit in _cut_block(block, limit)]
    return _packed(units, limit, "\n\n")


def _packed(units: Sequence[str], limit: int, glue: str) -> list[str]:
    """Neighbouring units joined to as few pieces as will do, none much smaller than the others."""
    sizes = [estimate_tokens(unit + glue) for unit in units]
    target = sum(sizes) / max(1, ceil(sum(sizes) / limit))
    packed: list[str] = []
    size = 0
    for unit, added in zip(units, sizes, strict=True):
        if packed and size < target and size + added <= limit:
            packed[-1], size = packed[-1] + glue + unit, size + added
        else:
            packed.append(unit)
            size = added
    return packed


def _blocks(body: str) -> Iterator[str]:
    """Paragraphs, tables and fenced code."""
    block: list[str] = []
    fence, was_table = "", False
    for line in body.split("\n"):
        fence_before, fence = fence, _fence_after(fence, line)
        is_table = not fence and line.lstrip().startswith("|")
        begins = (fence and not fence_before) or is_table != was_table
        if (begins or (not line.strip() and not fence)) and any(map(str.strip, block)):
            yield "\n".join(block).strip("\n")
            block = []
        block.append(line)
        was_table = is_table
        if fence_before and not fence:
            yield "\n".join(block).strip("\n")
            block = []
    if any(map(str.strip, block)):
        yield "\n".join(block).strip("\n")


def _cut_block(block: str, limit: int) -> list[str]:
    """The block, or where it is too long pieces of it: a table's rows below its header, lines of code, sentences."""
    if estimate_tokens(block) <= limit:
        return [block]
    lines = block.split("\n")
    if len(lines) > 2 and _is_table_rule(lines[1]):
        head, tail, rows = "\n".join(lines[:2]) + "\n", "", lines[2:]
    elif (fence := FENCE.match(block)) and len(lines) > 2:
        is_closed = _fence_after(fence[1], lines[-1]) == ""
        head, tail, rows = lines[0] + "\n", f"\n{fence[1]}", lines[1 : -1 if is_closed else None]
    else:
        return _sentences(block, limit)
    room = limit - estimate_tokens(head + tail)
    if room < limit / 2:  # a header as long as a chunk is not worth repeating
        return _sentences(block, limit)
    units = [unit for row in rows for unit in ([row] if estimate_tokens(row) < room else _sentences(row, room - 1))]
    return [head + piece + tail for piece in _packed(units, room, "\n")]


def _sentences(text: str, limit: int) -> list[str]:
    """Pieces that end with a sentence where they can, else with a clause or a word."""
    # MIT, maintained by a company that lives on legal texts, and measured to keep sentences whole better than the
    # splitters of LangChain; imported here for its 80 ms.
    from semchunk.semchunk import chunk

    whole = estimate_tokens(text)
    size = min(limit, ceil(EVENLY * whole / ceil(whole / limit)))
    marked = SENTENCE_END.sub(rf"\1{SENTENCE_MARK}", PADDING.sub("  ", _unwrapped(text)))
    count: Callable[[str], int] = _tokens_without_marks
    pieces: list[str] = chunk(marked, size, count, memoize=False)  # pyright: ignore[reportAssignmentType]
    return [piece.replace(SENTENCE_MARK, "").strip() for piece in pieces if piece.strip()]


def _tokens_without_marks(text: str) -> int:
    return estimate_tokens(text.replace("\u2028", ""))


def _unwrapped(text: str) -> str:
    """A paragraph's lines as one, so that it is cut after sentences and not after lines."""
    lines = text.split("\n")
    if any(STRUCTURED.match(line) for line in lines):
        return text
    whole = lines[0].strip()
    for line in map(str.strip, lines[1:]):
        is_cjk = bool(whole and line and CJK.match(whole[-1]) and CJK.match(line[0]))
        whole += line if is_cjk else f" {line}"
    return whole
