"""What every test may ask for: a workspace, the toy with and without its weights, another Python, waiting."""

import gc
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest

from tunewright.pipeline import processes, toy
from tunewright.pipeline.settings import Home
from tunewright.pipeline.workspace import Workspace

REPOSITORY = Path(__file__).parents[1]
CALLERS_OLLAMA_HOST = os.environ.get("OLLAMA_HOST")
CORES = os.cpu_count() or 1
WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
TOY_TIMEOUT_S = 600
PYTHON_TIMEOUT_S = 120
POLL_S = 0.02

Eventually = Callable[..., None]
RunPython = Callable[..., str]


def pytest_configure() -> None:
    """A worker of xdist, and whatever it starts, computes on its share of the cores; tests' own files may be read."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # A shell's background jobs ignore Ctrl-C, and so would every program that a test starts and interrupts.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    folders = (tempfile.gettempdir(), REPOSITORY, REPOSITORY.parent / "shared")
    os.environ["TUNEWRIGHT_ALLOW_DIRS"] = os.pathsep.join(map(str, folders))
    if WORKERS > 1:
        # PyTorch reads it when it is imported: with as many threads as cores in each worker they wait for each other.
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, CORES // WORKERS)))


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What is imported and collected lives to the end: half a million objects that no search for garbage need visit.

    Each search took a third of a second among them, and the engine and the exports ask for many.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture(autouse=True)
def no_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the Hub, nor an Ollama server, nor a GPU, whatever this machine has; a test that wants one says so."""
    # Not HF_HUB_OFFLINE: the Hub's client reads it once, at import, and some tests talk to a Hub of their own.
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OLLAMA_HOST", "127.0.0.1:9")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.fixture(scope="session", autouse=True)
def no_process_outlives_the_tests() -> Iterator[None]:
    """The workers and chat hosts that tests had started from their own process: killed where they live, waited for."""
    yield
    for child in processes._children:
        child.kill()
        child.wait()


@pytest.fixture
def real_ollama(no_outside: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Ollama server that the caller's OLLAMA_HOST names; skips where it names none."""
    if not CALLERS_OLLAMA_HOST:
        pytest.skip("OLLAMA_HOST names no real server")
    monkeypatch.setenv("OLLAMA_HOST", CALLERS_OLLAMA_HOST)


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    opened = Workspace.open(tmp_path / "home")
    yield opened
    opened.store.close()


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of this run that every worker of xdist sees: for what is too dear to be made in each of them."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if WORKERS > 1 else own


@pytest.fixture(scope="session")
def toy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy's tokenizer, template and config, without weights: made in a moment."""
    return toy.prepare(Home.open(tmp_path_factory.mktemp("toy")))


@pytest.fixture(scope="session")
def trained_toy() -> Path:
    """The toy's folder with weights. Trained once per clone (about a minute) and kept under `.cache/`.

    On all cores, as the other workers of xdist wait for it too: a lock in `weights.ensure` lets one of them train.
    """
    home = Home.open(REPOSITORY / ".cache" / "test-home")
    if not toy.is_trained(home):
        code = (
            "import sys; from tunewright.pipeline.settings import Home; from tunewright.pipeline.toy import weights; "
            "weights.ensure(Home.open(sys.argv[1]), lambda done, total: None)"
        )
        command = [sys.executable, "-P", "-c", code, str(home.root)]
        # Threads that spin while they wait would take the cores from whatever else runs: five times as long was seen.
        environment = os.environ | {"OMP_NUM_THREADS": str(CORES), "OMP_WAIT_POLICY": "PASSIVE"}
        subprocess.run(command, check=True, timeout=TOY_TIMEOUT_S, stdout=subprocess.DEVNULL, env=environment)
    return toy.folder(home)


@pytest.fixture
def toy_workspace(workspace: Workspace, trained_toy: Path) -> Workspace:
    """A workspace whose home has the trained toy."""

    def link_or_copy(source: str, target: str) -> None:
        try:
            os.link(source, target)
        except OSError:  # another disk
            shutil.copyfile(source, target)

    shutil.copytree(trained_toy, toy.folder(workspace.home), copy_function=link_or_copy)
    return workspace


@pytest.fixture
def eventually() -> Eventually:
    """`eventually(condition, timeout_s=20)` returns as soon as `condition()` is true and fails when it never is."""

    def wait(condition: Callable[[], object], timeout_s: float = 20) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                pytest.fail(f"not within {timeout_s} s")
            time.sleep(POLL_S)

    return wait


@pytest.fixture
def run_python(tmp_path: Path) -> RunPython:
    """`run_python(code, *arguments, **env)`: what `code` prints in a Python of its own, started as workers are."""

    def run(code: str, *arguments: object, **env: str) -> str:
        finished = subprocess.run(
            [sys.executable, "-P", "-c", code, *map(str, arguments)],
            capture_output=True, encoding="utf-8", timeout=PYTHON_TIMEOUT_S, cwd=tmp_path,
            env={**os.environ, "HF_HOME": str(tmp_path / "hf"), **env},
        )  # fmt: skip
        assert finished.returncode == 0, finished.stderr
        return finished.stdout

    return run
