"""Finding llama.cpp's converter and quantizer, and providing them whole, pinned, or not at all."""

import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tunewright.pipeline import files, settings
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


def add_program(folder: Path, program: Path) -> Path:
    """`program` as `folder`'s llama-quantize."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / toolchain.PROGRAM).symlink_to(program)
    return folder / toolchain.PROGRAM


def add_broken_program(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / toolchain.PROGRAM).write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
    (folder / toolchain.PROGRAM).chmod(0o755)
    return folder / toolchain.PROGRAM


@pytest.fixture(autouse=True)
def nothing_on_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in (toolchain.SETTING, "UNSLOTH_LLAMA_CPP_PATH", "TUNEWRIGHT_CACHE", "XDG_CACHE_HOME", "CC", "CXX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    without = [one for one in os.environ["PATH"].split(os.pathsep) if not Path(one, toolchain.PROGRAM).exists()]
    monkeypatch.setenv("PATH", os.pathsep.join(without))


@pytest.fixture
def cached() -> Path:
    return settings.cache_home() / f"llama.cpp-{toolchain.VERSION}-{toolchain.SHA256[:8]}"


@pytest.fixture
def no_index(monkeypatch: pytest.MonkeyPatch) -> None:
    """pip as on a machine without a network."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)


def test_a_machine_without_either_says_how_it_comes_to_them(workspace: Workspace) -> None:
    assert toolchain.find() is None
    assert toolchain.find_quantizer() is None
    assert toolchain.state() == {
        "converter": "no: fetched by the first export that needs it, 77 MB",
        "quantizer": "no: built by the first export that needs it, about 5 minutes",
    }


def test_the_setting_wins_over_unsloth_over_path_over_the_cache(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cached: Path
) -> None:
    make_toolchain(cached)
    assert toolchain.find() == cached
    beside = add_broken_program(make_toolchain(tmp_path / "llama.cpp") / "build" / "bin")
    monkeypatch.setenv("PATH", str(beside.parent), prepend=os.pathsep)
    assert toolchain.find() == tmp_path / "llama.cpp"
    in_home = make_toolchain(tmp_path / ".unsloth" / "llama.cpp")
    assert toolchain.find() == in_home
    monkeypatch.setenv("UNSLOTH_LLAMA_CPP_PATH", str(make_toolchain(tmp_path / "unsloth")))
    assert toolchain.find() == tmp_path / "unsloth"
    monkeypatch.setenv(toolchain.SETTING, str(make_toolchain(tmp_path / "own")))
    assert toolchain.find() == tmp_path / "own"
    assert toolchain.provide(tmp_path / "log") == tmp_path / "own"


def test_the_quantizer_is_looked_for_in_the_same_order_and_by_itself(
    workspace: Workspace, quantizer: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cached: Path
) -> None:
    in_cache = add_program(cached / "bin", quantizer)
    assert toolchain.find_quantizer() == in_cache
    in_path = add_program(tmp_path / "programs", quantizer)
    monkeypatch.setenv("PATH", str(in_path.parent), prepend=os.pathsep)
    assert toolchain.find_quantizer() == in_path
    unsloths = add_program(tmp_path / ".unsloth" / "llama.cpp", quantizer)
    assert toolchain.find_quantizer() == unsloths
    own = make_toolchain(tmp_path / "own")
    monkeypatch.setenv(toolchain.SETTING, str(own))
    assert toolchain.find_quantizer() == unsloths
    in_own = add_program(own / "build" / "bin", quantizer)
    assert toolchain.provide_quantizer(tmp_path / "log") == in_own
    assert toolchain.state() == {"converter": f"yes: {own}", "quantizer": f"yes: {in_own}"}


def test_a_quantizer_that_does_not_run_is_passed_over_but_not_the_settings(
    workspace: Workspace, quantizer: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cached: Path
) -> None:
    monkeypatch.setenv("PATH", str(add_broken_program(tmp_path / "programs").parent), prepend=os.pathsep)
    add_broken_program(tmp_path / ".unsloth" / "llama.cpp")
    assert toolchain.find_quantizer() is None
    in_cache = add_program(cached / "bin", quantizer)
    assert toolchain.find_quantizer() == in_cache
    broken = add_broken_program(make_toolchain(tmp_path / "own"))
    monkeypatch.setenv(toolchain.SETTING, str(broken.parent))
    with pytest.raises(InvalidInput, match="broken_quantizer"):
        toolchain.find_quantizer()
    assert toolchain.state()["quantizer"].startswith(f"no: {broken}")


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert settings.cache_home() == tmp_path / ".cache" / "tunewright"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert settings.cache_home() == tmp_path / "xdg" / "tunewright"
    monkeypatch.setenv("TUNEWRIGHT_CACHE", "~/mine")
    assert settings.cache_home() == tmp_path / "mine"


def test_a_setting_that_names_no_converter_is_an_error(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(toolchain.SETTING, str(tmp_path / "empty"))
    with pytest.raises(InvalidInput, match="conversion/"):
        toolchain.find()


def test_only_the_wanted_files_leave_the_archive(tmp_path: Path) -> None:
    vendored = str(toolchain.VENDORED)
    archive = make_archive(
        tmp_path / "sdist.tar.gz",
        {
            f"{vendored}/models/vocabulary.gguf": "not wanted",
            f"{vendored}/src/llama.cpp": "a source of the quantizer",
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
    assert found == sorted(f"folder/{name}" for name in (*FILES, "src/llama.cpp"))
    assert not (tmp_path / "evil.py").exists()


@pytest.mark.usefixtures("no_index")
def test_without_a_network_the_error_says_what_works(workspace: Workspace, tmp_path: Path) -> None:
    with pytest.raises(Unavailable) as caught:
        toolchain.provide(tmp_path / "pip.log")
    assert toolchain.SETTING in caught.value.allowed and "merged_16bit" in caught.value.allowed
    assert "No matching distribution" in caught.value.what
    assert [path.name for path in settings.cache_home().iterdir()] == ["llama.cpp.lock"]


@pytest.mark.usefixtures("no_index")
def test_a_download_with_another_digest_is_refused(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_archive(tmp_path / f"llama_cpp_python-{toolchain.VERSION}.tar.gz", {})
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(Unavailable):
        toolchain.provide(tmp_path / "pip.log")
    assert "DO NOT MATCH THE HASHES" in (tmp_path / "pip.log").read_text(encoding="utf-8")
    assert toolchain.find() is None


def test_a_cancel_while_another_process_fetches_is_heard(workspace: Workspace, tmp_path: Path) -> None:
    def cancelled() -> None:
        raise Cancelled("job-x")

    settings.cache_home().mkdir(parents=True)
    with (
        toolchain.FileLock(settings.cache_home() / "llama.cpp.lock", thread_local=False, is_singleton=False),
        pytest.raises(Cancelled),
    ):
        toolchain.provide(tmp_path / "pip.log", cancelled)


def test_the_command_line_says_where_both_are(
    monkeypatch: pytest.MonkeyPatch, quantizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = make_toolchain(tmp_path / "own")
    program = add_program(own, quantizer)
    monkeypatch.setenv(toolchain.SETTING, str(own))
    assert toolchain.main() == 0
    assert capsys.readouterr().out == f"converter: {own}\nquantizer: {program}\n"
    monkeypatch.setenv(toolchain.SETTING, str(tmp_path / "nothing"))
    assert toolchain.main() == 1
    assert "no_converter" in capsys.readouterr().err


def test_what_a_killed_process_left_is_cleared_away(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, no_index: None
) -> None:
    left = settings.cache_home() / f"{files.PARTIAL}llama.cpp-x1"
    others = settings.cache_home() / f"{files.PARTIAL}123-another"
    for folder in (left, others):
        (folder / "bin").mkdir(parents=True)
    with pytest.raises(Unavailable):
        toolchain.provide(tmp_path / "pip.log")
    assert others.is_dir() and not left.exists()


def test_what_was_fetched_is_complete(converter: Path) -> None:
    assert (converter / "conversion" / "qwen.py").is_file()
    assert (converter / "convert_lora_to_gguf.py").is_file()


def test_the_light_half_imports_no_torch() -> None:
    heavy = "import sys; from tunewright.pipeline.exporting import toolchain, request, quantizer, gguf, base_weights"
    check = "; print([name for name in ('torch', 'transformers', 'unsloth', 'datasets') if name in sys.modules])"
    out = subprocess.run([sys.executable, "-P", "-c", heavy + check], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
