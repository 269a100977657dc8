"""One member of a JSON file set, and every other character of the file left as it was, comments too.

Editors' configuration files are JSON with comments. A rewritten file would lose them, so the new member is spliced into
the text. Guarantees that the result means what the file meant, and the member; else it raises and returns nothing.
"""

import json
import re
from typing import Any, cast

STRING = r'"(?:\\.|[^"\\])*"'
COMMENT = re.compile(rf"(?P<string>{STRING})|//[^\n]*|/\*.*?\*/", re.DOTALL)
TRAILING_COMMA = re.compile(rf"(?P<string>{STRING})|,(?=\s*[}}\]])")
SPACE = re.compile(r"\s*")

Object = dict[str, Any]


def loads(text: str) -> Object:
    """The object that `text` holds, comments and trailing commas allowed; an empty text holds an empty one.

    Raises ValueError, with line and column, where it is no such object or names a member twice.
    """
    text = text.removeprefix("\ufeff")
    if not text.strip():
        return {}
    value: Any = json.loads(_strict(text), object_pairs_hook=_without_repetition)
    if not isinstance(value, dict):
        raise ValueError("the file holds no object")
    return cast(Object, value)


def with_member(text: str, path: tuple[str, ...], value: Any) -> str:
    """`text` with the member at `path` set to `value`; objects on the way are made where they are missing.

    Raises ValueError where `text` is not what `loads` takes, or what stands on the way is no object.
    """
    expected = loads(text)
    _set(expected, path, value)
    if not text.strip("\ufeff \t\r\n"):
        return json.dumps(expected, indent=2, ensure_ascii=False) + "\n"
    new = _spliced(text, path, value)
    if loads(new) != expected:
        raise ValueError("the file is laid out in a way that could not be kept")
    return new


def _without_repetition(pairs: list[tuple[str, Any]]) -> Object:
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        raise ValueError(f"a member comes twice: {next(name for name in names if names.count(name) > 1)!r}")
    return dict(pairs)


def _set(inside: Object, path: tuple[str, ...], value: Any) -> None:
    for name in path[:-1]:
        found: Any = inside.setdefault(name, {})
        if not isinstance(found, dict):
            raise ValueError(f"{name!r} is no object")
        inside = cast(Object, found)
    inside[path[-1]] = value


def _blank(match: re.Match[str]) -> str:
    """Spaces in place of what is left out, so that every position stays the same."""
    return match[0] if match["string"] else re.sub(r"[^\n]", " ", match[0])


def _without_comments(text: str) -> str:
    return COMMENT.sub(_blank, text)


def _strict(text: str) -> str:
    return TRAILING_COMMA.sub(_blank, _without_comments(text))


def _skip_space(text: str, position: int) -> int:
    found = SPACE.match(text, position)
    return found.end() if found else position


def _members(strict: str, opening: int) -> tuple[dict[str, tuple[int, int]], int]:
    """Where the value of each member of the object that opens at `opening` begins and ends, and the closing brace."""
    decoder = json.JSONDecoder()
    found: dict[str, tuple[int, int]] = {}
    position = _skip_space(strict, opening + 1)
    while strict[position] != "}":
        name, position = decoder.raw_decode(strict, position)
        begin = _skip_space(strict, _skip_space(strict, position) + 1)  # past the colon
        _, end = decoder.raw_decode(strict, begin)
        found[name] = (begin, end)
        position = _skip_space(strict, end)
        if strict[position] == ",":
            position = _skip_space(strict, position + 1)
    return found, position


def _spliced(text: str, path: tuple[str, ...], value: Any) -> str:
    strict = _strict(text)
    opening = strict.index("{")
    for depth, name in enumerate(path):
        members, closing = _members(strict, opening)
        if name not in members:
            for missing in reversed(path[depth + 1 :]):
                value = {missing: value}
            return _inserted(text, opening, members, closing, name, value)
        begin, end = members[name]
        if depth == len(path) - 1:
            return text[:begin] + _dumped(text, value, _indent(text, begin)) + text[end:]
        opening = begin
    raise ValueError("the path is empty")


def _inserted(
    text: str, opening: int, members: dict[str, tuple[int, int]], closing: int, name: str, value: Any
) -> str:  # fmt: skip
    """The new member comes last, right before the closing brace: every comment stays with what it is about."""
    outer = _indent(text, opening)
    inner = outer + _unit(text)
    newline = _newline(text)
    before = text[:closing].rstrip()
    if members:
        last = max(end for _, end in members.values())
        if "," not in _without_comments(text)[last:closing]:
            before = before[:last] + "," + before[last:]
    entry = f"{json.dumps(name, ensure_ascii=False)}: {_dumped(text, value, inner)}"
    return f"{before}{newline}{inner}{entry}{newline}{outer}{text[closing:]}"


def _dumped(text: str, value: Any, indent: str) -> str:
    lines = json.dumps(value, indent=_unit(text), ensure_ascii=False).split("\n")
    return (_newline(text) + indent).join(lines)


def _newline(text: str) -> str:
    return "\r\n" if "\r\n" in text else "\n"


def _indent(text: str, position: int) -> str:
    """The white space that the line at `position` begins with."""
    line = text[text.rfind("\n", 0, position) + 1 : position].removeprefix("\ufeff")
    return line[: len(line) - len(line.lstrip(" \t"))]


def _unit(text: str) -> str:
    """One level of the file's own indentation."""
    found = re.search(r"\n([ \t]+)\S", text)
    return found[1] if found else "  "
