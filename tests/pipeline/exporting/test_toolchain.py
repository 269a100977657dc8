"""Finding llama.cpp's converter, and fetching it whole, pinned, or not at all."""

import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tunewright.pipeline.errors import Cancelled, InvalidInput, Unavailable
from tunewright.pipeline.exporting import toolchain
from tunewright.pipeline.workspace import Workspace

FILES = ("convert_hf_to_gguf.py", "conversion/base.py", "gguf-py/gguf/__init__.py")


def make_toolchain(folder: Path) -> Path:
    for name in FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("", encoding="utf-8")
    return folder


def make_archive(file: Path, extra: dict[str, str]) -> Path:
    """A source distribution with the wanted files, and `extra` members by name: text, or `-> target` for a link."""
    with tarfile.open(file, "w:gz") as tar:
        members = {f"{toolchain.VENDORED}/{name}": "wanted" for name in FILES} | extra
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            if content.startswith("-> "):
                member.type, member.linkname = tarfile.SYMTYPE, content.removeprefix("-> ")
                tar.addfile(member)
            else:
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content.encode()))
    return file


@pytest.fixture(autouse=True)
def nothing_on_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(toolchain.SETTING, raising=False)
    monkeypatch.delenv("UNSLOTH_LLAMA_CPP_PATH", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def no_index(monkeypatch: pytest.MonkeyPatch) -> None:
    """pip as on a machine without a network."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)


def test_a_machine_without_a_converter_has_none(workspace: Workspace) -> None:
    assert toolchain.find(workspace) is None


def test_the_setting_wins_over_unsloth_and_unsloth_over_the_cache(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cached = make_toolchain(workspace.home.cache / f"llama.cpp-{toolchain.VERSION}")
    assert toolchain.find(workspace) == cached
    in_home = make_toolchain(tmp_path / ".unsloth" / "llama.cpp")
    assert toolchain.find(workspace) == in_home
    monkeypatch.setenv("UNSLOTH_LLAMA_CPP_PATH", str(make_toolchain(tmp_path / "unsloth")))
    assert toolchain.find(workspace) == tmp_path / "unsloth"
    monkeypatch.setenv(toolchain.SETTING, str(make_toolchain(tmp_path / "own")))
    assert toolchain.find(workspace) == tmp_path / "own"
    assert toolchain.provide(workspace, tmp_path / "log") == tmp_path / "own"


def test_a_setting_that_names_no_converter_is_an_error(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(toolchain.SETTING, str(tmp_path / "empty"))
    with pytest.raises(InvalidInput, match="conversion/"):
        toolchain.find(workspace)


def test_only_the_wanted_files_leave_the_archive(tmp_path: Path) -> None:
    vendored = str(toolchain.VENDORED)
    archive = make_archive(
        tmp_path / "sdist.tar.gz",
        {
            f"{vendored}/src/llama.cpp": "not wanted",
            f"{vendored}/conversion/../../../../../evil.py": "evil",
            f"{vendored}/conversion/link.py": "-> /etc/passwd",
            "/absolute.py": "evil",
            "../evil.py": "evil",
        },
    )
    folder = tmp_path / "out" / "deep" / "folder"
    folder.mkdir(parents=True)
    toolchain._extract(archive, folder)
    found = sorted(str(path.relative_to(tmp_path / "out" / "deep")) for path in (tmp_path / "out").rglob("*.*"))
    assert found == sorted(f"folder/{name}" for name in FILES)
    assert not (tmp_path / "evil.py").exists()


@pytest.mark.usefixtures("no_index")
def test_without_a_network_the_error_says_what_works(workspace: Workspace, tmp_path: Path) -> None:
    with pytest.raises(Unavailable) as caught:
        toolchain.provide(workspace, tmp_path / "pip.log")
    assert toolchain.SETTING in caught.value.allowed and "merged_16bit" in caught.value.allowed
    assert "No matching distribution" in caught.value.what
    assert [path.name for path in workspace.home.cache.iterdir() if path.is_dir()] == []


@pytest.mark.usefixtures("no_index")
def test_a_download_with_another_digest_is_refused(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_archive(tmp_path / f"llama_cpp_python-{toolchain.VERSION}.tar.gz", {})
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(Unavailable):
        toolchain.provide(workspace, tmp_path / "pip.log")
    assert "DO NOT MATCH THE HASHES" in (tmp_path / "pip.log").read_text(encoding="utf-8")
    assert toolchain.find(workspace) is None


def test_a_cancel_while_another_process_fetches_is_heard(workspace: Workspace, tmp_path: Path) -> None:
    def cancelled() -> None:
        raise Cancelled("job-x")

    with (
        toolchain.FileLock(workspace.home.cache / "llama.cpp.lock", thread_local=False, is_singleton=False),
        pytest.raises(Cancelled),
    ):
        toolchain.provide(workspace, tmp_path / "pip.log", cancelled)


def test_what_was_fetched_is_complete_and_only_the_converter(converter: Path) -> None:
    assert (converter / "conversion" / "qwen.py").is_file()
    assert (converter / "convert_lora_to_gguf.py").is_file()


def test_the_light_half_imports_no_torch() -> None:
    heavy = (
        "import sys; from tunewright.pipeline.exporting import toolchain, request, verify, runtime, gguf, base_weights"
    )
    check = "; print([name for name in ('torch', 'transformers', 'unsloth', 'datasets') if name in sys.modules])"
    out = subprocess.run([sys.executable, "-P", "-c", heavy + check], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
