"""What tools/list tells an agent: names, descriptions, bounds, annotations, and that it stays small."""

from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
from mcp import Client
from mcp.types import Tool

from tunewright.pipeline.training.arguments import TrainingArguments

pytestmark = pytest.mark.anyio

Tools = dict[str, Tool]
MAX_LIST_BYTES = 30_000
READ_ONLY = {
    "check_environment", "list_models", "inspect_dataset", "read_documents", "get_status", "list_artifacts",
    "plan_finetune", "compare_runs",
}  # fmt: skip
LOCAL_WRITES = {"add_examples", "submit_judgements"}
DESTRUCTIVE = {"cancel_job", "publish_to_ollama", "publish_to_hub", "delete_artifact"}
IDEMPOTENT = {"cancel_job", "delete_artifact", "submit_judgements"}
# What can reach the network: downloads of models, tokenizers and tools, and publishing (which resume_job may do again).
OPEN_WORLD = {
    "prepare_dataset", "inspect_dataset", "start_finetune", "resume_job", "chat_with_adapter", "merge_and_export",
    "publish_to_ollama", "publish_to_hub", "generate_examples", "plan_finetune",
    "validate_adapter", "benchmark_adapter",
}  # fmt: skip


async def test_the_tools_are_those_of_the_contract(tools: Tools) -> None:
    assert set(tools) == READ_ONLY | LOCAL_WRITES | DESTRUCTIVE | OPEN_WORLD


async def test_every_tool_has_a_title_and_a_description_without_indentation(tools: Tools) -> None:
    for tool in tools.values():
        assert tool.title
        assert tool.description and len(tool.description) > 40, tool.name
        assert "\n " not in tool.description, tool.name


async def test_annotations_say_what_a_tool_does(tools: Tools) -> None:
    for name, tool in tools.items():
        hints = tool.annotations
        assert hints is not None
        assert hints.read_only_hint is (name in READ_ONLY), name
        assert hints.open_world_hint is (name in OPEN_WORLD), name
        if name not in READ_ONLY:  # elsewhere these two say nothing
            assert hints.destructive_hint is (name in DESTRUCTIVE), name
            assert hints.idempotent_hint is (name in IDEMPOTENT), name


async def test_the_whole_list_is_small(client: Client) -> None:
    listed = await client.list_tools()
    assert len(listed.model_dump_json(by_alias=True, exclude_none=True).encode()) < MAX_LIST_BYTES


def _schemas(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        yield node
        for value in node.values():
            yield from _schemas(value)
    elif isinstance(node, list):
        for value in node:
            yield from _schemas(value)


async def test_schemas_are_valid_and_take_no_unknown_arguments(tools: Tools) -> None:
    for tool in tools.values():
        jsonschema.Draft202012Validator.check_schema(tool.input_schema)
        jsonschema.Draft202012Validator.check_schema(tool.output_schema)
        closed = [schema for schema in _schemas(tool.input_schema) if isinstance(schema.get("properties"), dict)]
        assert tool.input_schema in closed
        assert all(schema["additionalProperties"] is False for schema in closed), tool.name


async def test_titles_that_only_repeat_names_are_not_sent(tools: Tools) -> None:
    for tool in tools.values():
        for schema in (*_schemas(tool.input_schema), *_schemas(tool.output_schema)):
            assert not isinstance(schema.get("title"), str), tool.name


async def test_every_result_says_what_to_do_next(tools: Tools) -> None:
    for tool in tools.values():
        assert tool.output_schema and "next_steps" in tool.output_schema["properties"], tool.name


async def test_start_finetune_has_every_training_argument_with_bounds_and_meaning(tools: Tools) -> None:
    given = tools["start_finetune"].input_schema["properties"]
    for name, expected in TrainingArguments.model_json_schema()["properties"].items():
        assert given[name].get("description") == expected.get("description")
        assert _bounds(given[name]) == _bounds(expected), name
        # Nothing, off and empty go without saying.
        assert given[name].get("default") == (expected.get("default") or None), name
    assert set(given) == {*TrainingArguments.model_fields, "dataset_id", "model", "method", "continue_from", "dry_run"}


def _bounds(schema: dict[str, Any]) -> dict[str, Any]:
    """The keywords of a schema that limit its values, those of `… | None` too."""
    limits = (
        "minimum",
        "maximum",
        "exclusiveMinimum",
        "exclusiveMaximum",
        "enum",
    )
    found = {key: schema[key] for key in limits if key in schema}
    for option in schema.get("anyOf", []):
        found |= _bounds(option)
    return found


async def test_every_number_that_start_finetune_takes_is_bounded(tools: Tools) -> None:
    for name, schema in tools["start_finetune"].input_schema["properties"].items():
        for option in schema.get("anyOf", [schema]):
            if option.get("type") in ("integer", "number"):
                assert {"minimum", "exclusiveMinimum"} & set(option), name
