"""Which files a source names."""

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tunewright.pipeline.data import folders
from tunewright.pipeline.data.hub import RemoteDataset
from tunewright.pipeline.data.llamafactory import LayoutHint
from tunewright.pipeline.data.prepare import prepare
from tunewright.pipeline.data.reading import Reader
from tunewright.pipeline.data.sources import Source, as_given, resolve
from tunewright.pipeline.errors import TunewrightError
from tunewright.pipeline.workspace import Workspace

Write = Callable[[str, Any], Path]
RunPython = Callable[..., str]
MakeFolder = Callable[..., Path]


@pytest.fixture
def make_folder(tmp_path: Path) -> MakeFolder:
    """A folder with files of these names, each of one row."""

    def make(*names: str) -> Path:
        for name in names:
            path = tmp_path / "folder" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text('{"text": "x"}\n', encoding="utf-8")
        return tmp_path / "folder"

    return make


def only(source: Any, split: str = "train", workspace: Workspace | None = None) -> Source:
    (found,) = resolve(source, split, workspace)
    return found


def names(source: Source, folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in source.files]


def refusal(source: Any, workspace: Workspace | None = None) -> TunewrightError:
    with pytest.raises(TunewrightError) as raised:
        resolve(source, "train", workspace)
    return raised.value


FOLDERS: dict[str, tuple[list[str], str, list[str]]] = {
    "all data files in order": (["b.jsonl", "a.csv", "c.parquet.gz"], "train", ["a.csv", "b.jsonl", "c.parquet.gz"]),
    "texts beside data are not data": (["README.md", "LICENSE.txt", "notes.txt", "d.jsonl"], "train", ["d.jsonl"]),
    "texts alone are data, a README is not": (["README.md", "a.txt", "b.md"], "train", ["a.txt", "b.md"]),
    "a README alone is read": (["README.md"], "train", ["README.md"]),
    "deeper files where there are none": (["x/a.json", "x/y/b.csv", ".git/c.json"], "train", ["x/a.json", "x/y/b.csv"]),
    "deeper files beside a README": (["README_zh.md", "data/a.jsonl"], "train", ["data/a.jsonl"]),
    "nothing deeper beside data": (["a.jsonl", "x/b.jsonl"], "train", ["a.jsonl"]),
    "files named for the split": (["train-a.json", "test.json", "Train.csv"], "train", ["Train.csv", "train-a.json"]),
    "all files where none is": (["a.jsonl", "test.jsonl"], "train", ["a.jsonl", "test.jsonl"]),
    "shards as on the Hub": (
        ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet", "data/test-00000-of-00001.parquet"],
        "test",
        ["data/test-00000-of-00001.parquet"],
    ),
    "a split as a folder": (["train/0.arrow", "dev/0.arrow", "dataset_dict.json"], "dev", ["dev/0.arrow"]),
    "a split within the name": (["my_train.jsonl", "my_test.jsonl", "constrained.jsonl"], "train", ["my_train.jsonl"]),
    "what datasets writes beside its data": (["0.arrow", "state.json", "dataset_info.json"], "train", ["0.arrow"]),
    "hidden files": ([".a.jsonl", "b.jsonl"], "train", ["b.jsonl"]),
}  # fmt: skip


@pytest.mark.parametrize("case", FOLDERS)
def test_of_a_folder_the_data_is_taken(make_folder: MakeFolder, case: str) -> None:
    files, split, expected = FOLDERS[case]
    folder = make_folder(*files)
    assert names(only(str(folder), split), folder) == expected


def test_what_of_a_folder_was_left_out_or_fetched_from_deeper_is_said(make_folder: MakeFolder) -> None:
    assert only(make_folder("d.jsonl", "notes.txt")).notes == ["1 text file(s) beside the data were left out."]
    deeper = only(make_folder("x/train.jsonl", "x/test.jsonl").parent / "folder" / "x")
    assert deeper.notes == ["Of x the 1 file(s) named for 'train' were read."]


def test_a_folder_without_data_is_refused(make_folder: MakeFolder, tmp_path: Path) -> None:
    folder = make_folder("picture.png", ".hidden.jsonl", "deep/x.bin")
    error = refusal(folder)
    assert error.code == "no_data_files"
    assert ".parquet" in error.allowed


def test_a_folder_as_large_as_a_disk_is_not_searched(make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_folder(*(f"a/{i}.bin" for i in range(20)), "b/c.jsonl")
    monkeypatch.setattr(folders, "MAX_ENTRIES", 15)
    assert refusal(folder).code == "folder_too_large"


def test_a_glob_finds_packed_files_and_leaves_texts_out(make_folder: MakeFolder) -> None:
    folder = make_folder("a.jsonl", "x/b.jsonl.gz", "x/README.md", "x/c.png")
    found = only(f"{folder}/**/*")
    assert names(found, folder) == ["a.jsonl", "x/b.jsonl.gz"]
    assert names(only(f"{folder}/*/*.md"), folder) == ["x/README.md"]


def test_paths_given_again_name_the_same_from_another_folder(
    make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_folder("a.jsonl", "b.jsonl")
    monkeypatch.chdir(folder)
    first = resolve(["a.jsonl", {"source": "*.jsonl"}, {"source": "o/n", "config": "zh"}, "modelscope:o/m"], "train")
    again: Any = as_given(first)
    json.dumps(again)
    monkeypatch.chdir("/")
    second = resolve(again, "train")
    assert [source.files for source in first] == [source.files for source in second] != [[], [], [], []]
    assert [source.remote for source in first] == [source.remote for source in second]
    assert as_given(resolve(folder / "a.jsonl", "train")) == str(folder / "a.jsonl")


def test_weights_stay_with_their_sources(make_folder: MakeFolder) -> None:
    folder = make_folder("a.jsonl", "b.jsonl")
    weighted = [{"source": str(folder / "a.jsonl"), "weight": 3}, {"source": "o/n", "weight": 1, "config": "c"}]
    sources = resolve(weighted, "train")
    assert [source.weight for source in sources] == [3.0, 1.0]
    assert as_given(sources) == weighted


REMOTE: dict[str, RemoteDataset] = {
    "owner/name": RemoteDataset("huggingface", "owner/name"),
    "owner-1/name_2.5": RemoteDataset("huggingface", "owner-1/name_2.5"),
    "hf://datasets/owner/name": RemoteDataset("huggingface", "owner/name"),
    "https://huggingface.co/datasets/owner/name": RemoteDataset("huggingface", "owner/name"),
    "huggingface.co/datasets/owner/name/": RemoteDataset("huggingface", "owner/name"),
    "https://hf-mirror.com/datasets/owner/name/tree/main": RemoteDataset("huggingface", "owner/name"),
    "https://huggingface.co/datasets/owner/name/viewer/zh/train": RemoteDataset("huggingface", "owner/name", "zh"),
    "http://127.0.0.1:9/datasets/owner/name": RemoteDataset("huggingface", "owner/name"),
    "modelscope:owner/name": RemoteDataset("modelscope", "owner/name"),
    "https://www.modelscope.cn/datasets/owner/name/summary": RemoteDataset("modelscope", "owner/name"),
}


@pytest.mark.parametrize("given", REMOTE)
def test_a_hub_dataset_is_named_by_id_or_link(given: str) -> None:
    source = only(given)
    assert source.remote == REMOTE[given]
    assert source.files == []


def test_a_local_path_wins_over_a_hub_id(make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(make_folder("owner/name/a.jsonl"))
    assert only("owner/name").remote is None
    assert "hf://datasets/owner/other" in str(refusal("owner/other"))


REFUSED: dict[str, tuple[Any, str, list[str]]] = {
    "a link to a file": ("https://huggingface.co/datasets/o/n/resolve/main/a.jsonl", "unsupported_link", ["Download"]),
    "a link to anywhere": ("https://example.org/a.jsonl", "unsupported_link", ["Download"]),
    "modelscope without an owner": ("modelscope:name", "invalid_source", ["modelscope:owner/name"]),
    "a config for a file": ([{"source": "{folder}/a.jsonl", "config": "x"}], "invalid_source", ["no dataset of a hub"]),
    "a config that is no text": ([{"source": "o/n", "config": 5}], "invalid_source", ["config"]),
    "an unknown suffix": ("{folder}/b.xlsx", "unsupported_file", [".xlsx", ".parquet"]),
    "a misspelt file": ("{folder}/a.jsnl", "source_not_found", ["Nearest: a.jsonl"]),
    "a path with a zero byte": ("a\0b", "invalid_path", ["no path"]),
    "a pipe": ("{folder}/pipe.jsonl", "not_a_file", ["pipe.jsonl"]),
    "a device": ("/dev/zero", "path_not_allowed", ["/dev/zero"]),
    "an own dataset that is not there": ("ds-nowhere-1234", "artifact_not_found", ["ds-nowhere-1234"]),
    "an endless name": ("x" * 5000, "invalid_source", ["no path"]),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_names_nothing_is_refused(make_folder: MakeFolder, workspace: Workspace, case: str) -> None:
    folder = make_folder("a.jsonl", "b.xlsx")
    os.mkfifo(folder / "pipe.jsonl")
    source, code, words = REFUSED[case]
    placed = json.loads(json.dumps(source).replace("{folder}", str(folder)))
    error = refusal(placed, workspace)
    assert error.code == code
    for word in words:
        assert word in str(error)
    assert error.next != f'prepare_dataset(source="{placed}")'


LISTED = {
    "pairs": {
        "file_name": "dpo.json",
        "ranking": True,
        "columns": {"prompt": "q", "chosen": "good", "rejected": "bad"},
    },
    "talks": {
        "file_name": "talks",
        "formatting": "sharegpt",
        "columns": {"messages": "turns"},
        "tags": {"role_tag": "who", "user_tag": "me"},
        "num_samples": 5,
    },
    "gone": {"file_name": "gone.json"},
    "remote": {"hf_hub_url": "owner/name", "subset": "zh", "split": "test", "folder": "data", "formatting": "openai"},
    "chinese": {"ms_hub_url": "owner/ms", "file_name": "gone.json"},
    "script": {"script_url": "code"},
}


@pytest.fixture
def listed(make_folder: MakeFolder) -> Path:
    folder = make_folder("dpo.json", "talks/a.jsonl", "talks/b.jsonl", "unlisted.jsonl")
    (folder / "dataset_info.json").write_text(json.dumps(LISTED), encoding="utf-8")
    return folder


def test_a_llama_factory_folder_is_what_its_list_names_and_holds(listed: Path) -> None:
    source = only(listed)
    assert names(source, listed) == ["dpo.json", "talks/a.jsonl", "talks/b.jsonl"]
    talks = LayoutHint("sharegpt", {"messages": "turns"}, {"role_tag": "who", "user_tag": "me"})
    pairs = LayoutHint(None, {"prompt": "q", "chosen": "good", "rejected": "bad"}, ranking=True)
    assert [source.hints[path] for path in source.files] == [pairs, talks, talks]
    assert any("pairs, talks" in note for note in source.notes)
    assert any("num_samples 5 was not applied" in note for note in source.notes)


def test_an_entry_of_a_llama_factory_list_is_named_like_a_path(listed: Path) -> None:
    assert names(only(f"{listed}/pairs"), listed) == ["dpo.json"]
    assert only(f"{listed}/pairs").hints[listed / "dpo.json"].ranking
    hint = LayoutHint("openai")
    assert only(f"{listed}/remote").remote == RemoteDataset("huggingface", "owner/name", "zh", "test", "data", hint)
    assert only(f"{listed}/chinese").remote == RemoteDataset("modelscope", "owner/ms", hint=LayoutHint())
    # A file that is there is read as a file, listed or not.
    assert names(only(f"{listed}/unlisted.jsonl"), listed) == ["unlisted.jsonl"]


def test_an_entry_whose_data_is_nowhere_is_refused(listed: Path) -> None:
    assert "gone.json" in str(refusal(f"{listed}/gone"))
    assert refusal(f"{listed}/script").code == "source_not_found"
    error = refusal(f"{listed}/talk")
    assert error.code == "source_not_found"
    assert "talks" in error.allowed


OF_DATASETS = '{"features": {"text": {"_type": "Value"}}, "splits": {"train": {}}}'


@pytest.mark.parametrize("info", ["[]", "{", "[" * 100_000, '{"a": {"file_name": 5}}', OF_DATASETS])
def test_a_dataset_info_of_someone_else_changes_nothing(make_folder: MakeFolder, info: str) -> None:
    folder = make_folder("a.jsonl")
    (folder / "dataset_info.json").write_text(info, encoding="utf-8")
    assert names(only(folder), folder) == ["a.jsonl"]


def test_a_dataset_of_our_own_is_a_source_with_all_its_rows(workspace: Workspace, write: Write) -> None:
    rows = [{"instruction": f"Say {i}.", "output": f"{i}!"} for i in range(40)]
    made = prepare(workspace, write("numbers.jsonl", rows), eval_fraction=0.1)
    source = only("ds-numbers", workspace=workspace)
    assert source.dataset_id == made["id"]
    assert [path.name for path in source.files] == ["train.parquet", "eval.parquet"]
    read = [row for path in source.files for block in Reader(path, "train").blocks() for _, row in block.parsed()]
    assert sorted(row["messages"][0]["content"] for row in read) == sorted(row["instruction"] for row in rows)
    assert as_given([source]) == "ds-numbers"
    # No rows were held out: the empty split is no source.
    whole = prepare(workspace, write("whole.jsonl", rows[:5]), eval_fraction=0)
    assert [path.name for path in only(whole["id"], workspace=workspace).files] == ["train.parquet"]


def test_a_file_named_like_a_dataset_wins_over_it(
    workspace: Workspace, make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(make_folder("ds-x.jsonl"))
    assert only("ds-x.jsonl", workspace=workspace).dataset_id is None


@pytest.fixture
def locked() -> Iterator[Path]:
    """A folder that may not be listed, as seen by a user who does not own it."""
    with tempfile.TemporaryDirectory() as folder:
        locked = Path(folder, "locked")
        locked.mkdir()
        (locked / "a.jsonl").write_text("{}", encoding="utf-8")
        Path(folder).chmod(0o755)
        locked.chmod(0)
        is_root = os.geteuid() == 0
        if is_root:
            os.seteuid(65534)
        yield locked
        if is_root:
            os.seteuid(0)
        locked.chmod(0o755)


def test_a_folder_that_may_not_be_listed_is_refused(locked: Path) -> None:
    for source in (locked, locked / "a.jsonl", f"{locked}/*.jsonl"):
        error = refusal(source)
        assert error.code == "unreadable_file"
        assert "Permission denied" in error.what


def test_looking_at_sources_imports_nothing_heavy(run_python: RunPython) -> None:
    heavy = ("torch", "datasets", "transformers", "pyarrow", "numpy", "huggingface_hub", "charset_normalizer")
    code = f"import sys, tunewright.pipeline.data.sources; print([m for m in {heavy} if m in sys.modules])"
    assert run_python(code).strip() == "[]"
