"""What stands in a build's way. That it works is shown by the `quantizer` fixture, which builds one where none is."""

import os
import stat
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tunewright.pipeline.errors import Cancelled, Unavailable
from tunewright.pipeline.exporting import quantizer_build

CMAKELISTS = """
cmake_minimum_required(VERSION 3.14)
project(small C CXX)
add_executable(llama-quantize main.cpp)
set_target_properties(llama-quantize PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
"""
# Says what a quantizer of ours must know.
MAIN = """
#include <cstdio>
int main() { std::puts("F16 BF16 Q8_0 Q6_K Q5_K_M Q4_K_M Q4_K_S Q4_0 Q3_K_M"); return 1; }
"""


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small project with a program of that name: what is built is not the matter here, but how."""
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.delenv("CXX", raising=False)
    folder = tmp_path / "cache" / "sources"
    folder.mkdir(parents=True)
    (folder / "CMakeLists.txt").write_text(CMAKELISTS, encoding="utf-8")
    (folder / "main.cpp").write_text(MAIN, encoding="utf-8")
    return folder


@pytest.fixture
def build(sources: Path, tmp_path: Path) -> Callable[..., list[tuple[str, float, float]]]:
    def run(check_cancelled: Callable[[], None] = lambda: None) -> list[tuple[str, float, float]]:
        told: list[tuple[str, float, float]] = []
        quantizer_build.build(
            sources, sources / "bin" / "llama-quantize", tmp_path / "build.log", check_cancelled,
            lambda *step: told.append(step),
        )  # fmt: skip
        return told

    return run


def left(sources: Path) -> list[str]:
    return sorted(str(path.relative_to(sources.parent)) for path in sources.parent.rglob("*") if path.is_file())


def test_a_build_leaves_the_program_and_nothing_else(build: Callable[..., object], sources: Path) -> None:
    build()
    assert left(sources) == ["sources/CMakeLists.txt", "sources/bin/llama-quantize", "sources/main.cpp"]
    assert (sources / "bin" / "llama-quantize").stat().st_mode & stat.S_IXUSR
    assert [path.name for path in sources.parent.iterdir()] == ["sources"]


def test_what_is_no_quantizer_is_not_put_in_its_place(build: Callable[..., object], sources: Path) -> None:
    (sources / "main.cpp").write_text("int main() { return 0; }\n", encoding="utf-8")
    with pytest.raises(Unavailable, match="what was built failed"):
        build()
    assert left(sources) == ["sources/CMakeLists.txt", "sources/main.cpp"]


def test_a_compilation_that_fails_says_what_works_without_and_the_next_begins_anew(
    build: Callable[..., object], sources: Path
) -> None:
    (sources / "main.cpp").write_text("int main( {\n", encoding="utf-8")
    with pytest.raises(Unavailable) as caught:
        build()
    assert caught.value.code == "no_quantizer" and "ninja failed" in caught.value.what
    assert "q8_0" in caught.value.allowed
    assert left(sources) == ["sources/CMakeLists.txt", "sources/main.cpp"]
    (sources / "main.cpp").write_text(MAIN, encoding="utf-8")
    build()
    assert (sources / "bin" / "llama-quantize").is_file()


def test_a_cancel_ends_the_build_with_its_compilers_and_leaves_nothing(
    build: Callable[..., object], sources: Path, tmp_path: Path, eventually: Callable[..., None]
) -> None:
    # A compilation without end.
    pid_file = tmp_path / "pid"
    (tmp_path / "compile.sh").write_text(f"echo $$ > {pid_file}; exec sleep 600\n", encoding="utf-8")
    command = f"add_custom_command(OUTPUT main.cpp COMMAND sh {tmp_path}/compile.sh)\n"
    (sources / "CMakeLists.txt").write_text(CMAKELISTS.replace("add_exe", command + "add_exe"), encoding="utf-8")
    (sources / "main.cpp").unlink()

    def cancelled() -> None:
        if pid_file.is_file() and pid_file.read_text(encoding="utf-8"):
            raise Cancelled("job-x")

    with pytest.raises(Cancelled):
        build(cancelled)
    pid = int(pid_file.read_text(encoding="utf-8"))
    eventually(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    assert [path.name for path in sources.parent.iterdir()] == ["sources"]


def test_without_a_compiler_the_error_says_how_to_get_one_and_what_works(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    quantizer_build.require_compiler()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unavailable) as caught:
        quantizer_build.require_compiler()
    assert "apt-get install" in caught.value.allowed and "gguf:q8_0" in caught.value.allowed
    assert "q4_k_m" in caught.value.allowed


def test_the_compilers_that_the_environment_names_are_the_ones_looked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CXX", str(tmp_path / "missing"))
    assert not quantizer_build.has_compiler()
    monkeypatch.setenv("CXX", "/bin/sh -c")
    assert quantizer_build.has_compiler()


def test_cmake_and_ninja_come_from_the_index_where_path_has_none(
    build: Callable[..., object], sources: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    for folder in os.environ["PATH"].split(os.pathsep):
        for program in Path(folder).glob("*") if Path(folder).is_dir() else ():
            if program.name not in ("cmake", "ninja") and not (programs / program.name).exists():
                (programs / program.name).symlink_to(program)
    monkeypatch.setenv("PATH", str(programs))
    build()
    assert (sources / "bin" / "llama-quantize").is_file()
    assert [path.name for path in sources.parent.iterdir()] == ["sources"]
