"""A large source is cleaned by several processes: the same bytes as by one, and a kill leaves nothing running."""

import json
import os
import signal
import subprocess
import sys
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from tunewright.pipeline.data import pool
from tunewright.pipeline.data.prepare import prepare
from tunewright.pipeline.errors import Unavailable
from tunewright.pipeline.workspace import Workspace

PROGRAM = """
import sys
from tunewright.pipeline.data import pool
from tunewright.pipeline.data.prepare import prepare
from tunewright.pipeline.workspace import Workspace

if __name__ == "__main__":
    pool.SMALL_BYTES = 0
    def tell(done, total, message):
        print(message, flush=True)
        sys.stdin.readline()
    prepare(Workspace.open(sys.argv[1]), sys.argv[2], on_progress=tell)
    print("end", flush=True)
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Rows of several blocks, with every kind of thing that is counted."""
    path = tmp_path / "rows.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for i in range(12_000):
            row = {
                "instruction": f"Tell me about number {i}, please.",
                "output": f"It is {i}. " + f"word{i % 977} " * 40,
            }
            if i % 100 == 7:
                row["output"] = f"<p>Number {i}</p>"
            if i % 100 == 8:
                row = {"instruction": "Again?", "output": "Again."}
            if i % 100 == 9:
                row["output"] = f"{i}<|im_end|>\n<|im_start|>user\nmore"
            file.write(json.dumps(row) + "\n" if i % 1000 else "{broken\n")
    return path


def test_several_processes_make_the_same_bytes_as_one(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents: list[dict[str, Any]] = []
    for small in (10**12, 0):
        monkeypatch.setattr(pool, "SMALL_BYTES", small)
        dataset = prepare(Workspace.open(tmp_path / f"home{small}"), str(source))
        documents.append({key: value for key, value in dataset["document"].items() if key != "path"})
    assert documents[0] == documents[1]
    assert documents[0]["dropped"]["broken"]["count"] == 12
    assert documents[0]["mended"]["html"]["count"] == 120


@pytest.mark.parametrize("moment", (1, 2, 4, 6, 7))
def test_a_kill_at_any_step_leaves_no_dataset_and_no_process(tmp_path: Path, source: Path, moment: int) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM, encoding="utf-8")
    home = tmp_path / "home"
    with subprocess.Popen(
        [sys.executable, "-P", str(program), str(home), str(source)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, encoding="utf-8",
    ) as process:  # fmt: skip
        assert process.stdin and process.stdout
        told: list[str] = []
        for step in range(moment):
            told.append(process.stdout.readline().strip())
            if step < moment - 1:  # at the last it waits for an answer, and is killed waiting
                process.stdin.write("\n")
                process.stdin.flush()
        children = psutil.Process(process.pid).children(recursive=True) if told[-1] != "end" else []
        os.kill(process.pid, signal.SIGKILL)
        # The children hold its output open: it ends when the last of them has.
        process.stdout.read()
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive
    workspace = Workspace.open(home)
    visible = [entry.name for entry in workspace.home.datasets.iterdir() if not entry.name.startswith(".partial-")]
    known = [row["id"] for row in workspace.store.artifacts("dataset")]
    assert visible == known
    assert len(known) == ("end" in told)


def test_a_process_that_dies_is_said_and_leaves_nothing(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "SMALL_BYTES", 0)
    workspace = Workspace.open(tmp_path / "home")

    def kill_one(done: float, total: float, message: str) -> None:
        for child in psutil.Process().children():
            # One that was killed before may not have been waited for yet.
            with suppress(psutil.ZombieProcess, psutil.NoSuchProcess):
                if "spawn_main" in " ".join(child.cmdline()):
                    child.kill()

    with pytest.raises(Unavailable, match="process_died"):
        prepare(workspace, str(source), on_progress=kill_one)
    assert list(workspace.home.datasets.iterdir()) == []


def test_a_process_that_dies_while_a_block_is_sent_to_it_is_said(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Pool(ProcessPoolExecutor):
        """The thread that sends the blocks gives what it meets to the block's future."""

        def submit(self, *_: Any, **__: Any) -> Future[Any]:
            future: Future[Any] = Future()
            future.set_exception(BrokenPipeError(32, "Broken pipe"))
            return future

    monkeypatch.setattr(pool, "SMALL_BYTES", 0)
    monkeypatch.setattr(pool, "ProcessPoolExecutor", Pool)
    with pytest.raises(Unavailable, match="process_died"):
        prepare(Workspace.open(tmp_path / "home"), str(source))


def test_what_progress_raises_ends_the_processes(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "SMALL_BYTES", 0)
    before = set(psutil.Process().children())

    def stop(done: float, total: float, message: str) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        prepare(Workspace.open(tmp_path / "home"), str(source), on_progress=stop)
    _, alive = psutil.wait_procs(set(psutil.Process().children()) - before, timeout=10)
    # Python's own resource tracker stays for the next pool.
    assert not [child for child in alive if "resource_tracker" not in " ".join(child.cmdline())]
