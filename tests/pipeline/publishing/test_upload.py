"""How contents get to the Hub: what is sent, what is not sent again, and what a kill, a drop and a cancel leave."""

import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from standins.hub_server import HubStandIn

from tunewright.pipeline.context import JobContext
from tunewright.pipeline.errors import Cancelled, Unavailable
from tunewright.pipeline.publishing import hub, upload
from tunewright.pipeline.store import Row
from tunewright.pipeline.workspace import Workspace

Submit = Callable[..., JobContext]
Eventually = Callable[..., None]
REPO = "tester/tuny"
SHARD_BYTES = 2_000_000
SHARDS = ("model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors", "model-00003-of-00003.safetensors")
RUN_JOB = """
import sys
from tunewright.pipeline.context import JobContext
from tunewright.pipeline.publishing import hub
from tunewright.pipeline.workspace import Workspace
hub.run(JobContext.of(Workspace.open(sys.argv[1]), sys.argv[2]))
"""
# huggingface_hub 1.33 uploads large files with an argument that httpx wants under another name.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")


@pytest.fixture
def server(hub_server: HubStandIn) -> HubStandIn:
    return hub_server


@pytest.fixture
def sharded(adapter: Row) -> Row:
    """An adapter with three shards of weights besides its own; no two bytes of them deduplicate."""
    folder = Path(adapter["document"]["path"])
    for name in SHARDS:
        (folder / name).write_bytes(os.urandom(SHARD_BYTES))
    return adapter


@pytest.fixture
def start(workspace: Workspace, tmp_path: Path) -> Iterator[Callable[[JobContext], "subprocess.Popen[bytes]"]]:
    """Starts a job in a process of its own, to be killed."""
    started: list[subprocess.Popen[bytes]] = []

    def start_job(context: JobContext, **env: str) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-P", "-c", RUN_JOB, str(workspace.home.root), context.job_id]
        with (tmp_path / "worker.log").open("wb") as log:
            environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), **env}
            started.append(subprocess.Popen(command, stdout=log, stderr=log, cwd=tmp_path, env=environment))
        return started[-1]

    yield start_job
    for process in started:
        process.kill()
        process.wait()


def kill(process: "subprocess.Popen[bytes]") -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()


def job(submit: Submit, artifact: Row, **spec: Any) -> JobContext:
    return submit("publish_hub", artifact_id=artifact["id"], repo_id=REPO, **spec)


def shards(server: HubStandIn) -> list[bytes]:
    return [server.repositories[REPO].files[name] for name in SHARDS]


def test_after_a_kill_in_the_middle_only_what_is_missing_is_sent(
    server: HubStandIn, submit: Submit, sharded: Row, start: Callable[..., Any], eventually: Eventually
) -> None:
    folder, context = Path(sharded["document"]["path"]), job(submit, sharded)
    last = hashlib.sha256((folder / SHARDS[2]).read_bytes()).hexdigest()
    server.stall = last
    process = start(context)
    eventually(lambda: server.stalled.is_set() and len(server.stored) == 3, timeout_s=60)
    kill(process)
    assert server.repositories[REPO].commits == []
    assert context.workspace.store.artifacts("publication") == []
    server.stall, server.received_bytes = None, 0
    hub.run(context)
    assert server.received_bytes == SHARD_BYTES
    assert shards(server) == [(folder / name).read_bytes() for name in SHARDS]


def test_after_a_kill_behind_the_commit_that_commit_is_taken_and_none_made(
    server: HubStandIn, submit: Submit, sharded: Row, start: Callable[..., Any], eventually: Eventually
) -> None:
    context = job(submit, sharded)
    server.stall = "/commit/"
    process = start(context)
    eventually(server.stalled.is_set, timeout_s=60)
    kill(process)
    repository, store = server.repositories[REPO], context.workspace.store
    assert (len(repository.commits), store.artifacts("publication")) == (1, [])
    server.stall, server.received_bytes = None, 0
    result = hub.run(context)
    assert (len(repository.commits), server.received_bytes) == (1, 0)
    assert result["commit"] == repository.sha
    # And a third time, as if killed behind the row.
    assert hub.run(context) == result
    assert [row["id"] for row in store.artifacts("publication")] == [result["publication_id"]]


def test_a_connection_that_breaks_off_is_taken_up_again(server: HubStandIn, submit: Submit, sharded: Row) -> None:
    # Each of the files once.
    server.drops = 4
    hub.run(job(submit, sharded))
    folder = Path(sharded["document"]["path"])
    assert shards(server) == [(folder / name).read_bytes() for name in SHARDS]
    assert server.received_bytes > 4.5 * SHARD_BYTES


def test_the_same_content_in_two_places_is_sent_once(server: HubStandIn, submit: Submit, sharded: Row) -> None:
    folder = Path(sharded["document"]["path"])
    (folder / SHARDS[1]).write_bytes((folder / SHARDS[0]).read_bytes())
    hub.run(job(submit, sharded))
    assert shards(server) == [(folder / name).read_bytes() for name in SHARDS]
    assert server.received_bytes == 2 * SHARD_BYTES + (folder / "adapter_model.safetensors").stat().st_size


def test_large_files_go_in_the_parts_that_the_hub_asks_for(server: HubStandIn, submit: Submit, sharded: Row) -> None:
    server.part_bytes = 600_000
    hub.run(job(submit, sharded))
    folder = Path(sharded["document"]["path"])
    assert shards(server) == [(folder / name).read_bytes() for name in SHARDS]
    assert sum(request.startswith("PUT /lfs-part/") for request in server.requests) == 12


def test_a_cancel_during_the_upload_stops_it_and_commits_nothing(
    workspace: Workspace, server: HubStandIn, submit: Submit, sharded: Row, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In parts, so that nothing of it waits in the kernel; twelve seconds for each shard, were it not stopped.
    server.part_bytes, server.pace_s = 50_000, 0.3
    context = job(submit, sharded)
    tell = context.progress

    def cancel_once_sending(phase: str, *numbers: float) -> None:
        tell(phase, *numbers)
        if phase == "uploading" and numbers[0] > 0:
            workspace.store.execute("UPDATE jobs SET cancel='keep' WHERE id=?", context.job_id)

    monkeypatch.setattr(context, "progress", cancel_once_sending)
    with pytest.raises(Cancelled):
        hub.run(context)
    assert server.repositories[REPO].commits == []
    assert server.received_bytes < SHARD_BYTES


def test_progress_is_told_in_bytes_up_to_all_of_them(
    server: HubStandIn, submit: Submit, sharded: Row, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upload, "POLL_S", 0.01)
    server.part_bytes, server.pace_s = 100_000, 0.005
    context = job(submit, sharded)
    told: list[tuple[float, float]] = []
    tell = context.progress

    def listen(phase: str, *numbers: float) -> None:
        tell(phase, *numbers)
        if phase == "uploading":
            told.append((numbers[0], numbers[1]))

    monkeypatch.setattr(context, "progress", listen)
    result = hub.run(context)
    sent = [done for done, _ in told]
    assert sent == sorted(sent)
    assert {total for _, total in told} == {sum(file["bytes"] for file in result["files"])}
    assert len({done for done in sent if 0 < done < 3 * SHARD_BYTES}) > 5


# Xet: the real client of huggingface_hub's large files, which takes a folder for a server of chunks


@pytest.fixture
def large(adapter: Row) -> Path:
    """Weights that are sent ahead of the commit."""
    file = Path(adapter["document"]["path"]) / "model.safetensors"
    file.write_bytes(os.urandom(upload.SENT_AHEAD_BYTES))
    return file


def chunk_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in (folder / "xet" / "xorbs" / "xorbs").glob("default.*"))


def test_by_xet_a_killed_upload_goes_on_without_sending_its_chunks_again(
    server: HubStandIn,
    submit: Submit,
    adapter: Row,
    large: Path,
    tmp_path: Path,
    start: Callable[..., Any],
    eventually: Eventually,
) -> None:
    chunks = server.xet = tmp_path / "chunks"
    chunks.mkdir()
    context = job(submit, adapter)
    server.stall = "/preupload/"
    process = start(context)
    eventually(server.stalled.is_set, timeout_s=60)
    kill(process)
    sent = chunk_bytes(chunks)
    assert sent >= upload.SENT_AHEAD_BYTES
    server.stall = None
    assert start(context).wait(60) == 0
    repository = server.repositories[REPO]
    assert (len(repository.commits), server.received_bytes) == (1, 0)
    assert repository.large["model.safetensors"] == hashlib.sha256(large.read_bytes()).hexdigest()
    # The small adapter came with the commit.
    assert sent < chunk_bytes(chunks) < sent + 100_000
    assert len(context.workspace.store.artifacts("publication")) == 1


def test_by_xet_a_cancel_stops_the_upload_and_commits_nothing(
    server: HubStandIn,
    submit: Submit,
    adapter: Row,
    large: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cancel_at: Callable[[JobContext, str], None],
) -> None:
    # Where Xet's client keeps its log.
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    server.xet = tmp_path
    context = job(submit, adapter)
    cancel_at(context, "uploading")
    with pytest.raises(Cancelled):
        hub.run(context)
    assert server.repositories[REPO].commits == []
    assert "POST /api/models/tester/tuny/preupload/main" not in server.requests


def test_a_hub_without_room_is_told_of_before_anything_is_sent_by_xet(
    server: HubStandIn, submit: Submit, adapter: Row, large: Path, tmp_path: Path
) -> None:
    server.xet, server.refuse_write = tmp_path, (403, "Private repository storage limit reached")
    with pytest.raises(Unavailable, match=r"hub_storage_full: .*storage limit reached"):
        hub.run(job(submit, adapter))
    assert list(tmp_path.glob("xet/*")) == []
