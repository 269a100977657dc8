"""JSON schemas that others wrote, and whether what a model wrote is JSON that fits.

Guarantees that nothing is fetched (a `$ref` to elsewhere is refused) and that no pattern runs without a time limit.
Checks what the schema's draft checks, by default 2020-12; `format` is a remark there and not checked.
"""

import json
import re
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, Any, NoReturn, cast

from tunewright.pipeline.training import reward_patterns

if TYPE_CHECKING:
    from jsonschema.protocols import Validator

# jsonschema searches these with Python's re, which knows no time limit, in more places than can be overridden.
REFUSED = ("patternProperties",)
REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")
FENCED = re.compile(r"```(?:json)?[ \t]*\n(.*)\n```", re.DOTALL | re.IGNORECASE)
MAX_SCHEMA_CHARACTERS = 20_000


def check(schema: dict[str, Any]) -> None:
    """Raises ValueError, with the reason, where `schema` is no JSON schema or could not be checked against safely."""
    # jsonschema (maintained by the specification's own group) takes 0.1 s to import.
    from jsonschema.exceptions import SchemaError

    text = json.dumps(schema)
    if len(text) > MAX_SCHEMA_CHARACTERS:
        raise ValueError(f"json_schema has {len(text)} characters; at most {MAX_SCHEMA_CHARACTERS} are allowed")
    for keyword, value in _keywords(schema):
        if keyword in REFUSED:
            raise ValueError(f"json_schema uses {keyword}, which is not supported; name the properties")
        if keyword == "pattern" and isinstance(value, str):
            reward_patterns.check(value)
    for keyword in ("$schema", "$id"):
        if not isinstance(schema.get(keyword, ""), str):
            raise ValueError(f"json_schema's {keyword} must be a string")
    validator = _validator(text)
    try:
        validator.check_schema(schema)
        _check_references(schema)
        for example in (None, {}, [], "", 0):
            validator.is_valid(example)
    except SchemaError as error:
        raise ValueError(f"json_schema is no JSON schema: {error.message} at {error.json_path}") from None
    except RecursionError:
        raise ValueError("json_schema refers to itself without an end") from None


def _check_references(schema: dict[str, Any]) -> None:
    from referencing import Registry, Resource
    from referencing.exceptions import Unresolvable
    from referencing.jsonschema import DRAFT202012

    root = Resource[Any].from_contents(schema, default_specification=DRAFT202012)
    resolver = Registry[Any]().resolver_with_root(root)
    for keyword, reference in _keywords(schema):
        if keyword not in REFERENCES or not isinstance(reference, str):
            continue
        try:
            resolver.lookup(reference)
        except Unresolvable:
            raise ValueError(f"json_schema refers to {reference!r}, which it does not hold itself") from None


def fits(schema: dict[str, Any], answer: str) -> bool:
    """Whether `answer` is JSON, alone or in one fenced block, that the schema allows. Raises TimeoutError."""
    fenced = FENCED.fullmatch(answer.strip())
    try:
        value = json.loads(fenced[1] if fenced else answer, parse_constant=_refuse)
        return _validator(json.dumps(schema)).is_valid(value)
    # Nested a thousand deep, or a number of more digits than Python reads, or too large to be divided (multipleOf).
    except (ValueError, RecursionError, OverflowError):
        return False


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _keywords(part: Any) -> Iterator[tuple[str, Any]]:
    """Every key with its value, however deep. What is called like a keyword but is data is taken for one too."""
    if isinstance(part, dict):
        for key, value in cast("dict[str, Any]", part).items():
            yield key, value
            yield from _keywords(value)
    elif isinstance(part, list):
        for value in cast("list[Any]", part):
            yield from _keywords(value)


@cache
def _validator(schema_text: str) -> "Validator":
    from jsonschema.validators import Draft202012Validator, extend, validator_for
    from referencing import Registry

    schema = json.loads(schema_text)
    guarded = extend(validator_for(schema, default=Draft202012Validator), {"pattern": _pattern})
    # jsonschema's own registry would fetch what is referred to.
    return guarded(schema, registry=Registry())


def _pattern(validator: "Validator", pattern: str, instance: Any, schema: Any) -> Iterator[Any]:
    from jsonschema.exceptions import ValidationError

    if validator.is_type(instance, "string") and not reward_patterns.found(pattern, instance):
        yield ValidationError(f"does not match {pattern}")
