"""What goes wrong before, around and after a tool's own work, as an agent reads it."""

import gc
import itertools
import json
import sqlite3
import sys
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal, NoReturn

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest
from mcp import Client
from mcp.types import TextContent
from pydantic import BaseModel, Field

from tunewright import server
from tunewright.pipeline import artifacts, environment, jobs
from tunewright.pipeline.workspace import Workspace
from tunewright.tools.framework import THREADS, Result, run_apart

pytestmark = pytest.mark.anyio

Call = Callable[..., Awaitable[dict[str, Any]]]
Refused = Callable[..., Awaitable[str]]


def _raising(error: BaseException) -> Callable[..., NoReturn]:
    def fail(*_: object, **__: object) -> NoReturn:
        raise error

    return fail


async def test_an_unknown_argument_is_refused_and_the_nearest_named(refused: Refused) -> None:
    text = await refused("prepare_dataset", source="x.jsonl", sorce="y.jsonl")
    assert text.startswith("invalid_arguments: 'sorce' is no argument of prepare_dataset. Nearest: source")
    assert text.endswith("Next: prepare_dataset(…), corrected. Nothing was done.")


@pytest.mark.parametrize(
    ("wrong", "right"),
    [("lr", "learning_rate"), ("rank", "lora_rank"), ("num_train_epochs", "epochs"), ("Seed", "seed")],
)
async def test_a_name_from_another_library_is_refused_with_ours(refused: Refused, wrong: str, right: str) -> None:
    text = await refused("start_finetune", dataset_id="ds-x", **{wrong: 1})
    named = text.partition("Nearest: ")[2].partition(".")[0]
    assert right in named.split(", ")


async def test_an_unknown_field_inside_an_argument_is_refused(refused: Refused) -> None:
    message = {"role": "user", "content": "Hi", "name": "Ann"}
    text = await refused("chat_with_adapter", model="toy", messages=[message])
    assert "'messages' holds 'name', which is not known there." in text


async def test_a_missing_argument_is_named(refused: Refused) -> None:
    assert (await refused("prepare_dataset")).startswith("invalid_arguments: 'source' is required.")


async def test_a_wrong_type_is_shown_with_what_is_allowed(refused: Refused) -> None:
    text = await refused("start_finetune", dataset_id="ds-x", lora_rank="many")
    assert "lora_rank='many': " in text
    assert "Allowed: integer from 1 to 512." in text


async def test_a_value_out_of_bounds_is_shown_with_the_bounds(refused: Refused) -> None:
    text = await refused("start_finetune", dataset_id="ds-x", learning_rate=5)
    assert "learning_rate=5: " in text
    assert "Allowed: number from 0 to 0.1." in text


async def test_a_value_that_is_no_option_is_shown_with_the_options(refused: Refused) -> None:
    text = await refused("prepare_dataset", source="x.jsonl", format="alpacca")
    assert "format='alpacca': " in text
    assert "Allowed: one of auto, alpaca, sharegpt, chatml, prompt_completion, question_answer, " in text
    assert "Allowed: one of sft, cpt, dpo, kto, orpo, grpo." in await refused(
        "start_finetune", dataset_id="ds-x", method="ppo"
    )


async def test_several_wrong_arguments_are_all_named(refused: Refused) -> None:
    text = await refused("start_finetune", dataset_id="ds-x", seed=-1, epochs=0, target_modules=[])
    assert all(f"{name}=" in text for name in ("seed", "epochs", "target_modules"))


async def test_of_a_union_only_the_branch_that_fits_best_is_told(refused: Refused) -> None:
    text = await refused("prepare_dataset", source=[{"source": "x.jsonl", "wait": 1}])
    assert text.startswith("invalid_arguments: 'source' holds 'wait', which is not known there. Next:")
    text = await refused("prepare_dataset", source=5)
    assert text.startswith("invalid_arguments: source=5: Input should be a valid string. Allowed: string or array. ")


async def test_a_long_rejected_value_is_cut(refused: Refused) -> None:
    text = await refused("start_finetune", dataset_id="ds-x", lora_rank="x" * 5000)
    assert "xxxx" in text
    assert len(text) < 400


async def test_a_list_sent_as_json_text_is_taken_as_the_list(refused: Refused) -> None:
    text = await refused("prepare_dataset", source='["a.jsonl", "b.jsonl"]')
    assert text.startswith("source_not_found: ")
    assert "a.jsonl" in text


async def test_an_unknown_tool_is_refused_and_the_nearest_named(refused: Refused) -> None:
    text = await refused("get_statu")
    assert text.startswith("unknown_tool: There is no tool 'get_statu'. Nearest: get_status")


async def test_an_unforeseen_failure_tells_its_kind_but_not_its_text(
    refused: Refused, call: Call, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(artifacts, "page", _raising(RuntimeError("secret-123")))
        text = await refused("list_artifacts")
    assert text.startswith("internal_error: list_artifacts failed with RuntimeError")
    assert "secret-123" not in text
    assert "Next: check_environment()." in text
    assert "secret-123" in caplog.text  # the server's log is for the person who runs it
    await call("list_artifacts")


async def test_a_result_that_breaks_its_own_schema_is_no_fault_of_the_arguments(
    refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "check", lambda _: {"device": {"secret-123": 1}})
    text = await refused("check_environment")
    assert text.startswith("internal_error: check_environment failed with ValidationError")
    assert "secret-123" not in text


async def test_a_library_that_exits_does_not_end_the_server(
    refused: Refused, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(artifacts, "page", lambda *_: sys.exit(3))
        assert (await refused("list_artifacts")).startswith("internal_error: list_artifacts failed with SystemExit")
    await call("list_artifacts")


async def test_looking_after_jobs_goes_on_after_a_full_disk(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = itertools.count(1)
    third_look = anyio.Event()

    def reconcile(_: Workspace) -> list[str]:
        if next(looks) == 3:
            anyio.from_thread.run_sync(third_look.set)
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(server, "RECONCILE_EVERY_S", 0.01)
    monkeypatch.setattr(jobs, "reconcile", reconcile)
    async with Client(server.build_server(workspace)) as client:
        with anyio.fail_after(20):
            await third_look.wait()
        assert not (await client.call_tool("list_artifacts", {})).is_error


async def test_refused_calls_leave_the_home_as_it_was(client: Client, refused: Refused, workspace: Workspace) -> None:
    def held() -> set[str]:
        return {str(path) for path in workspace.home.root.rglob("*") if "tunewright.db" not in path.name}

    before = held()
    await refused("prepare_dataset", source="x.jsonl", sorce="y")
    await refused("start_finetune", dataset_id="ds-x", learning_rate=5)
    await refused("delete_artifact", artifact_id="ds-x", confirm=True)
    await refused("no_such_tool")
    assert held() == before
    assert not workspace.store.rows("SELECT id FROM jobs")


async def test_a_results_schema_names_its_parts_and_the_types_that_they_always_have() -> None:
    class Inner(BaseModel):
        text: str

    @dataclass
    class Plain:
        number: int

    class Sample(Result):
        text: str
        number: Annotated[float, Field(ge=0)]
        choice: Literal["a", "b"]
        pairs: list[tuple[int, float]]
        named: dict[str, Inner]
        inner: Inner
        plain: Plain
        perhaps: Inner | None = None
        either: int | str = 0
        anything: Any = None

    told = Sample.model_json_schema()
    assert told["type"] == "object"
    types = {name: part.get("type") for name, part in told["properties"].items()}
    assert types == {
        "next_steps": "array", "text": "string", "number": "number", "choice": "string", "pairs": "array",
        "named": "object", "inner": "object", "plain": "object", "perhaps": None, "either": None, "anything": None,
    }  # fmt: skip


def test_serving_searches_no_garbage_in_what_the_server_is_made_of(workspace: Workspace) -> None:
    gc.unfreeze()
    try:
        server._started(workspace)  # pyright: ignore[reportPrivateUsage]
        assert gc.isenabled()
        assert gc.get_freeze_count() > 10 * len(gc.get_objects())
    finally:
        gc.freeze()


async def test_a_result_is_told_as_text_too_without_indentation(workspace: Workspace) -> None:
    async with Client(server.build_server(workspace)) as client:
        for tool in ("list_models", "get_status"):
            result = await client.call_tool(tool)
            (text,) = result.content
            assert isinstance(text, TextContent) and json.loads(text.text) == result.structured_content
            assert "\n" not in text.text


async def test_every_tool_that_reaches_out_waits_in_a_thread_of_its_own(workspace: Workspace) -> None:
    tools = server.build_server(workspace)._tool_manager.list_tools()  # whether a tool is async is private to the SDK
    outward = {tool.name: tool.is_async for tool in tools if tool.annotations and tool.annotations.open_world_hint}
    assert len(outward) > 8 and all(outward.values()), outward


@pytest.mark.usefixtures("client")
async def test_calls_share_few_threads_and_none_waits_for_what_waits_for_a_network() -> None:
    assert anyio.to_thread.current_default_thread_limiter().total_tokens == THREADS
    network, answered = threading.Event(), list[bool]()

    def call() -> None:
        answered.append(not network.is_set())

    async with anyio.create_task_group() as waiting:
        for _ in range(2 * THREADS):
            waiting.start_soon(run_apart, partial(network.wait, 60))
        await anyio.wait_all_tasks_blocked()
        try:
            with anyio.fail_after(20):
                await anyio.to_thread.run_sync(call)
        finally:
            network.set()
    assert answered == [True]
