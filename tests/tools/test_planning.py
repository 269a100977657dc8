"""plan_finetune: the arguments it chooses are ready to send, explained, and those that start_finetune chooses too."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from mcp import Client
from mcp.types import Tool

from tunewright.pipeline import gpu
from tunewright.pipeline.data.prepare import prepare
from tunewright.pipeline.gpu import Gpu
from tunewright.pipeline.workspace import Workspace

pytestmark = pytest.mark.anyio

Call = Callable[..., Awaitable[dict[str, Any]]]
Refused = Callable[..., Awaitable[str]]
MAX_ENTRY_BYTES = 1600
H200 = Gpu(0, "NVIDIA H200", 139.8, 139.0, (9, 0), "580")


@pytest.fixture
def on_h200(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver tells of an idle H200."""
    monkeypatch.setattr(gpu, "find", lambda: [H200])
    monkeypatch.setattr("tunewright.pipeline.planning.machine._held_by_tunewright", lambda: {})


async def test_the_entry_in_the_list_is_small(client: Client) -> None:
    (entry,) = [tool for tool in (await client.list_tools()).tools if tool.name == "plan_finetune"]
    assert len(entry.model_dump_json(by_alias=True, exclude_none=True).encode()) < MAX_ENTRY_BYTES


async def test_a_plan_starts_nothing_and_is_what_start_finetune_would_choose(
    call: Call, dataset_id: str, workspace: Workspace
) -> None:
    plan = await call("plan_finetune", dataset_id=dataset_id[:6], model="toy")
    assert not workspace.store.rows("SELECT id FROM jobs")
    first = plan["next_steps"][0]
    assert first["tool"] == "start_finetune"
    assert first["arguments"] == {"dataset_id": dataset_id, "model": "toy", "method": "sft"} | plan["arguments"]
    started = await call("start_finetune", **first["arguments"], dry_run=True)
    alone = await call("start_finetune", dataset_id=dataset_id, model="toy", dry_run=True)
    assert started["arguments"] == alone["arguments"]
    assert plan["device"] == "cpu"
    assert plan["steps"] == alone["plan"]["steps"]


async def test_a_plan_says_why_what_it_costs_and_what_else_there_is(call: Call, dataset_id: str) -> None:
    plan = await call("plan_finetune", dataset_id=dataset_id, model="toy", goal="quality")
    assert {"learning_rate", "epochs", "lora_rank", "max_seq_length", "packing"} <= set(plan["reasons"])
    assert sum(plan["vram_gib"].values()) == pytest.approx(plan["peak_gib"], abs=0.04)
    assert 0 < plan["peak_gib"] <= plan["limit_gib"]
    assert len(plan["alternatives"]) == 2
    assert all(other["changes"] and other["what"] for other in plan["alternatives"])
    assert any("thin" in warning for warning in plan["warnings"])


async def test_a_goal_changes_what_is_chosen(call: Call, dataset_id: str) -> None:
    by_goal = {
        goal: await call("plan_finetune", dataset_id=dataset_id, model="toy", goal=goal)
        for goal in ("fast", "balanced", "quality")
    }
    assert by_goal["fast"]["time_s"] < by_goal["balanced"]["time_s"] < by_goal["quality"]["time_s"]
    assert by_goal["quality"]["arguments"]["lora_rank"] == 2 * by_goal["balanced"]["arguments"]["lora_rank"]


@pytest.mark.usefixtures("on_h200")
async def test_a_limit_is_kept_and_handed_on(call: Call, dataset_id: str) -> None:
    plan = await call("plan_finetune", dataset_id=dataset_id, model="toy", vram_limit_gib=2)
    assert plan["device"] == "NVIDIA H200"
    assert plan["limit_gib"] == pytest.approx(1.4), "less the CUDA context"
    assert plan["next_steps"][0]["arguments"]["vram_limit_gib"] == 2


async def test_the_method_follows_from_the_data(
    call: Call, refused: Refused, workspace: Workspace, tmp_path: Path
) -> None:
    rows = tmp_path / "pairs.jsonl"
    rows.write_text(
        "".join(f'{{"prompt": "Say {i}.", "chosen": "{i}!", "rejected": "No {i}."}}\n' for i in range(20)),
        encoding="utf-8",
    )
    dataset_id = prepare(workspace, rows, eval_fraction=0.1)["id"]
    plan = await call("plan_finetune", dataset_id=dataset_id, model="toy")
    assert plan["method"] == plan["next_steps"][0]["arguments"]["method"] == "dpo"
    assert plan["arguments"]["learning_rate"] == 5e-6
    text = await refused("plan_finetune", dataset_id=dataset_id, model="toy", method="sft")
    assert text.startswith("dataset_of_another_kind: ")


async def test_a_plan_for_rewards_can_be_sent_too(call: Call, dataset_id: str) -> None:
    plan = await call("plan_finetune", dataset_id=dataset_id, model="toy", method="grpo")
    arguments = plan["next_steps"][0]["arguments"]
    assert arguments["rewards"]
    assert "stands in for what you want rewarded" in plan["reasons"]["rewards"]
    assert arguments["batch_size"] * arguments["gradient_accumulation"] % 8 == 0
    started = await call("start_finetune", **arguments, dry_run=True)
    assert started["arguments"]["batch_size"] == arguments["batch_size"]


async def test_what_is_wrong_is_refused_with_what_is_right(refused: Refused, dataset_id: str) -> None:
    assert (await refused("plan_finetune", dataset_id="ds-none")).startswith("artifact_not_found: ")
    assert "Allowed: one of fast, balanced, quality" in await refused(
        "plan_finetune", dataset_id=dataset_id, goal="best"
    )
    assert (await refused("plan_finetune", dataset_id=dataset_id, model="qwen3:8b")).startswith("model_not_trainable: ")
    assert (await refused("plan_finetune", dataset_id=dataset_id, model="")).startswith("invalid_arguments: model=''")
    assert "Allowed: one of auto, sft, cpt, dpo, kto, orpo, grpo" in await refused(
        "plan_finetune", dataset_id=dataset_id, method="ppo"
    )


async def test_the_plan_is_read_only(tools: dict[str, Tool]) -> None:
    hints = tools["plan_finetune"].annotations
    assert hints is not None and hints.read_only_hint and hints.open_world_hint
