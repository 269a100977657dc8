"""Markdown made plain before it is cut: whatever wrote it, its lines and blanks are of one kind afterwards."""

import re

BLANK_LINES = re.compile(r"\n{4,}")
FRONT_MATTER = re.compile(r"---\n(?:[^\n]*\n){0,200}?---(?:\n|\Z)")
UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f\ufeff\ufffe\uffff]")
EMBEDDED = "](data:"


def tidied(text: str) -> str:
    """The text without carriage returns, form feeds, control characters, blanks at line ends, pictures that are
    written out in it, and the YAML that some files begin with."""
    for line_end in ("\r\n", "\r", "\u2028", "\u2029", "\x85"):
        text = text.replace(line_end, "\n")
    text = UNPRINTABLE.sub("", text.replace("\f", "\n\n").replace("\v", " "))
    text = "\n".join(map(str.rstrip, text.split("\n"))).strip("\n")
    if text.startswith("---\n"):
        text = FRONT_MATTER.sub("", text, count=1)
    first, *rest = text.split(EMBEDDED)
    text = first + "".join(_without_picture(part) for part in rest)
    return BLANK_LINES.sub("\n\n\n", text).strip("\n")


def _without_picture(part: str) -> str:
    end = part.find(")")
    return f"]({part[end:]}" if end >= 0 else EMBEDDED + part
