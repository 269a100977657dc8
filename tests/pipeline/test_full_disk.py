"""A data home on a disk without room, a small one of its own: what is stored is read, and nothing else is promised."""

import errno
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from mcp import Client
from standins.http_process import COMMAND

from tunewright.pipeline import jobs, lease, processes
from tunewright.pipeline import store as store_module
from tunewright.pipeline.errors import NoSpace, Unavailable
from tunewright.pipeline.store import Store
from tunewright.pipeline.workspace import Workspace
from tunewright.server import build_server
from tunewright.tools.http_access import ensure_token


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A home with one dataset, whose store nobody has open, on a disk of 2 MB with room."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = (
        sys.platform == "linux"
        and not subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], capture_output=True, check=False
        ).returncode
    )
    if not mounted:
        pytest.skip("may not mount a small disk")
    try:
        workspace = Workspace.open(disk / "home")
        workspace.store.add_artifact("ds-a-0001", "dataset", "a", {"rows": 3}, parents=[])
        workspace.store.close()
        # SQLite's two further files are gone with its last user: making them anew takes room.
        assert not (disk / "home" / "tunewright.db-shm").exists()
        yield disk / "home"
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def fill(home: Path) -> Path:
    """Fills the disk to its last byte; returns the file that does."""
    filler = home.with_name("filler")
    descriptor = os.open(filler, os.O_CREAT | os.O_WRONLY)
    try:
        while True:
            os.write(descriptor, bytes(4096))
    except OSError:
        return filler
    finally:
        os.close(descriptor)


def test_what_is_stored_is_read_and_a_change_is_refused_until_there_is_room(home: Path) -> None:
    filler = fill(home)
    store = Workspace.open(home).store
    assert store.artifact("ds-a-0001")["document"] == {"rows": 3}
    with pytest.raises(NoSpace, match=r"^no_disk_space: .*is full.* Next: list_artifacts\(\)\. Nothing was changed\."):
        store.add_event("job-1", "info", "x", "text")
    assert store.events("job-1") == []
    filler.unlink()
    store.add_event("job-1", "info", "x", "text")
    assert [event["message"] for event in store.events("job-1")] == ["text"]
    store.close()


def test_a_disk_that_fills_up_meanwhile_undoes_the_whole_change(home: Path) -> None:
    store = Workspace.open(home).store
    store.add_event("job-1", "info", "x", "before")
    filler = fill(home)
    with pytest.raises(NoSpace, match=r"^no_disk_space: "), store.transaction() as db:
        for number in range(2000):
            row = ("job-1", 0.0, "info", "y", f"{number} {'x' * 1000}")
            db.execute("INSERT INTO events(job_id, at, level, code, message) VALUES (?,?,?,?,?)", row)
    assert [event["message"] for event in store.events("job-1")] == ["before"]
    filler.unlink()
    store.add_event("job-1", "info", "x", "after")
    assert len(store.events("job-1")) == 2
    store.close()


def test_what_a_killed_server_left_in_the_log_is_never_overlooked(home: Path) -> None:
    code = (
        "import os, sys; from tunewright.pipeline.workspace import Workspace; "
        "Workspace.open(sys.argv[1]).store.add_event('job-1', 'info', 'x', 'in the log'); os._exit(9)"
    )
    subprocess.run([sys.executable, "-P", "-c", code, str(home)], check=False)
    # As after a restart of the machine, which empties no log but may leave the other file out.
    (home / "tunewright.db-shm").unlink()
    filler = fill(home)
    with pytest.raises(sqlite3.OperationalError):
        Workspace.open(home)
    filler.unlink()
    store = Workspace.open(home).store
    assert [event["message"] for event in store.events("job-1")] == ["in the log"]
    store.close()


@pytest.mark.anyio
async def test_a_server_starts_on_it_and_answers(home: Path, tmp_path: Path) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_text('{"prompt": "Hi", "response": "Hello"}\n' * 20, encoding="utf-8")
    fill(home)
    workspace = Workspace.open(home)
    async with Client(build_server(workspace)) as client:
        for tool in ("get_status", "list_artifacts", "check_environment", "list_models"):
            assert not (await client.call_tool(tool, {})).is_error, tool
        refused = await client.call_tool("prepare_dataset", {"source": str(source), "dedupe": False})
    assert refused.is_error
    assert refused.content[0].text.startswith("no_disk_space: ")  # type: ignore[union-attr]
    workspace.store.close()


@pytest.mark.anyio
async def test_a_job_whose_worker_died_of_it_is_told_as_such_and_what_is_deleted_makes_room(home: Path) -> None:
    workspace = Workspace.open(home)
    spare = home / "datasets" / "ds-a-0001"
    spare.mkdir()
    (spare / "train.parquet").write_bytes(bytes(300_000))
    job = jobs.submit(workspace, "export", "a", {}, needs_device=True)
    psutil.Process(job["pid"]).kill()
    jobs.log_path(workspace, job["id"]).write_text("OperationalError: database or disk is full\n", encoding="utf-8")
    filler = fill(home)
    assert psutil.Process(job["pid"]).wait(timeout=20) is not None
    async with Client(build_server(workspace)) as client:
        for given in ({}, {"job_id": job["id"]}):
            told = (await client.call_tool("get_status", given)).structured_content or {}
            assert told["problem"].startswith("A job's worker has ended. The disk of "), told
        freed = await client.call_tool("delete_artifact", {"artifact_id": "ds-a-0001", "confirm": True})
        assert freed.structured_content and freed.structured_content["freed_bytes"] >= 300_000
    assert not spare.exists() and workspace.store.artifacts("dataset") == []
    filler.unlink()
    jobs.reconcile(workspace)
    events = {event["code"]: event["message"] for event in workspace.store.events(job["id"])}
    assert "its disk was full" in events["interrupted"]
    jobs.cancel(workspace, job["id"])
    workspace.store.close()


def test_on_http_a_token_that_cannot_be_kept_is_an_error_with_the_next_step(home: Path) -> None:
    fill(home)
    with pytest.raises(Unavailable, match=r"^no_token_file: .*No space left on device.* Next: tunewright --home DIR"):
        ensure_token(Workspace.open(home).home)
    assert not list(home.glob("http-token"))
    arguments = ["--home", str(home), "serve", "--http", "--port", "0"]
    ended = subprocess.run([*COMMAND, *arguments], capture_output=True, encoding="utf-8", check=False)
    assert ended.returncode == 1
    assert "no_token_file: " in ended.stderr and "Traceback" not in ended.stderr


def test_a_home_of_an_earlier_version_is_not_served_half_migrated(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filler = fill(home)
    newer = [*store_module.MIGRATIONS, "ALTER TABLE artifacts ADD COLUMN note TEXT;\n"]
    monkeypatch.setattr(store_module, "MIGRATIONS", newer)
    with pytest.raises((NoSpace, sqlite3.OperationalError)):
        Store(home / "tunewright.db")
    filler.unlink()
    store = Store(home / "tunewright.db")
    assert store.artifact("ds-a-0001")["note"] is None
    store.close()


def test_a_job_whose_worker_could_not_be_started_for_want_of_room_is_queued_and_begins_when_there_is_some(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(*_: object, **__: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(processes, "start_detached", no_room)
        job = jobs.submit(workspace, "export", "a", {}, needs_device=True)
        assert (job["state"], job["pid"]) == ("queued", None)
        with pytest.raises(NoSpace, match=f"{job['id']} cannot be started"):
            jobs.reconcile(workspace)
    (device,) = lease.devices()
    lock = lease.try_take(workspace, device)
    assert lock is not None
    try:
        assert jobs.reconcile(workspace) == [job["id"]]
        begun = workspace.store.job(job["id"])
        assert jobs.is_worker_alive(begun) and begun["restarts"] == 0
        assert "interrupted" not in [event["code"] for event in workspace.store.events(job["id"])]
        psutil.Process(begun["pid"]).kill()
    finally:
        lock.release()


def test_a_job_that_cannot_begin_at_all_does_not_keep_others_from_being_looked_at(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> int:
        raise PermissionError("no more processes")

    workspace.store.add_job("job-a-0001", "export", "queued", {}, needs_device=True)
    (workspace.home.jobs / "job-a-0001").mkdir()
    monkeypatch.setattr(processes, "start_detached", refused)
    for _ in range(jobs.MAX_RESTARTS):
        with pytest.raises(PermissionError):
            jobs.reconcile(workspace)
    jobs.reconcile(workspace)
    assert workspace.store.job("job-a-0001")["state"] == "interrupted"
    assert jobs.reconcile(workspace) == []
