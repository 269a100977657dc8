"""get_status: one job, the overview, waiting, and what it suggests by state."""

import base64
import json
import os
import re
import time
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest
from mcp import Client
from mcp.types import ImageContent, TextContent, Tool

from tunewright.pipeline import jobs, processes
from tunewright.pipeline.context import JobContext
from tunewright.pipeline.store import Row
from tunewright.pipeline.workspace import Workspace

pytestmark = pytest.mark.anyio

Call = Callable[..., Awaitable[dict[str, Any]]]
EndedJob = Callable[..., str]
# An answer's characters for each of its tokens: JSON of numbers, ids and words has 3 and more.
MAX_CHARACTERS = 3 * 4000


@pytest.fixture
async def queued(call: Call, dataset_id: str, held_device: Any) -> Any:
    """A job that waits for the device with a living worker; cancelled afterwards."""
    job_id = (await call("start_finetune", dataset_id=dataset_id, model="toy"))["job_id"]
    yield job_id
    if (await call("get_status", job_id=job_id))["job"]["state"] == "queued":
        await call("cancel_job", job_id=job_id)
        assert (await call("get_status", job_id=job_id, wait_s=30))["job"]["state"] == "cancelled"


async def test_without_anything_the_overview_says_where_to_begin(call: Call) -> None:
    answer = await call("get_status")
    assert answer["jobs"] == []
    assert [step["tool"] for step in answer["next_steps"]] == ["prepare_dataset"]


async def test_with_a_dataset_the_overview_suggests_to_train_on_it(call: Call, dataset_id: str) -> None:
    (step,) = (await call("get_status"))["next_steps"]
    assert (step["tool"], step["arguments"]) == ("plan_finetune", {"dataset_id": dataset_id, "model": "toy"})


async def test_a_queued_job_is_in_the_overview_and_can_be_waited_for(call: Call, queued: str) -> None:
    overview = await call("get_status")
    assert [(job["job_id"], job["state"]) for job in overview["jobs"]] == [(queued, "queued")]
    assert overview["next_steps"][0]["arguments"] == {"job_id": queued, "wait_s": 50}

    began = time.monotonic()
    answer = await call("get_status", job_id=queued, wait_s=1)
    assert 1 <= time.monotonic() - began < 5
    assert answer["job"]["state"] == "queued"
    assert answer["poll_after_s"] >= 2
    assert {step["tool"] for step in answer["next_steps"]} == {"get_status", "cancel_job"}


async def test_waiting_ends_as_soon_as_the_job_does(call: Call, queued: str) -> None:
    answers: list[dict[str, Any]] = []

    async def wait() -> None:
        answers.append(await call("get_status", job_id=queued, wait_s=50))

    began = time.monotonic()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        await call("cancel_job", job_id=queued)
    assert time.monotonic() - began < 25
    assert answers[0]["job"]["state"] == "cancelled"


async def test_progress_arrives_while_waiting(client: Client, queued: str, workspace: Workspace) -> None:
    told: list[tuple[float, float | None, str | None]] = []
    heard = anyio.Event()

    async def on_progress(done: float, total: float | None, message: str | None) -> None:
        told.append((done, total, message))
        heard.set()

    async def wait() -> None:
        await client.call_tool("get_status", {"job_id": queued, "wait_s": 30}, progress_callback=on_progress)

    context = JobContext.of(workspace, queued)
    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            for step in (3, 4):
                context.progress("training", step, 12)
                await heard.wait()
                heard = anyio.Event()
            tasks.cancel_scope.cancel()
    assert [message for _, _, message in told] == ["training 3/12", "training 4/12"]
    assert told[0][0] < told[1][0] <= 30
    assert told[0][1] == 30


async def test_a_job_shows_its_curves_its_events_and_its_log(
    call: Call, ended_job: EndedJob, workspace: Workspace
) -> None:
    job_id = ended_job("finetune", "failed", error=None)
    for step in range(1, 101):
        workspace.store.add_metric(job_id, "train", step, {"loss": 3 / step, "tokens_per_s": 50.0, "peak_gib": 0.0})
    workspace.store.add_metric(job_id, "eval", 100, {"loss": 0.5})
    for number in range(9):
        workspace.store.add_event(job_id, "info", "note", f"event {number}")
    job = (await call("get_status", job_id=job_id))["job"]
    assert (job["loss"], job["eval_loss"], job["tokens_per_s"]) == (0.03, 0.5, 50.0)
    assert (job["loss_curve"][0], job["loss_curve"][-1], len(job["loss_curve"])) == ([1, 3.0], [100, 0.03], 20)
    assert job["eval_curve"] == [[100, 0.5]]
    assert job["events"] == [f"info note: event {number}" for number in range(5, 9)]
    assert job["log"].endswith(f"{job_id}/worker.log")
    assert len((await call("get_status", job_id=job_id, detail="detailed"))["job"]["events"]) == 9


@pytest.fixture
def ill_job(ended_job: EndedJob, workspace: Workspace) -> str:
    """A running GRPO job with everything that can be said of one: long numbers, all alerts, many long events."""
    error = dict.fromkeys(("code", "what", "allowed", "next", "done"), "word " * 60)
    job_id = ended_job("finetune", "failed", result={"adapter_id": "ad-x", "metrics": {"loss": 1.0}}, error=error)
    plan = {"tokens_per_s": 12345.678, "peak_gib": 70.5, "time_s": 9999.5, "steps": 5000}
    spec = {"method": "grpo", "arguments": {"learning_rate": 5e-6, "max_seq_length": 2048}, "plan": plan}
    store = workspace.store
    # This process stands for a worker that is alive.
    store.execute(
        "UPDATE jobs SET state='running', ended_at=NULL, spec=?, pid=?, pid_started=? WHERE id=?",
        json.dumps(spec), os.getpid(), processes.start_time(os.getpid()), job_id,
    )  # fmt: skip
    store.add_metric(job_id, "run", 0, {"truncated_share": 0.2, "limit_gib": 80, "host_total_gib": 64})
    names = ["grad_norm", "learning_rate", "epoch", "entropy", "kl", "reward_std", "completion_length", "loss_share"]
    for step in range(1, 201):
        numbers = {f"reward_{name}": 0.12345678 for name in ("exact_match", "json_schema", "language", "format")}
        numbers |= {"loss": 1234.12345678, "reward": 0.12345678, "tokens_per_s": 100.5, "peak_gib": 79.9}
        numbers |= {"host_free_gib": 0.1} | dict.fromkeys(names, 0.12345678)
        store.add_metric(job_id, "train", step, numbers)
        store.add_metric(job_id, "eval", step, numbers)
        store.add_event(job_id, "warning", "alert", "A sentence about the run, with its advice. " * 9)
    return job_id


async def test_alerts_come_with_advice_and_the_plan_beside_what_came(call: Call, ill_job: str) -> None:
    job = (await call("get_status", job_id=ill_job))["job"]
    assert [alert["code"] for alert in job["alerts"]] == [
        "reward_not_rising", "truncation", "gpu_nearly_full", "slow", "host_memory_low",
    ]  # fmt: skip
    assert all(set(alert) == {"code", "message", "advice"} for alert in job["alerts"])
    assert job["plan"]["tokens_per_s"] == {"planned": 12346.0, "actual": 100.5}
    assert job["shape"]["reward"]["first"] == 0.12346
    assert job["metrics"]["reward_json_schema"] == job["metrics"]["eval_kl"] == 0.12346


async def test_no_number_has_more_digits_than_a_person_reads(
    client: Client, ended_job: EndedJob, ill_job: str, workspace: Workspace
) -> None:
    third, progress = 1 / 3, {"phase": "training", "done": 1 / 3, "total": 123456.0, "at": 1 / 3, "eta_s": 1234.56789}
    workspace.store.execute("UPDATE jobs SET progress=? WHERE id=?", json.dumps(progress), ill_job)
    ended = ended_job("finetune", "succeeded", {"adapter_id": "ad-x", "scores": [third, {"f1": -third * 1e-7}]})
    for arguments in ({"job_id": ill_job}, {"job_id": ended}, {}):
        text = (await client.call_tool("get_status", arguments)).content[0]
        assert isinstance(text, TextContent)
        floats = re.findall(r"(?<![\w.-])-?(\d+)\.(\d+)", text.text)
        assert floats
        assert [parts for parts in floats if parts[1] != "0" and len("".join(parts).lstrip("0")) > 5] == []
    assert "123456.0" in text.text


@pytest.mark.parametrize("detail", ["concise", "detailed", "image"])
async def test_whatever_happened_the_answer_is_short(client: Client, ill_job: str, detail: str) -> None:
    result = await client.call_tool("get_status", {"job_id": ill_job, "detail": detail})
    text = result.content[0]
    assert isinstance(text, TextContent)
    assert json.loads(text.text) == result.structured_content
    assert len(text.text) < MAX_CHARACTERS


async def test_the_curves_come_as_a_picture_beside_the_answer(
    client: Client, call: Call, ended_job: EndedJob, workspace: Workspace
) -> None:
    job_id = ended_job("finetune", "succeeded", {"adapter_id": "ad-x"})
    for step in range(1, 31):
        workspace.store.add_metric(job_id, "train", step, {"loss": 3 / step, "learning_rate": 1e-4})
    result = await client.call_tool("get_status", {"job_id": job_id, "detail": "image"})
    text, image = result.content
    assert isinstance(text, TextContent) and isinstance(image, ImageContent)
    assert image.mime_type == "image/png" and base64.b64decode(image.data).startswith(b"\x89PNG\r\n\x1a\n")
    assert result.structured_content == await call("get_status", job_id=job_id)


async def test_without_metrics_there_is_no_picture(
    call: Call, refused: Callable[..., Awaitable[str]], ended_job: EndedJob
) -> None:
    job_id = ended_job("export", "succeeded")
    assert (await refused("get_status", job_id=job_id, detail="image")).startswith(f"no_metrics: {job_id} has no")


async def test_the_tool_takes_little_of_the_list(tools: dict[str, Tool]) -> None:
    assert len(tools["get_status"].model_dump_json(by_alias=True, exclude_none=True)) < 2300


async def test_a_failure_is_data_with_code_cause_and_hint(call: Call, ended_job: EndedJob) -> None:
    error = {
        "code": "out_of_memory", "what": "OutOfMemoryError: no", "allowed": "Lower batch_size.",
        "next": 'resume_job(job_id="job-x")', "done": "Checkpoints are kept.",
    }  # fmt: skip
    answer = await call("get_status", job_id=ended_job("finetune", "failed", error=error))
    assert answer["job"]["error"] == error
    assert [step["tool"] for step in answer["next_steps"]] == ["resume_job", "get_status"]


def exported(export: Row, output: str, *, failed: bool = False) -> dict[str, Any]:
    """What an export job of one output leaves as its result."""
    parity = {"passed": not failed, "failures": [f"{output}: another prompt"] if failed else []}
    return {"export_id": export["id"], "files": [{"output": output, "path": "x", "bytes": 1}], "parity": parity}


async def test_what_a_job_made_decides_what_comes_next(
    call: Call, ended_job: EndedJob, adapter: Row, export: Row
) -> None:
    made = {
        ended_job("finetune", "succeeded", {"adapter_id": adapter["id"]}): [
            "chat_with_adapter", "validate_adapter", "merge_and_export",
        ],
        ended_job("validate", "succeeded", {"adapter_id": adapter["id"], "pairs": 20}): [
            "submit_judgements", "merge_and_export",
        ],
        ended_job("validate", "succeeded", {"adapter_id": adapter["id"], "pairs": 0}): ["merge_and_export"],
        ended_job("benchmark", "succeeded", {"adapter_id": adapter["id"]}): ["merge_and_export"],
        ended_job("export", "succeeded", exported(export, "gguf:q8_0")): ["publish_to_ollama"],
        ended_job("export", "succeeded", exported(export, "merged_16bit")): ["publish_to_hub"],
        ended_job("export", "succeeded", exported(export, "gguf:q8_0", failed=True)): ["get_status"],
        ended_job("publish_hub", "succeeded", {"publication_id": "pub-x"}): ["list_artifacts"],
        ended_job("finetune", "interrupted"): ["resume_job", "get_status"],
        ended_job("finetune", "cancelled"): ["resume_job", "get_status"],
        ended_job("prepare_dataset", "cancelled"): ["resume_job", "get_status"],
        ended_job("prepare_dataset", "failed"): ["get_status"],
    }  # fmt: skip
    for job_id, expected in made.items():
        answer = await call("get_status", job_id=job_id)
        assert [step["tool"] for step in answer["next_steps"]] == expected


async def test_after_an_export_what_can_be_published_is_and_what_was_not_verified_by_force_alone(
    call: Call, ended_job: EndedJob, export: Row
) -> None:
    unverified = {**exported(export, "gguf:q8_0"), "parity": {}}
    (step,) = (await call("get_status", job_id=ended_job("export", "succeeded", unverified)))["next_steps"]
    assert step["arguments"]["force"] is True
    await call(step["tool"], **step["arguments"])
    for output, forced in (("merged_16bit", True), ("lora", None)):
        result = {**exported(export, output), "parity": {}}
        (step,) = (await call("get_status", job_id=ended_job("export", "succeeded", result)))["next_steps"]
        assert (step["tool"], step["arguments"].get("force")) == ("publish_to_hub", forced)
    failed = exported(export, "gguf:q3_k_m", failed=True)
    failed["parity"]["recommendation"] = {"output": "gguf:q8_0", "why": "It passed."}
    _, step = (await call("get_status", job_id=ended_job("export", "succeeded", failed)))["next_steps"]
    assert step["arguments"]["output"] == "gguf:q8_0"
    assert (await call(step["tool"], **step["arguments"]))["plan"]["output"] == "gguf:q8_0"


async def test_the_overview_holds_the_newest_twenty_newest_first(call: Call, ended_job: EndedJob) -> None:
    ids = [ended_job("finetune", "succeeded") for _ in range(23)]
    assert [job["job_id"] for job in (await call("get_status"))["jobs"]] == ids[:2:-1]


async def test_the_overview_waits_for_what_runs_and_says_when_to_look_again(
    call: Call, workspace: Workspace, held_device: None
) -> None:
    job_id = jobs.submit(workspace, "export", "numbers", {}, needs_device=True)["id"]
    seen = await call("get_status", wait_s=0.3)
    assert seen["jobs"][0]["state"] == "queued" and seen["poll_after_s"] > 0
    jobs.cancel(workspace, job_id)
    began = time.monotonic()
    seen = await call("get_status", wait_s=50)
    assert seen["jobs"][0]["state"] == "cancelled" and seen["poll_after_s"] is None
    assert time.monotonic() - began < 45
