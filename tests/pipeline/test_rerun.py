"""A fine-tune repeated, up to the queue: the device is held, so the new job's worker waits."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tunewright.pipeline import artifacts, files, gpu, jobs, lease, rerun
from tunewright.pipeline.context import JobContext
from tunewright.pipeline.data.prepare import prepare
from tunewright.pipeline.errors import Conflict, NotFound
from tunewright.pipeline.gpu import Gpu
from tunewright.pipeline.jobs import State
from tunewright.pipeline.store import Row
from tunewright.pipeline.training.arguments import TrainingArguments
from tunewright.pipeline.workspace import Workspace

CARD = Gpu(0, "NVIDIA H200", 139.8, 139.0, (9, 0), "580.1")


def dataset(workspace: Workspace, path: Path, rows: int = 20) -> str:
    lines = [{"instruction": f"Say {i}.", "input": "", "output": f"{i}!"} for i in range(rows)]
    path.write_text(json.dumps(lines), encoding="utf-8")
    return prepare(workspace, path, eval_fraction=0.1)["id"]


@pytest.fixture(autouse=True)
def no_worker_left(workspace: Workspace) -> Iterator[None]:
    (device,) = lease.devices()
    lock = lease.try_take(workspace, device)
    assert lock is not None
    yield
    lock.release()
    for row in workspace.store.rows("SELECT * FROM jobs"):
        if jobs.is_worker_alive(row):
            os.kill(row["pid"], signal.SIGKILL)


@pytest.fixture
def ran(workspace: Workspace, toy_folder: Path, tmp_path: Path) -> Row:
    """A fine-tune that has run and succeeded, as far as its row, its folder and what its worker wrote down."""
    spec: dict[str, Any] = {
        "dataset_id": dataset(workspace, tmp_path / "numbers.json"), "model": "toy", "method": "sft", "name": "numbers",
        "arguments": TrainingArguments.model_validate({"learning_rate": 1e-3, "seed": 7}).model_dump(),
        "continue_from": None, "plan": {"steps": 60},
    }  # fmt: skip
    row = jobs.submit(workspace, "finetune", "numbers", spec, needs_device=True)
    os.kill(row["pid"], signal.SIGKILL)
    rerun.remember(JobContext.of(workspace, row["id"]))
    assert jobs.move(workspace, row["id"], jobs.ACTIVE, State.SUCCEEDED)
    return workspace.store.job(row["id"])


def test_the_same_spec_becomes_a_new_job(workspace: Workspace, ran: Row) -> None:
    again, differs = rerun.rerun(workspace, ran["id"][:-1])
    assert again["id"] != ran["id"] and again["id"].startswith("job-numbers-")
    assert (again["kind"], again["spec"], again["needs_device"]) == ("finetune", ran["spec"], 1)
    assert (again["state"], differs) == (State.QUEUED, [])
    assert jobs.is_worker_alive(again)


def test_what_differs_from_that_time_is_said(workspace: Workspace, ran: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    path = jobs.folder(workspace, ran["id"]) / rerun.CONDITIONS
    then = files.read_json(path)
    torch = then["versions"]["torch"]
    files.write_json(path, then | {"versions": then["versions"] | {"torch": "2.0.0"}})
    monkeypatch.setattr(gpu, "find", lambda: [CARD])
    assert rerun.rerun(workspace, ran["id"])[1] == ["device cpu → NVIDIA H200", f"torch 2.0.0 → {torch}"]


def test_a_run_that_goes_on_with_other_things_than_it_began_with_warns(
    workspace: Workspace, ran: Row, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = JobContext.of(workspace, ran["id"])
    began = files.read_json(context.folder / rerun.CONDITIONS)
    rerun.remember(context)
    assert "conditions_changed" not in [event["code"] for event in workspace.store.events(ran["id"])]
    monkeypatch.setattr(gpu, "find", lambda: [CARD])
    rerun.remember(context)
    event = workspace.store.events(ran["id"])[-1]
    assert (event["level"], event["code"]) == ("warning", "conditions_changed")
    assert "device cpu → NVIDIA H200" in event["message"]
    assert files.read_json(context.folder / rerun.CONDITIONS) == began


def test_a_deleted_dataset_is_asked_for_and_taken_once_it_is_prepared_again(
    workspace: Workspace, ran: Row, tmp_path: Path
) -> None:
    deleted = ran["spec"]["dataset_id"]
    artifacts.delete(workspace, deleted, confirm=True)
    dataset(workspace, tmp_path / "others.json", rows=12)
    with pytest.raises(Conflict, match=f"dataset_deleted: The data of {deleted}") as caught:
        rerun.rerun(workspace, ran["id"])
    assert caught.value.next == f'prepare_dataset(source="{tmp_path / "numbers.json"}")'
    assert len(workspace.store.rows("SELECT id FROM jobs")) == 1

    prepared = dataset(workspace, tmp_path / "numbers.json")
    again, _ = rerun.rerun(workspace, ran["id"])
    assert again["spec"] == ran["spec"] | {"dataset_id": prepared}


def test_a_dataset_that_has_changed_is_refused_with_the_call_for_a_new_run(workspace: Workspace, ran: Row) -> None:
    id = ran["spec"]["dataset_id"]
    document = workspace.store.artifact(id)["document"] | {"sha256": "0" * 64}
    workspace.store.execute("UPDATE artifacts SET document=? WHERE id=?", json.dumps(document), id)
    with pytest.raises(Conflict, match="dataset_changed") as caught:
        rerun.rerun(workspace, ran["id"])
    assert caught.value.next == (
        f'start_finetune(dataset_id="{id}", model="toy", method="sft", learning_rate=0.001, seed=7)'
    )


def test_without_the_adapter_that_it_went_on_from_or_the_model_nothing_starts(
    workspace: Workspace, ran: Row, tmp_path: Path, toy_folder: Path
) -> None:
    def spec(**changes: str) -> None:
        changed = json.dumps(ran["spec"] | changes)
        workspace.store.execute("UPDATE jobs SET spec=? WHERE id=?", changed, ran["id"])

    spec(continue_from="ad-gone-0001")
    with pytest.raises(NotFound, match="artifact_not_found: No adapter has the id 'ad-gone-0001'"):
        rerun.rerun(workspace, ran["id"])
    spec(model=str(tmp_path / "gone"))
    with pytest.raises(NotFound, match="model_not_found"):
        rerun.rerun(workspace, ran["id"])
    assert len(workspace.store.rows("SELECT id FROM jobs")) == 1


def test_a_job_that_never_ran_or_is_no_fine_tune_is_not_repeated(workspace: Workspace, ran: Row) -> None:
    workspace.store.execute("UPDATE jobs SET kind='export'")
    with pytest.raises(Conflict, match=rf"nothing_to_repeat: {ran['id']} \(kind export"):
        rerun.rerun(workspace, ran["id"])
    workspace.store.execute("UPDATE jobs SET kind='finetune'")
    (jobs.folder(workspace, ran["id"]) / rerun.CONDITIONS).unlink()
    with pytest.raises(Conflict, match="nothing_to_repeat"):
        rerun.rerun(workspace, ran["id"])


@pytest.mark.parametrize("before", [True, False])
def test_the_command_prints_the_new_jobs_id_or_why_not(
    workspace: Workspace, ran: Row, before: bool, eventually: Callable[..., None]
) -> None:
    home = ["--home", str(workspace.home.root)]

    def command(job_id: str) -> subprocess.CompletedProcess[str]:
        arguments = [*home, "rerun", job_id] if before else ["rerun", job_id, *home]
        return subprocess.run(
            [sys.executable, "-P", "-m", "tunewright.server", *arguments], capture_output=True, encoding="utf-8",
            timeout=60,
        )  # fmt: skip

    done = command(ran["id"])
    assert (done.returncode, done.stderr) == (0, "")
    again = workspace.store.job(done.stdout.strip())
    assert again["spec"] == ran["spec"]
    # The command has ended, the job's worker has not.
    eventually(lambda: "waiting" in [event["code"] for event in workspace.store.events(again["id"])])
    refused = command("job-none-0000")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.startswith("job_not_found: No job has the id 'job-none-0000'")
