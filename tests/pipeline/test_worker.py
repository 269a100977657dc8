"""How a worker tells what stopped it."""

import errno
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save

from tunewright.pipeline import worker
from tunewright.pipeline.context import JobContext
from tunewright.pipeline.jobs import State
from tunewright.pipeline.workspace import Workspace

# The libraries' own words on a tmpfs without room: torch 2.14, safetensors 0.8.
FULL = [
    RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598"),
    Exception("Error while serializing: I/O error: No space left on device (os error 28)"),
    OSError(errno.ENOSPC, "No space left on device"),
]


def queue(workspace: Workspace, kind: str, spec: str = "{}") -> None:
    folder = workspace.home.jobs / "job-a-0001"
    folder.mkdir()
    (folder / "spec.json").write_text(spec, encoding="utf-8")
    workspace.store.execute(
        "INSERT INTO jobs(id, kind, state, needs_device, spec, created_at) VALUES (?,?,?,0,'{}',?)",
        "job-a-0001", kind, "queued", time.time(),
    )  # fmt: skip


@pytest.mark.parametrize("error", FULL, ids=["torch", "safetensors", "python"])
def test_a_full_disk_is_told_as_such_whichever_library_meets_it(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def stage(kind: str) -> Callable[[JobContext], dict[str, Any]]:
        def run(context: JobContext) -> dict[str, Any]:
            raise error

        return run

    queue(workspace, "export")
    monkeypatch.setattr(worker, "stage", stage)
    assert worker.run_job(workspace, "job-a-0001") == State.FAILED
    told = workspace.store.job("job-a-0001")["error"]
    assert told["code"] == "no_disk_space" and "resume_job(" in told["next"]


def test_weights_that_are_not_whole_are_told_as_such(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = save({"w": np.zeros(4, np.float32)})
    file = tmp_path / "adapter_model.safetensors"
    file.write_bytes(whole[:-4])

    def run(context: JobContext) -> dict[str, Any]:
        return dict(load_file(file))

    queue(workspace, "export")
    monkeypatch.setattr(worker, "stage", lambda kind: run)
    assert worker.run_job(workspace, "job-a-0001") == State.FAILED
    told = workspace.store.job("job-a-0001")["error"]
    assert told["code"] == "weights_damaged" and told["next"] == "list_artifacts()"


def test_a_job_whose_page_cannot_be_made_has_succeeded_all_the_same(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue(workspace, "finetune")
    monkeypatch.setattr(worker.rerun, "remember", lambda context: None)
    monkeypatch.setattr(worker, "stage", lambda kind: lambda context: {"adapter_id": "ad-gone-0000"})
    # A spec without arguments is none that a page can tell of.
    assert worker.run_job(workspace, "job-a-0001") == State.SUCCEEDED
    assert [event["code"] for event in workspace.store.events("job-a-0001", 9)][-2:] == ["succeeded", "no_report"]


def test_a_job_whose_spec_cannot_be_read_fails_with_a_word_of_it(workspace: Workspace) -> None:
    queue(workspace, "export", spec='{"allowed": [')
    assert worker.run_job(workspace, "job-a-0001", own_process=True) == State.FAILED
    assert workspace.store.job("job-a-0001")["error"]["what"].startswith("JSONDecodeError: ")
