"""What holds the project together: who may import whom, what the server leaves alone, what a release holds."""

import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from shutil import copytree, ignore_patterns

import pytest

REPOSITORY = Path(__file__).parents[1]
PACKAGED = ("tools", "resources", "pipeline", "examples")
HEAVY = (
    "torch", "unsloth", "transformers", "datasets", "trl", "peft", "pyarrow", "huggingface_hub", "ollama",
    "matplotlib", "xllamacpp", "bitsandbytes",
)  # fmt: skip
BUILD_TIMEOUT_S = 120

# Prints which of the heavy packages are there once the server of the home argv[1] is built.
BUILD_SERVER = """
import sys
from tunewright.pipeline.workspace import Workspace
from tunewright.server import build_server
build_server(Workspace.open(sys.argv[1]))
print(*(name for name in sys.argv[2:] if name in sys.modules))
"""
# Tries every module of the light half: the whole pipeline but what its docstrings call heavy.
IMPORT_ALL = """
import importlib, sys
for name in sys.argv[2:]:
    importlib.import_module(name)
print(*(name for name in sys.argv[1].split(",") if name in sys.modules))
"""


def test_imports_go_one_way() -> None:
    script = Path(sys.executable).with_name("lint-imports")
    finished = subprocess.run(
        [script, "--no-cache"], cwd=REPOSITORY, capture_output=True, encoding="utf-8", timeout=BUILD_TIMEOUT_S
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "0 broken" in finished.stdout


def test_building_the_server_imports_nothing_heavy(run_python: Callable[..., str], tmp_path: Path) -> None:
    assert run_python(BUILD_SERVER, tmp_path / "home", *HEAVY).split() == []


def test_the_light_modules_import_nothing_heavy(run_python: Callable[..., str]) -> None:
    light = [f"tunewright.pipeline.{path.stem}" for path in (REPOSITORY / "pipeline").glob("*.py")]
    light = [name for name in light if not name.endswith((".__init__", ".backend"))]
    light += [f"tunewright.pipeline.chat.{name}" for name in ("client", "protocol", "host")]
    light += [f"tunewright.pipeline.training.{name}" for name in ("request", "arguments", "checkpoints")]
    heavy = ",".join(("torch", "unsloth", "transformers", "datasets", "trl", "peft"))
    assert run_python(IMPORT_ALL, heavy, *light).split() == []


def test_the_root_holds_one_module() -> None:
    # Each *.py and __init__.py here would be a part of the package `tunewright`.
    assert [path.name for path in REPOSITORY.glob("*.py")] == ["server.py"]


def source_files() -> set[str]:
    found = {"tunewright/server.py"}
    for folder in PACKAGED:
        for path in (REPOSITORY / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                found.add(f"tunewright/{path.relative_to(REPOSITORY).as_posix()}")
    return found


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The names in a wheel built from a copy of the tree."""
    folder = tmp_path_factory.mktemp("wheel")
    hidden = ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist")
    copytree(REPOSITORY, folder / "tree", ignore=hidden, symlinks=True)
    finished = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder / "dist", folder / "tree"],
        capture_output=True, encoding="utf-8", timeout=BUILD_TIMEOUT_S, env={**os.environ, "PIP_NO_INDEX": "1"},
    )  # fmt: skip
    assert finished.returncode == 0, finished.stdout + finished.stderr
    [file] = (folder / "dist").glob("*.whl")
    with zipfile.ZipFile(file) as opened:
        return {name for name in opened.namelist() if not name.endswith("/")}


def test_the_wheel_holds_every_file_of_the_package_and_nothing_else(wheel: set[str]) -> None:
    package = {name for name in wheel if ".dist-info/" not in name}
    assert package == source_files()
    assert {"tunewright/pipeline/toy/chat_template.jinja", "tunewright/examples/data/lumen_support.jsonl"} <= package


def test_the_wheel_brings_its_command_and_its_licence(wheel: set[str]) -> None:
    about = {name.split(".dist-info/")[1] for name in wheel if ".dist-info/" in name}
    assert {"METADATA", "entry_points.txt", "licenses/LICENSE"} <= about
