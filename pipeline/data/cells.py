"""One cell of a row: what is a text, a list or a label, whatever type the file gave it.

Guarantees that a text that is returned is valid Unicode and otherwise as it stood. Raises Unusable with words that
name the column and what stood there.
"""

import ast
import json
from typing import Any, cast

from tunewright.pipeline.data.rows import Unusable

WANTED = ("true", "1", "1.0", "yes", "up", "thumbs_up", "good", "like", "👍")
UNWANTED = ("false", "0", "0.0", "no", "down", "thumbs_down", "bad", "dislike", "👎")
LABELS: dict[str, bool] = {word: word in WANTED for word in (*WANTED, *UNWANTED)}
TYPES = {"list": "a list", "dict": "an object", "bytes": "binary data", "bool": "a truth value", "NoneType": "nothing"}


def shortened(value: object, limit: int) -> str:
    """`value` on one line of at most `limit` characters, `…` where something is left out."""
    # Enough of the text is joined, not all: a value may be megabytes long.
    text = value[: 4 * limit] if isinstance(value, str) else _shown(value)
    line = " ".join(text[: 4 * limit].split())
    # Half a surrogate pair cannot be stored.
    line = line.encode("utf-8", "replace").decode("utf-8")
    return line if len(line) <= limit and len(text) < 4 * limit else line[: limit - 1] + "…"


def _shown(value: object) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, default=str)
    except RecursionError:
        return "(nested too deeply)"


def described(value: object) -> str:
    """The type of a value in words: `a list`."""
    name = type(value).__name__
    return TYPES.get(name, f"a {name}")


def text(value: object, name: str) -> str:
    """The text in a cell; a number is its digits, what is absent (None, NaN) an empty text."""
    if value is None:
        return ""
    if not isinstance(value, str):
        if not isinstance(value, int | float):
            raise Unusable("malformed", f"{name} is {described(value)}, not a text")
        return "" if value != value else str(value)
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise Unusable("malformed", f"{name} holds half of a surrogate pair") from error
    return value


def label(value: object, name: str) -> bool:
    """Whether an answer is wanted: true or false, as a truth value, 1 or 0, or a word."""
    found = LABELS.get(str(value).strip().casefold())
    if found is None:
        raise Unusable("malformed", f"{name} is {shortened(value, 30)!r}, neither true nor false")
    return found


def is_label(value: object) -> bool:
    return isinstance(value, str | int | float) and str(value).strip().casefold() in LABELS


def parsed(value: str, name: str) -> object:
    """The value that a text spells: JSON, or what Python prints (pandas writes lists into CSV so)."""
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        try:
            # Through JSON once more, which knows no tuples, sets or numbers as keys.
            return json.loads(json.dumps(ast.literal_eval(value.strip())))
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
            raise Unusable("malformed", f"{name} is a text that is no JSON: {shortened(value, 40)!r}") from error


def items(value: object, name: str) -> list[Any]:
    """The list in a cell, in CSV as JSON text; what is absent or blank is an empty list, an object a list of one."""
    if isinstance(value, str) and value.strip():
        value = parsed(value, name)
    if value is None or value == "" or (isinstance(value, str) and not value.strip()):
        return []
    if isinstance(value, dict):
        return [value]
    if not isinstance(value, list):
        raise Unusable("malformed", f"{name} is {described(value)}, not a list")
    return cast("list[Any]", value)


def without_nulls(value: Any) -> Any:
    """`value` without the keys that are null: Parquet stores every key that any row has, in all rows."""
    if isinstance(value, dict):
        fields = cast("dict[str, Any]", value)
        return {key: without_nulls(inner) for key, inner in fields.items() if inner is not None}
    return [without_nulls(inner) for inner in cast("list[Any]", value)] if isinstance(value, list) else value


def as_json(value: object, name: str) -> str:
    """`value` as JSON text. Raises Unusable where a text in it could not be stored."""
    return text(json.dumps(value, ensure_ascii=False, default=str), name)
