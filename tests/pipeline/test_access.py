"""Which files may be read: by folder, by link, by what they are; and what a refusal says, and does not say."""

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from tunewright.pipeline import access, settings
from tunewright.pipeline.data.prepare import prepare
from tunewright.pipeline.data.reading import Reader
from tunewright.pipeline.data.sources import resolve
from tunewright.pipeline.documents import reading
from tunewright.pipeline.errors import InvalidInput, TunewrightError
from tunewright.pipeline.workspace import Workspace

ROW = '{"instruction": "Say 1.", "output": "1!"}\n'


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of a server for which nothing else is allowed; a user's other things lie beside it."""
    folder = tmp_path / "work"
    for name in ("work", "private"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "rows.jsonl").write_text(ROW * 3, encoding="utf-8")
        (tmp_path / name / "notes.md").write_text("A secret recipe.", encoding="utf-8")
    monkeypatch.chdir(folder)
    monkeypatch.delenv("TUNEWRIGHT_ALLOW_DIRS")
    return folder


@pytest.fixture
def private(work: Path) -> Path:
    return work.parent / "private"


def refusal(workspace: Workspace, path: Path | str) -> str:
    with pytest.raises(InvalidInput, match="path_not_allowed") as raised:
        access.readable(workspace, Path(path))
    return str(raised.value)


def test_the_working_folder_the_homes_folders_and_what_is_allowed_may_be_read(
    workspace: Workspace, work: Path, private: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert access.readable(workspace, Path("rows.jsonl")) == work / "rows.jsonl"
    assert access.readable(workspace, workspace.home.exports / "ex-a" / "x.gguf")
    refusal(workspace, private / "rows.jsonl")
    monkeypatch.setenv("TUNEWRIGHT_ALLOW_DIRS", f"{private}{os.pathsep}")
    assert access.readable(workspace, private / "rows.jsonl") == private / "rows.jsonl"
    refusal(workspace, private.parent / "private-not" / "rows.jsonl")


def test_a_single_file_can_be_allowed(workspace: Workspace, private: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNEWRIGHT_ALLOW_DIRS", str(private / "rows.jsonl"))
        assert access.is_readable(workspace, private / "rows.jsonl")
        refusal(workspace, private / "notes.md")


@pytest.mark.parametrize("start", ["/", "~", "~/.."])
def test_a_host_that_starts_the_server_in_the_home_or_the_root_opens_nothing(
    workspace: Workspace, private: Path, monkeypatch: pytest.MonkeyPatch, start: str
) -> None:
    monkeypatch.setenv("HOME", str(private))
    monkeypatch.chdir(Path(start).expanduser())
    assert settings.working_folder() is None
    text = refusal(workspace, private / "Downloads" / "rows.jsonl")
    assert f"--allow-dir {private}/Downloads " in text and f"TUNEWRIGHT_ALLOW_DIRS={private}/Downloads " in text
    # For one file in it the home is not opened.
    assert f"--allow-dir {private}/rows.jsonl " in refusal(workspace, private / "rows.jsonl")


def test_for_a_glob_the_folder_before_the_stars_is_to_be_allowed(
    workspace: Workspace, private: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(private))
    logs = private / "logs.d"
    for glob in ("*.jsonl", "*/*.json", "**", "part-[0-9].jsonl"):
        assert f"--allow-dir {logs} " in refusal(workspace, logs / glob)
    # The home or the root is not opened for the files of a glob.
    for glob in (private / "*.jsonl", Path("/**/*.jsonl")):
        assert "--allow-dir <a folder with these files alone> " in refusal(workspace, glob)


@pytest.mark.parametrize("given", ["../private/rows.jsonl", "sub/../../private/rows.jsonl", "~/rows.jsonl"])
def test_no_spelling_of_a_path_leads_outside(
    workspace: Workspace, private: Path, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    monkeypatch.setenv("HOME", str(private))
    refusal(workspace, given)


def test_a_refusal_does_not_say_whether_anything_is_there(workspace: Workspace, private: Path) -> None:
    there, not_there = (refusal(workspace, private / name) for name in ("rows.jsonl", "nope.jsonl"))
    assert there.replace("rows", "nope") == not_there


@pytest.mark.parametrize("name", ["tunewright.db", "chat.json", "spawn.lock"])
def test_the_data_homes_own_files_are_never_read_even_where_its_folder_is_allowed(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("TUNEWRIGHT_ALLOW_DIRS", str(workspace.home.root))
    (workspace.home.root / name).touch()
    assert "data home's own files" in refusal(workspace, workspace.home.root / name)
    with pytest.raises(TunewrightError, match=r"path_not_allowed|unsupported_file"):
        resolve(str(workspace.home.root / name), "train", workspace)


@pytest.mark.parametrize("path", ["/proc/self/environ", "/sys/kernel/notes", "/dev/fd/0"])
def test_the_kernels_files_are_never_read(workspace: Workspace, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.setenv("TUNEWRIGHT_ALLOW_DIRS", f"/proc{os.pathsep}/sys{os.pathsep}/dev/fd")
    refusal(workspace, path)


@pytest.mark.parametrize("given", ["a\0b", "x" * 5000, "~nobody-of-this-name/x"])
def test_what_is_no_path_is_refused_as_such(workspace: Workspace, given: str) -> None:
    with pytest.raises(InvalidInput, match="invalid_path"):
        access.readable(workspace, Path(given))


# Every place that takes a path


def test_links_of_every_kind_are_judged_by_where_they_lead(workspace: Workspace, work: Path, private: Path) -> None:
    (work / "folder").mkdir()
    (work / "folder" / "a.jsonl").symlink_to(private / "rows.jsonl")
    (work / "there").symlink_to(private)
    (work / "a.jsonl").symlink_to(private / "rows.jsonl")
    (work / "inside.jsonl").symlink_to(work / "rows.jsonl")
    for source in ("a.jsonl", "there", "there/rows.jsonl", "folder", "folder/*.jsonl", "there/*.jsonl", "the*/*.jsonl"):
        with pytest.raises(InvalidInput, match="path_not_allowed"):
            resolve(source, "train", workspace)
    assert resolve("inside.jsonl", "train", workspace)[0].files == [work / "inside.jsonl"]


def test_a_glob_is_looked_up_from_allowed_folders_only(workspace: Workspace, work: Path, private: Path) -> None:
    for source in (f"{private}/*.jsonl", f"{work}/*/../../private/*.jsonl", "/**/*.jsonl", "../*/rows.jsonl"):
        with pytest.raises(InvalidInput, match="path_not_allowed"):
            resolve(source, "train", workspace)
    assert resolve("*.jsonl", "train", workspace)[0].files == [work / "rows.jsonl"]


@pytest.mark.parametrize("file_name", ["{private}/rows.jsonl", "../private/rows.jsonl"])
def test_a_dataset_info_leads_nowhere_else(workspace: Workspace, work: Path, private: Path, file_name: str) -> None:
    named = file_name.replace("{private}", str(private))
    info = f'{{"bait": {{"file_name": "{named}"}}, "own": {{"file_name": "rows.jsonl"}}}}'
    (work / "dataset_info.json").write_text(info, encoding="utf-8")
    (found,) = resolve(str(work), "train", workspace)
    assert found.files == [work / "rows.jsonl"]
    assert any("outside of what may be read: bait" in note for note in found.notes)
    with pytest.raises(InvalidInput, match="path_not_allowed"):
        resolve("bait", "train", workspace)


def test_a_dataset_info_that_leads_elsewhere_is_not_read(workspace: Workspace, work: Path, private: Path) -> None:
    (private / "x.json").write_text('{"secret-name": {"file_name": "a.jsonl"}}', encoding="utf-8")
    (work / "dataset_info.json").symlink_to(private / "x.json")
    with pytest.raises(TunewrightError) as raised:
        resolve("secret-nam", "train", workspace)
    assert "secret-name" not in str(raised.value)


def test_a_hub_id_stays_one_where_nothing_may_be_read(
    workspace: Workspace, private: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (private / "owner" / "name").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(private))
    monkeypatch.chdir(private)
    assert resolve("owner/name", "train", workspace)[0].remote is not None


@pytest.mark.parametrize("argument", ["domain", "benchmark_dir", "model"])
def test_the_other_paths_of_a_dataset_are_judged_too(
    workspace: Workspace, work: Path, private: Path, argument: str
) -> None:
    (work / "linked").mkdir()
    (work / "linked" / "questions.json").symlink_to(private / "rows.jsonl")
    places = [str(private)] + ([str(work / "linked")] if argument != "domain" else [])
    for place in places:
        named: dict[str, Any] = {argument: place}
        with pytest.raises(InvalidInput, match="path_not_allowed"):
            prepare(workspace, "rows.jsonl", **named)


def test_documents_outside_are_refused_and_links_to_them_told(workspace: Workspace, work: Path, private: Path) -> None:
    for source in (private / "notes.md", private, private / "*.md", "/etc/*.txt"):
        with pytest.raises(InvalidInput, match="path_not_allowed"):
            reading.survey(workspace, str(source))
    (work / "link.md").symlink_to(private / "notes.md")
    (work / "own.md").write_text("How clay is fired.", encoding="utf-8")
    (work / "notes.md").unlink()
    read = reading.survey(workspace, str(work))
    assert [chunk.text for chunk in read.chunks] == ["How clay is fired."]
    assert [failure.code for failure in read.failures] == ["path_not_allowed"]


# Opening


def test_a_link_that_was_put_in_the_way_since_is_not_followed(
    workspace: Workspace, work: Path, private: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked = access.readable(workspace, work / "rows.jsonl")
    (work / "rows.jsonl").unlink()
    (work / "rows.jsonl").symlink_to(private / "rows.jsonl")
    with pytest.raises(OSError, match="symbolic link"):
        access.open_real(checked)
    (work / "folder").mkdir()
    (work / "folder" / "rows.jsonl").write_text(ROW, encoding="utf-8")
    checked = access.readable(workspace, work / "folder" / "rows.jsonl")
    (work / "folder").rename(work / "gone")
    (work / "folder").symlink_to(private)
    with pytest.raises(OSError, match="replaced while it was being opened"):
        access.open_real(checked)


def test_what_became_a_link_after_the_request_is_refused_when_it_is_read(
    workspace: Workspace, work: Path, private: Path
) -> None:
    (source,) = resolve("rows.jsonl", "train", workspace)
    (work / "rows.jsonl").unlink()
    (work / "rows.jsonl").symlink_to(private / "rows.jsonl")
    with pytest.raises(InvalidInput, match="path_not_allowed"):
        list(Reader(source.files[0], "train", workspace).blocks())


def test_pipes_and_devices_are_not_opened(workspace: Workspace, work: Path) -> None:
    os.mkfifo(work / "pipe.jsonl")
    assert access.open_real(work / "pipe.jsonl") is None
    assert access.open_real(Path("/dev/zero")) is None


# Allowing


def test_allowing_reaches_the_processes_that_are_started_and_the_jobs_that_are_submitted(
    workspace: Workspace, work: Path, private: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNEWRIGHT_ALLOW_DIRS", "")
    access.allow(["../private"])
    assert os.environ["TUNEWRIGHT_ALLOW_DIRS"] == str(private)
    assert access.allowed_here() == [str(private), str(work)]
    access.allow(access.allowed_here())
    monkeypatch.chdir("/")
    assert access.is_readable(workspace, work / "rows.jsonl") and access.is_readable(workspace, private / "rows.jsonl")


def test_a_folder_whose_name_would_be_read_as_two_is_not_allowed(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = work / f"a{os.pathsep}b"
    odd.mkdir()
    with pytest.raises(InvalidInput, match="separates folders"):
        access.allow([odd])
    monkeypatch.chdir(odd)
    assert access.allowed_here() == []


def test_a_home_that_others_could_read_is_closed_to_them(tmp_path: Path) -> None:
    root = Workspace.open(tmp_path / "home").home.root
    root.chmod(0o777)
    Workspace.open(root)
    assert stat.S_IMODE(root.stat().st_mode) == 0o700


def test_a_models_own_code_runs_only_where_its_name_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not settings.trusts_code_of("owner/name")
    monkeypatch.setenv("TUNEWRIGHT_TRUST_REMOTE_CODE", "owner/name, other/one")
    names: list[Any] = ["owner/name", "other/one", "owner/name2", "*", ""]
    assert [settings.trusts_code_of(name) for name in names] == [True, True, False, False, False]
