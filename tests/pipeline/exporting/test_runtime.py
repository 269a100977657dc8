"""llama.cpp as a child: it keeps its output to itself, ends with its parent, and says why it fails."""

import contextlib
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tunewright.pipeline.errors import Cancelled, TunewrightError, Unavailable
from tunewright.pipeline.exporting.runtime import LlamaRuntime

HELLO = [{"role": "user", "content": "Hello"}]
USE = """
import sys
from pathlib import Path
from tunewright.pipeline.exporting.runtime import LlamaRuntime
with LlamaRuntime(Path(sys.argv[1]), log=Path(sys.argv[2])) as runtime:
    runtime.chat([{"role": "user", "content": "Hello"}], max_tokens=2)
    if len(sys.argv) > 3:
        import os, psutil, subprocess
        child = psutil.Process().children()[0].pid
        # Another child, of the kind that a worker starts while llama.cpp runs; it lives as long as the test wants.
        subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdout=subprocess.DEVNULL)
        os.write(1, f"{child}\\n".encode())
        os._exit(9)
"""


@pytest.fixture
def gguf(base_gguf: Callable[[str], Path]) -> Path:
    return base_gguf("f16")


def test_nothing_reaches_the_streams_of_who_uses_it(gguf: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    done = subprocess.run([sys.executable, "-P", "-c", USE, str(gguf), str(log)], capture_output=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert "slot" in log.read_text(encoding="utf-8", errors="replace")


def test_the_child_ends_when_its_parent_dies_without_a_word_though_another_child_lives(
    gguf: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-P", "-c", USE, str(gguf), str(tmp_path / "log"), "die"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert parent.wait(timeout=60) == 9
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
        pytest.raises(TunewrightError, match=r"cannot load not\.gguf: .*\w") as caught,
        LlamaRuntime(file, log=tmp_path / "log"),
    ):
        pass
    assert caught.value.code == "gguf_not_loadable"
    # Which of its lines comes last is llama.cpp's threads' affair.
    words = caught.value.what.partition(": ")[2].rstrip(".")
    assert words in (tmp_path / "log").read_text(encoding="utf-8")


def test_a_cancel_is_heard_while_the_model_loads(tmp_path: Path) -> None:
    def cancelled() -> None:
        raise Cancelled("job-x")

    # Reading it waits for somebody who writes.
    never = tmp_path / "never.gguf"
    os.mkfifo(never)
    with (
        pytest.raises(Cancelled),
        LlamaRuntime(never, log=tmp_path / "log", check_cancelled=cancelled),
    ):
        pass
    # Of a zombie that another test has left nothing is told but None.
    running = psutil.process_iter(["ppid", "cmdline"])
    own = [process.info["cmdline"] or [] for process in running if process.info["ppid"] == os.getpid()]
    assert not [command for command in own if "llama_server" in " ".join(command)]


def test_the_next_tokens_are_a_distribution_whatever_character_they_begin(gguf: Path, tmp_path: Path) -> None:
    with LlamaRuntime(gguf, log=tmp_path / "log") as runtime:
        ids = runtime.tokenize("The fox jumps over 13 dogs", add_special=False)
        for length in range(1, len(ids)):
            found = runtime.next_tokens(ids[:length], 4096)
            logprobs = [token["logprob"] for token in found if token["logprob"] is not None]
            assert len(logprobs) == len({token["id"] for token in found}) == 480
            assert sum(map(math.exp, logprobs)) == pytest.approx(1, abs=1e-4)
            assert logprobs == sorted(logprobs, reverse=True)


def test_choices_are_the_distributions_own_among_themselves(gguf: Path, tmp_path: Path) -> None:
    with LlamaRuntime(gguf, log=tmp_path / "log") as runtime:
        ids = runtime.tokenize("The fox jumps over 13 dogs", add_special=False)
        for length in (1, len(ids) - 1, len(ids)):
            whole = {token["id"]: token["logprob"] for token in runtime.next_tokens(ids[:length], 4096)}
            # Neither the likeliest nor in order.
            candidates = [sorted(whole)[place] for place in (300, 40, 35, 470)]
            among = math.log(sum(math.exp(whole[candidate] or 0.0) for candidate in candidates))
            expected = [(whole[candidate] or 0.0) - among for candidate in candidates]
            assert runtime.choices(ids[:length], candidates) == pytest.approx(expected, abs=2e-3)


def test_a_forced_token_is_given_and_an_end_ends_the_answer(gguf: Path, tmp_path: Path) -> None:
    with LlamaRuntime(gguf, log=tmp_path / "log") as runtime:
        assert runtime.answer([300, 301], max_tokens=3, forced=310)["tokens"] == [310] * 3
        assert runtime.answer([300, 301], max_tokens=3, forced=2) == {
            "text": "", "finish_reason": "stop", "tokens": [2],
        }  # fmt: skip
        assert runtime.eos_token() == "<|im_end|>"


def test_a_server_that_died_is_reported_as_such(gguf: Path, tmp_path: Path) -> None:
    with LlamaRuntime(gguf, log=tmp_path / "log") as runtime:
        alive = [c for c in psutil.Process().children() if c.status() != psutil.STATUS_ZOMBIE]
        (child,) = (c for c in alive if "llama_server" in " ".join(c.cmdline()))
        child.kill()
        child.wait(timeout=10)
        with pytest.raises(Unavailable, match="llama_cpp_stopped"):
            runtime.tokenize("x")
