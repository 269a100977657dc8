"""get_status: one job, the overview, waiting, and what it suggests by state."""

import time
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest
from mcp import Client

from tunewright.pipeline.context import JobContext
from tunewright.pipeline.store import Row
from tunewright.pipeline.workspace import Workspace

pytestmark = pytest.mark.anyio

Call = Callable[..., Awaitable[dict[str, Any]]]
EndedJob = Callable[..., str]


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
    assert (step["tool"], step["arguments"]) == ("start_finetune", {"dataset_id": dataset_id})


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


async def test_a_failure_is_data_with_code_cause_and_hint(call: Call, ended_job: EndedJob) -> None:
    error = {
        "code": "out_of_memory", "what": "OutOfMemoryError: no", "allowed": "Lower batch_size.",
        "next": 'resume_job(job_id="job-x")', "done": "Checkpoints are kept.",
    }  # fmt: skip
    answer = await call("get_status", job_id=ended_job("finetune", "failed", error=error))
    assert answer["job"]["error"] == error
    assert [step["tool"] for step in answer["next_steps"]] == ["resume_job", "get_status"]


async def test_what_a_job_made_decides_what_comes_next(
    call: Call, ended_job: EndedJob, adapter: Row, export: Row
) -> None:
    made = {
        ended_job("finetune", "succeeded", {"adapter_id": adapter["id"]}): ["chat_with_adapter", "merge_and_export"],
        ended_job("export", "succeeded", {"export_id": export["id"]}): ["publish_to_ollama"],
        ended_job("publish_hub", "succeeded", {"publication_id": "pub-x"}): ["list_artifacts"],
        ended_job("finetune", "interrupted"): ["resume_job", "get_status"],
        ended_job("finetune", "cancelled"): ["resume_job", "get_status"],
    }
    for job_id, expected in made.items():
        answer = await call("get_status", job_id=job_id)
        assert [step["tool"] for step in answer["next_steps"]] == expected


async def test_the_overview_holds_the_newest_twenty_newest_first(call: Call, ended_job: EndedJob) -> None:
    ids = [ended_job("finetune", "succeeded") for _ in range(23)]
    assert [job["job_id"] for job in (await call("get_status"))["jobs"]] == ids[:2:-1]
