"""Bad input is refused with what to do next, and whatever goes wrong, nothing half-made is left."""

import errno
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tunewright.pipeline.data import inspection, prepare, splits
from tunewright.pipeline.data.rows import Kind
from tunewright.pipeline.errors import InvalidInput, NoSpace, NotFound, TunewrightError
from tunewright.pipeline.workspace import Workspace

Write = Callable[[str, Any], Path]
Alpaca = Callable[[int], list[dict[str, str]]]

GOOD = {"instruction": "Hi", "output": "Hello"}
GOOD_LINE = json.dumps(GOOD)

# The file's name and content, the arguments, the code, and words that the message must hold.
BAD_FILES: dict[str, tuple[str, Any, dict[str, Any], str, list[str]]] = {
    "broken JSON": (
        "a.json",
        '[\n  {"instruction": "Hi",\n   "output" "x"}\n]',
        {},
        "broken_json",
        ["line 3", "output"],
    ),
    "brackets without end": ("a.json", "[" * 200_000, {}, "broken_json", ["line 1"]),
    "an unclosed quote in CSV": ("a.csv", 'instruction,output\nHi,"Hello\n', {}, "broken_csv", ["line 2"]),
    "text after a quote in CSV": ("a.csv", 'instruction,output\nx,y\n"Hi"!,Hello\n', {}, "broken_csv", ["line 3"]),
    "neither text nor data": ("a.csv", bytes(range(256)) * 8, {}, "unknown_encoding", []),
    "an empty file": ("a.json", "", {}, "empty_file", ["0 bytes"]),
    "blank lines": ("a.jsonl", "\n \n", {}, "empty_file", []),
    "an empty list": ("a.json", [], {}, "empty_file", []),
    "a header without rows": ("a.csv", "instruction,output\n", {}, "empty_file", []),
    "unknown columns": (
        "a.csv",
        "thema,anfrage,replik\nrain,Why?,Because.\n",
        {},
        "unknown_layout",
        [
            "anfrage ('Why?')",
            "Known layouts: alpaca (instruction, output)",
            'mapping={"prompt": "anfrage", "response": "replik"}',
        ],
    ),
    "columns whose names hint": (
        "a.jsonl",
        [{"id": 1, "user_question": "Why?", "best_reply": "So."}],
        {},
        "unknown_layout",
        ['mapping={"prompt": "user_question", "response": "best_reply"}'],
    ),
    "no objects": ("a.json", [1, 2], {}, "unknown_layout", ["no objects"]),
    "another format than asked for": ("a.json", [GOOD], {"format": "chatml"}, "unknown_layout", ["format='chatml'"]),
    "an absent column": (
        "a.json",
        [GOOD],
        {"mapping": {"prompt": "instruktion", "response": "output"}},
        "column_not_found",
        ["'instruktion'", "Nearest: instruction"],
    ),
    "a mapping without response": (
        "a.json",
        [GOOD],
        {"mapping": {"prompt": "instruction"}},
        "invalid_mapping",
        ["'response'"],
    ),
    "a mapping with an unknown key": (
        "a.json",
        [GOOD],
        {"mapping": {"prompt": "a", "response": "b", "answer": "c"}},
        "invalid_mapping",
        ["'answer'"],
    ),
    "a mapping beside another format": (
        "a.json",
        [GOOD],
        {"format": "alpaca", "mapping": {"prompt": "a", "response": "b"}},
        "invalid_mapping",
        ["alpaca"],
    ),
    "nothing usable": (
        "a.json",
        [{"instruction": "", "output": "x"}, {"instruction": "y", "output": " "}],
        {},
        "dataset_empty",
        ["2 empty", "row 1"],
    ),
    "several lists": ("a.json", {"a": [GOOD], "b": [GOOD]}, {}, "several_lists", ["a, b", 'split="a"']),
    "an unsupported suffix": ("a.xlsx", "x", {}, "unsupported_file", [".xlsx", ".csv"]),
    "an unknown action": (
        "a.json",
        [GOOD],
        {"cleaning": {"html": "split"}},
        "invalid_cleaning",
        ["html: mend, drop, keep"],
    ),
    "a length without a model": ("a.json", [GOOD], {"max_seq_length": 512}, "too_long_incomplete", ["model=None"]),
    "a domain pack that is not there": (
        "a.json",
        [GOOD],
        {"domain": "nowhere/pack.yaml"},
        "pack_not_found",
        ["pack.yaml"],
    ),
    "a benchmark that is not there": (
        "a.json",
        [GOOD],
        {"benchmark_dir": "nowhere/x"},
        "benchmark_not_found",
        ["nowhere/x"],
    ),
    "an unknown model": ("a.json", [GOOD], {"model": "nosuchmodel"}, "model_not_found", ["nosuchmodel"]),
}


def assert_nothing_left(workspace: Workspace) -> None:
    assert list(workspace.home.datasets.iterdir()) == []
    assert workspace.store.artifacts("dataset") == []


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_file_or_argument_is_refused_and_leaves_nothing(workspace: Workspace, write: Write, case: str) -> None:
    name, content, arguments, code, words = BAD_FILES[case]
    file = write(name, content)
    with pytest.raises(TunewrightError) as raised:
        prepare.prepare(workspace, file, **arguments)
    assert raised.value.code == code
    for word in words:
        assert word in str(raised.value)
    assert len(str(raised.value)) < 1500
    assert_nothing_left(workspace)


BAD_SOURCES: dict[str, tuple[Any, str, list[str]]] = {
    "a misspelt file": ("{data}/trian.json", "source_not_found", ["Nearest: train.json"]),
    "a missing folder": ("{data}/nowhere/x/train.json", "source_not_found", ["{data} does"]),
    "a folder without data": ("{data}/empty", "no_data_files", [".jsonl"]),
    # Not below {data}: of a long glob only the beginning is said.
    "a glob without match": ("nothing/*.csv", "glob_without_match", ["'nothing/*.csv'"]),
    "a broken glob": ("{data}/**x/*.csv", "invalid_source", ["**"]),
    "a Hub id": ("tatsu-lab/alpaca", "hub_unreachable", ["tatsu-lab/alpaca", "HF_ENDPOINT"]),
    "content in place of a path": ('{"instruction": "x"}' * 400, "invalid_source", ["no path"]),
    "an empty text": ("  ", "no_source", []),
    "an empty list": ([], "no_source", []),
    "a weight of zero": ([{"source": "{data}/train.json", "weight": 0}], "invalid_weight", ["is 0"]),
    "a weight on one of two": (
        ["{data}/train.json", {"source": "{data}/train.json", "weight": 2}], "weight_missing", ["has no weight"],
    ),
    "an unknown key": ([{"source": "{data}/train.json", "share": 2}], "invalid_source", ["share"]),
}  # fmt: skip


def placed(value: Any, data: Path) -> Any:
    """`value` with the test's folder in place of `{data}`, in every text of it."""
    return json.loads(json.dumps(value).replace("{data}", str(data)))


@pytest.mark.parametrize("case", BAD_SOURCES)
def test_a_bad_source_is_refused_and_leaves_nothing(workspace: Workspace, write: Write, case: str) -> None:
    source, code, words = BAD_SOURCES[case]
    data = write("train.json", [GOOD]).parent
    (data / "empty").mkdir()
    with pytest.raises(TunewrightError) as raised:
        prepare.prepare(workspace, placed(source, data))
    assert raised.value.code == code
    for word in words:
        assert placed(word, data) in str(raised.value)
    assert_nothing_left(workspace)


def test_a_weighted_source_without_usable_rows_is_named(workspace: Workspace, write: Write) -> None:
    good = write("good.json", [GOOD])
    barren = write("barren.json", [{"instruction": "", "output": ""}])
    with pytest.raises(TunewrightError, match=r"barren\.json") as raised:
        prepare.prepare(workspace, [{"source": str(path), "weight": 1} for path in (good, barren)])
    assert raised.value.code == "dataset_empty"
    assert_nothing_left(workspace)


def test_an_error_between_the_two_splits_leaves_nothing(
    workspace: Workspace, write: Write, alpaca: Alpaca, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = splits.write_split

    def failing(staged: Path, target: Path, kind: Kind, wanted: Any) -> None:
        real(staged, target, kind, wanted)
        assert target.stat().st_size > 0
        if target.name == "eval.parquet":
            raise KeyboardInterrupt

    monkeypatch.setattr(splits, "write_split", failing)
    with pytest.raises(KeyboardInterrupt):
        prepare.prepare(workspace, write("a.json", alpaca(20)))
    assert_nothing_left(workspace)


def test_a_disk_that_fills_up_is_said_and_leaves_nothing(
    workspace: Workspace, write: Write, alpaca: Alpaca, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(staged: Path, target: Path, kind: Kind, wanted: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(splits, "write_split", full)
    with pytest.raises(NoSpace, match="no_disk_space"):
        prepare.prepare(workspace, write("a.json", alpaca(20)))
    assert_nothing_left(workspace)


def test_a_file_that_is_no_data_beside_others_is_refused_with_the_call_for_those(
    workspace: Workspace, write: Write, alpaca: Alpaca
) -> None:
    rows = [write("export/a.json", alpaca(3)), write("export/b.json", alpaca(3))]
    folder = write("export/users.json", [{"colour": "red", "size": 3}]).parent
    with pytest.raises(InvalidInput, match="unknown_layout") as refusal:
        prepare.prepare(workspace, folder, seed=5)
    assert refusal.value.next == f'prepare_dataset(source=["{rows[0]}", "{rows[1]}"], seed=5)'
    write("export/0.json", [{"colour": "red", "size": 3}])
    with pytest.raises(InvalidInput, match="unknown_layout") as refusal:
        prepare.prepare(workspace, folder)
    assert "b.json" not in refusal.value.next, "none was recognised: all may be of this layout"


def test_a_dataset_that_the_store_refuses_leaves_no_folder(workspace: Workspace, write: Write, alpaca: Alpaca) -> None:
    workspace.store.execute(
        "CREATE TRIGGER refuse BEFORE INSERT ON artifacts BEGIN SELECT RAISE(ABORT, 'refused by the test'); END"
    )
    with pytest.raises(Exception, match="refused by the test"):
        prepare.prepare(workspace, write("a.json", alpaca(20)))
    assert_nothing_left(workspace)


def test_what_progress_raises_stops_the_work_and_leaves_nothing(
    workspace: Workspace, write: Write, alpaca: Alpaca
) -> None:
    def stop(done: float, total: float, message: str) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        prepare.prepare(workspace, write("a.json", alpaca(20)), on_progress=stop)
    assert_nothing_left(workspace)


def test_a_killed_preparation_leaves_no_dataset(workspace: Workspace, write: Write, alpaca: Alpaca) -> None:
    program = (
        "import os, signal, sys\n"
        "from tunewright.pipeline.data.prepare import prepare\n"
        "from tunewright.pipeline.workspace import Workspace\n"
        "def kill(done, total, message):\n"
        "    if message == 'Describing the rows': os.kill(os.getpid(), signal.SIGKILL)\n"
        "prepare(Workspace.open(sys.argv[1]), sys.argv[2], on_progress=kill)\n"
    )
    file = write("a.json", alpaca(20))
    arguments = [sys.executable, "-P", "-c", program, str(workspace.home.root), str(file)]
    assert subprocess.run(arguments, check=False, timeout=60).returncode < 0
    left = list(workspace.home.datasets.iterdir())
    assert len(left) == 1 and left[0].name.startswith(".partial-")
    assert workspace.store.artifacts("dataset") == []
    with pytest.raises(NotFound):
        inspection.inspect(workspace, "ds-a")


def test_the_idle_server_loads_no_pyarrow_and_a_working_one_no_torch(workspace: Workspace, write: Write) -> None:
    program = (
        "import sys\n"
        "from tunewright.pipeline.data import inspection, request\n"
        "from tunewright.pipeline.workspace import Workspace\n"
        "assert not {'pyarrow', 'jinja2', 'tokenizers', 'numpy', 'sklearn'} & set(sys.modules), 'import'\n"
        "from tunewright.pipeline.data import prepare\n"
        "dataset = prepare.prepare(Workspace.open(sys.argv[1]), sys.argv[2], model='toy')\n"
        "inspection.inspect(Workspace.open(sys.argv[1]), dataset['id'], view='mask', model='toy')\n"
        "assert not {'torch', 'transformers', 'datasets', 'unsloth'} & set(sys.modules), 'work'\n"
    )
    arguments = [sys.executable, "-P", "-c", program, str(workspace.home.root), str(write("a.json", [GOOD]))]
    done = subprocess.run(arguments, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_the_call_to_make_instead_keeps_what_was_asked_for(workspace: Workspace, write: Write) -> None:
    file = write("a.json", [{"customer": "Where is it?", "agent": "On its way."}])
    with pytest.raises(InvalidInput) as refused:
        prepare.prepare(workspace, str(file), model="toy", eval_fraction=0.2, format="alpaca")
    guessed = 'mapping={"prompt": "customer", "response": "agent"}'
    assert refused.value.next == f'prepare_dataset(source="{file}", {guessed}, eval_fraction=0.2, model="toy")'
    with pytest.raises(InvalidInput) as refused:
        prepare.prepare(workspace, str(file), mapping={"prompt": "customer", "response": "agnet"}, max_rows=9)
    assert refused.value.next == f'prepare_dataset(source="{file}", {guessed}, max_rows=9)'
