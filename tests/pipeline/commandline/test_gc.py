"""Deleting what nothing can use, and nothing else."""

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tunewright.pipeline import jobs
from tunewright.pipeline.workspace import Workspace

Tunewright = Callable[..., subprocess.CompletedProcess[str]]
Job = Callable[..., str]
DEAD_PID = 2**22 + 1
HOUR_S = 3600


@pytest.fixture
def home(workspace: Workspace) -> list[str]:
    return ["--home", str(workspace.home.root)]


def folder(path: Path, age_s: float = HOUR_S) -> Path:
    """A folder with a kilobyte in it, last changed so long ago."""
    path.mkdir(parents=True)
    (path / "content").write_bytes(bytes(1000))
    changed = time.time() - age_s
    for each in (path / "content", path):
        os.utime(each, (changed, changed))
    return path


def listed(workspace: Workspace, kind: str, name: str, **document: str) -> None:
    workspace.store.add_artifact(name, kind, "numbers", document, parents=[])


def left(workspace: Workspace) -> set[str]:
    root = workspace.home.root
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_dir()} - {
        "datasets", "jobs", "adapters", "exports", "models", "cache"
    }  # fmt: skip


def test_half_made_things_go_where_their_writer_is_gone(
    tunewright: Tunewright, workspace: Workspace, job: Job, home: list[str]
) -> None:
    running, interrupted, cancelled = job("running"), job("interrupted"), job("cancelled")
    at = workspace.home
    kept = [
        folder(at.datasets / f".partial-{os.getpid()}-ds-a", 1),
        folder(at.exports / f".partial-{running}-ex-a", 90_000),
        folder(at.exports / f".partial-{interrupted}-ex-b"),
        folder(at.cache / ".partial-k3j4h5"),
    ]
    gone = [
        folder(at.datasets / f".partial-{DEAD_PID}-ds-b", 1),
        folder(at.exports / f".partial-{cancelled}-ex-c"),
        folder(at.exports / ".partial-job-deleted-0000-ex-d"),
        folder(at.adapters / ".partial-deleted-ad-a", 1),
        folder(at.cache / ".partial-x9y8z7", 90_000),
    ]
    shown = tunewright("gc", "--dry-run", *home)
    assert shown.stdout.endswith("Would free 5.0 kB.\n")
    assert all(str(path) in shown.stdout for path in gone)
    assert not any(str(path) in shown.stdout for path in kept)
    assert all(path.exists() for path in (*gone, *kept))
    done = tunewright("gc", *home)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("Freed 5.0 kB.\n")
    assert not any(path.exists() for path in gone)
    assert all(path.exists() for path in kept)
    assert tunewright("gc", *home).stdout == "Freed 0 B.\n"


def test_what_no_row_lists_goes_and_what_is_listed_or_named_stays(
    tunewright: Tunewright, workspace: Workspace, job: Job, home: list[str]
) -> None:
    at = workspace.home
    listed(workspace, "adapter", "ad-listed-0001", base_path=str(at.exports / "ex-base-0001" / "merged"))
    listed(workspace, "export", "ex-listed-0001")
    job("interrupted", age_s=2 * HOUR_S, spec={"adapter_id": "ad-worked-0001"})
    for kept in ("adapters/ad-listed-0001", "adapters/ad-worked-0001", "exports/ex-listed-0001", "exports/ex-base-0001",
                 "adapters/somebody-elses", "datasets/ds-unlisted-0001"):  # fmt: skip
        folder(at.root / kept, 3 * HOUR_S)
    # Made since the oldest job that may be about to list it began.
    folder(at.adapters / "ad-justmade-0001", HOUR_S)
    gone = [folder(at.adapters / "ad-lost-0001", 3 * HOUR_S), folder(at.exports / "ex-lost-0001", 3 * HOUR_S)]
    before = left(workspace)
    assert tunewright("gc", *home).returncode == 0
    assert before - left(workspace) == {str(path.relative_to(at.root)) for path in gone}


def test_a_database_that_lists_none_is_not_believed(
    tunewright: Tunewright, workspace: Workspace, home: list[str]
) -> None:
    kept = folder(workspace.home.adapters / "ad-numbers-0001")
    listed(workspace, "export", "ex-numbers-0001")
    assert tunewright("gc", *home).stdout == "Freed 0 B.\n"
    assert kept.exists()


def test_a_damaged_database_deletes_nothing(tunewright: Tunewright, workspace: Workspace, home: list[str]) -> None:
    kept = folder(workspace.home.adapters / "ad-lost-0001")
    partial = folder(workspace.home.exports / f".partial-{DEAD_PID}-ex-a")
    workspace.store.close()
    workspace.home.database.write_bytes(b"no database " * 1000)
    refused = tunewright("gc", *home)
    assert refused.returncode == 1
    assert refused.stderr.startswith("home_unusable: ")
    assert kept.exists()
    assert partial.exists()


def test_checkpoints_go_only_where_no_resume_could_want_them(
    tunewright: Tunewright, workspace: Workspace, job: Job, home: list[str]
) -> None:
    day_s = 86400
    states = ("running", "queued", "interrupted", "succeeded", "failed", "cancelled")
    made = {state: job(state, age_s=3 * day_s) for state in states}
    deleted = job("failed", age_s=day_s)
    workspace.store.add_event(deleted, "warning", jobs.INPUT_DELETED, "ds-x was deleted.")
    recent = job("cancelled", age_s=day_s)
    for job_id in (*made.values(), deleted, recent):
        folder(workspace.home.jobs / job_id / "checkpoints" / "checkpoint-8")

    def with_checkpoints() -> set[str]:
        return {path.parent.name for path in workspace.home.jobs.glob("*/checkpoints")}

    assert tunewright("gc", *home).returncode == 0
    assert with_checkpoints() == {*made.values(), recent} - {made["succeeded"]}
    assert tunewright("gc", "--older-than", 2, *home).returncode == 0
    assert with_checkpoints() == {made["running"], made["queued"], made["interrupted"], recent}
    assert tunewright("gc", "--older-than", 0, *home).returncode == 0
    assert with_checkpoints() == {made["running"], made["queued"], made["interrupted"]}
    for wrong in (-1, "x", 1.5):
        refused = tunewright("gc", "--older-than", wrong, *home)
        assert refused.returncode == 2 and "is no whole number from 0 on" in refused.stderr


def test_caches_go_by_age_alone_and_never_under_a_job(
    tunewright: Tunewright, workspace: Workspace, job: Job, home: list[str], tmp_path: Path
) -> None:
    old = folder(workspace.home.cache / "documents", 10 * 86400)
    shared = folder(tmp_path / "cache" / "llama.cpp-old", 10 * 86400)
    young = folder(tmp_path / "cache" / "llama.cpp-new", 86400)
    assert tunewright("gc", *home).returncode == 0
    running = job("running")
    assert tunewright("gc", "--older-than", 5, *home).returncode == 0
    assert all(path.exists() for path in (old, shared, young))
    workspace.store.execute("UPDATE jobs SET state='succeeded' WHERE id=?", running)
    done = tunewright("gc", "--older-than", 5, *home)
    assert done.returncode == 0
    assert not old.exists()
    assert not shared.exists()
    assert young.exists()
