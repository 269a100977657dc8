"""Any call of any tool, made of its published schema and beside it: a result of the promised form, or an error in the
agreed one. `TUNEWRIGHT_CALLS=10000` makes as many calls as issue 7 asks for; the suite makes fewer.
"""

import os
import re
from collections.abc import Callable
from typing import Any

import jsonschema
import psutil
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from mcp import Client
from mcp.types import CallToolResult, TextContent, Tool

from tunewright.pipeline.store import Row
from tunewright.pipeline.workspace import Workspace
from tunewright.server import build_server

CALLS = int(os.environ.get("TUNEWRIGHT_CALLS", "250"))
TIMEOUT_S = 30
ERROR = re.compile(r"[a-z]+(_[a-z]+)*: \S")
LEAK = re.compile(r"Traceback|File \"|pydantic|Error executing|errors\.pydantic")
# Asking for these would reach out or wait: looking at the machine takes a second, the rest is tested elsewhere.
SLOW = {"check_environment"}
TEXTS = st.sampled_from(
    ["", " ", "toy", "a" * 5000, "../../etc/passwd", "/", "x\x00y", "ds-numbers", "ad-numbers-0001", "ex-numbers-0001",
     "job-", "ünïcode 你好 🚀", "%s{0}$(x)`y`;", "null", "-1", "1e9", "owner/name", "gguf:q8_0", "\u202eabc"]
)  # fmt: skip
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 3), st.integers(), st.floats(allow_nan=False, allow_infinity=False),
    TEXTS, st.text(max_size=20),
)  # fmt: skip
ANYTHING = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


def of_schema(schema: dict[str, Any], defs: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Values that a schema of tools/list allows."""
    if "$ref" in schema:
        return of_schema(defs[schema["$ref"].rpartition("/")[2]], defs)
    if "anyOf" in schema:
        return st.one_of([of_schema(option, defs) for option in schema["anyOf"]])
    if "const" in schema or "enum" in schema:
        return st.sampled_from(schema.get("enum", [schema.get("const")]))
    match schema.get("type"):
        case "string":
            return TEXTS | st.text(max_size=30)
        case "boolean":
            return st.booleans()
        case "integer":
            return st.integers(schema.get("minimum", -5), min(schema.get("maximum", 10**6), 10**6))
        case "number":
            low, high = (schema.get(end, schema.get(f"exclusive{end.title()}")) for end in ("minimum", "maximum"))
            return st.floats(low if low is not None else -1e6, high if high is not None else 1e6).filter(
                lambda value: value not in (schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum"))
            )
        case "array":
            return st.lists(of_schema(schema.get("items", {}), defs), max_size=3)
        case "object":
            return _object(schema, defs)
        case _:
            return ANYTHING


def _object(schema: dict[str, Any], defs: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    properties: dict[str, Any] = schema.get("properties", {})
    if not properties:
        names = of_schema(schema["propertyNames"], defs) if "propertyNames" in schema else TEXTS
        inner = schema.get("additionalProperties")
        return st.dictionaries(names, of_schema(inner, defs) if isinstance(inner, dict) else ANYTHING, max_size=3)
    required = set(schema.get("required", []))
    return st.fixed_dictionaries(
        {name: of_schema(inner, defs) for name, inner in properties.items() if name in required},
        optional={name: of_schema(inner, defs) for name, inner in properties.items() if name not in required},
    )


def calls(tools: dict[str, Tool]) -> st.SearchStrategy[tuple[str, dict[str, Any]]]:
    """A tool with arguments as its schema has them, some spoilt by a value or a name of any kind."""

    def of(name: str) -> st.SearchStrategy[tuple[str, dict[str, Any]]]:
        schema = tools[name].input_schema
        fitting = of_schema(schema, schema.get("$defs", {}))
        names = st.sampled_from(sorted(schema["properties"]) or ["x"]) | st.text(min_size=1, max_size=8)
        spoilt = st.builds(lambda given, key, value: {**given, key: value}, fitting, names, ANYTHING)
        return st.tuples(st.just(name), fitting | spoilt)

    return st.sampled_from(sorted(set(tools) - SLOW)).flatmap(of)


def check(tool: Tool, result: CallToolResult) -> None:
    if result.is_error:
        (part,) = result.content
        assert isinstance(part, TextContent)
        assert ERROR.match(part.text) and not LEAK.search(part.text), part.text
        assert not part.text.startswith("internal_error"), part.text
        assert len(part.text) < 4000
        return
    jsonschema.validate(result.structured_content, tool.output_schema or {})


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.mark.usefixtures("held_device")
def test_any_call_gives_a_result_of_its_form_or_an_error_of_ours(
    workspace: Workspace, dataset_id: str, adapter: Row, export: Row, ended_job: Callable[..., str]
) -> None:
    import anyio
    from anyio.from_thread import start_blocking_portal

    ended_job("finetune", "succeeded", {"adapter_id": adapter["id"]})
    process = psutil.Process()
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(Client(build_server(workspace))) as client,
    ):
        tools = {tool.name: tool for tool in portal.call(client.list_tools).tools}

        async def answer(name: str, arguments: dict[str, Any]) -> CallToolResult:
            with anyio.fail_after(TIMEOUT_S):
                return await client.call_tool(name, arguments)

        @settings(
            max_examples=CALLS, deadline=None, database=None, derandomize=True, phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(calls(tools))
        def run(call: tuple[str, dict[str, Any]]) -> None:
            name, arguments = call
            check(tools[name], portal.call(answer, name, arguments))

        run()
        open_files, memory = process.num_fds(), process.memory_info().rss
        run()
    assert process.num_fds() <= open_files + 10
    assert process.memory_info().rss < memory * 1.2 + 50e6
