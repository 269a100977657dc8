"""llama.cpp as a child: it keeps its output to itself, ends with its parent, and says why it fails."""

import contextlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from tunewright.pipeline.errors import TunewrightError, Unavailable
from tunewright.pipeline.exporting.runtime import LlamaRuntime

HELLO = [{"role": "user", "content": "Hello"}]
USE = """
import sys
from pathlib import Path
from tunewright.pipeline.exporting.runtime import LlamaRuntime
with LlamaRuntime(Path(sys.argv[1]), log=Path(sys.argv[2])) as runtime:
    runtime.chat([{"role": "user", "content": "Hello"}], max_tokens=2)
    if len(sys.argv) > 3:
        import os, psutil
        os.write(1, str(psutil.Process().children()[0].pid).encode())
        os._exit(9)
"""


@pytest.fixture
def gguf(exported: Any) -> Path:
    return exported.path("gguf:q8_0")


def test_nothing_reaches_the_streams_of_who_uses_it(gguf: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    done = subprocess.run([sys.executable, "-P", "-c", USE, str(gguf), str(log)], capture_output=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert "slot" in log.read_text(encoding="utf-8", errors="replace")


def test_the_child_ends_when_its_parent_dies_without_a_word(gguf: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-P", "-c", USE, str(gguf), str(tmp_path / "log"), "die"]
    child = int(subprocess.run(command, capture_output=True, timeout=60).stdout)
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(child).wait(timeout=10)
    assert not psutil.pid_exists(child)


def test_a_greedy_answer_is_the_same_twice_and_kept_to_its_limit(gguf: Path, tmp_path: Path) -> None:
    with LlamaRuntime(gguf, log=tmp_path / "log") as runtime:
        one, other = (runtime.chat(HELLO, max_tokens=8) for _ in range(2))
    assert one == other
    assert len(one["tokens"]) <= 8


def test_a_prompt_longer_than_the_context_is_an_error(gguf: Path, tmp_path: Path) -> None:
    with (
        LlamaRuntime(gguf, log=tmp_path / "log", n_ctx=256) as runtime,
        pytest.raises(TunewrightError, match="context"),
    ):
        runtime.chat([{"role": "user", "content": "word " * 3000}], max_tokens=4)


def test_a_file_that_is_no_gguf_is_refused_with_llama_cpps_own_words(tmp_path: Path) -> None:
    file = tmp_path / "not.gguf"
    file.write_bytes(b"not a model")
    with (
        pytest.raises(TunewrightError, match="model loading error") as caught,
        LlamaRuntime(file, log=tmp_path / "log"),
    ):
        pass
    assert caught.value.code == "gguf_not_loadable"


def test_a_server_that_died_is_reported_as_such(gguf: Path, tmp_path: Path) -> None:
    with LlamaRuntime(gguf, log=tmp_path / "log") as runtime:
        alive = [c for c in psutil.Process().children() if c.status() != psutil.STATUS_ZOMBIE]
        (child,) = (c for c in alive if "llama_server" in " ".join(c.cmdline()))
        child.kill()
        child.wait(timeout=10)
        with pytest.raises(Unavailable, match="llama_cpp_stopped"):
            runtime.tokenize("x")
