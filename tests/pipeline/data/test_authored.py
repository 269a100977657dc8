"""Examples that an agent writes: checked, linked to their chunk, appended whole or not at all."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tunewright.pipeline.data import authored, prepare, splits
from tunewright.pipeline.data.rows import Record
from tunewright.pipeline.documents import reading
from tunewright.pipeline.errors import Conflict, InvalidInput, NoSpace, NotFound
from tunewright.pipeline.files import read_json
from tunewright.pipeline.store import Row
from tunewright.pipeline.workspace import Workspace

SUBJECTS = ("cobalt", "kaolin", "feldspar", "grog", "celadon", "raku", "porcelain", "engobe", "majolica", "sgraffito")
LONG = {
    "prompt": "How is a large kiln loaded so that the heat reaches every shelf evenly?",
    "response": "Begin at the back with the tallest ware, leave two fingers between pots, stagger the shelves, keep "
    "dense loads away from the burner ports, put witness cones in front of both spyholes, and close the door slowly.",
}
CHILD_TIMEOUT_S = 120


def example(number: int) -> dict[str, str]:
    """One of a thousand that are not alike."""
    first, second, third = (SUBJECTS[number // power % 10] for power in (1, 10, 100))
    return {
        "prompt": f"What do {first}, {second} and {third} share?",
        "response": f"{third} goes before {first}: {number}.",
    }


def stored(row: Row | None) -> dict[str, list[Record]]:
    assert row is not None
    folder = Path(row["document"]["path"])
    return {split: list(splits.read(folder / f"{split}.parquet")) for split in ("train", "eval")}


def prompts(row: Row | None) -> list[str]:
    held = stored(row)
    return [record.prompt() for record in held["train"] + held["eval"]]


def folders(workspace: Workspace) -> list[str]:
    return sorted(path.name for path in workspace.home.datasets.iterdir())


def test_a_new_name_makes_a_dataset_and_its_name_or_id_finds_it_again(workspace: Workspace) -> None:
    made = authored.append(workspace, "Glazes", [example(0)])
    assert (made.accepted, made.refused) == (1, [])
    assert made.dataset_id is not None and made.dataset_id.startswith("ds-glazes-")
    for known in ("Glazes", " Glazes ", made.dataset_id, made.dataset_id[:-1]):
        again = authored.append(workspace, known, [example(len(prompts(workspace.store.artifact(made.dataset_id))))])
        assert again.dataset_id == made.dataset_id
    assert len(prompts(again.row)) == 5
    assert len(workspace.store.artifacts("dataset")) == 1
    assert folders(workspace) == [f"{made.dataset_id}.r5"]


def test_a_name_that_begins_an_id_is_a_name(workspace: Workspace) -> None:
    first = authored.append(workspace, "other", [example(0)])
    second = authored.append(workspace, "ds", [example(1)])
    assert first.dataset_id != second.dataset_id


def test_an_unknown_id_makes_nothing(workspace: Workspace) -> None:
    with pytest.raises(NotFound, match="No dataset has the id 'ds-nothing-0000'"):
        authored.append(workspace, "ds-nothing-0000", [example(0)])
    with pytest.raises(InvalidInput, match="no_dataset"):
        authored.append(workspace, "  ", [example(0)])
    assert workspace.store.artifacts("dataset") == []


@pytest.mark.parametrize(
    ("given", "messages"),
    [
        ({"prompt": "Q?", "response": "A."}, ["Q?", "A."]),
        ({"instruction": "Q?", "input": "", "output": "A."}, ["Q?", "A."]),
        ({"question": "Q?", "answer": "A."}, ["Q?", "A."]),
        ({"messages": [{"role": "user", "content": "Q?"}, {"role": "assistant", "content": "A."}]}, ["Q?", "A."]),
        ({"conversations": [{"from": "human", "value": "Q?"}, {"from": "gpt", "value": "A."}]}, ["Q?", "A."]),
    ],
)
def test_an_example_may_have_any_known_layout(workspace: Workspace, given: dict[str, Any], messages: list[str]) -> None:
    made = authored.append(workspace, "glazes", [example(0), given])
    (_, record) = stored(made.row)["train"]
    assert [message["content"] for message in record.messages] == messages


def test_pairs_make_a_preference_dataset(workspace: Workspace) -> None:
    pair = {"prompt": "Is lead safe?", "chosen": "No, lead is toxic.", "rejected": "It is fine."}
    made = authored.append(workspace, "pairs", [pair])
    assert made.row is not None and made.row["document"]["kind"] == "preference"
    (record,) = stored(made.row)["train"]
    assert (record.chosen[0]["content"], record.rejected[0]["content"]) == (pair["chosen"], pair["rejected"])


TURN = {"role": "user", "content": "And now?"}


@pytest.mark.parametrize(
    ("bad", "reason", "why"),
    [
        ({"prompt": "Q?", "response": " "}, "empty", "the answer is blank"),
        ({"prompt": "", "response": ""}, "empty", "blank"),
        ({"colour": "red"}, "unknown_layout", "colour"),
        ({}, "unknown_layout", "no objects with named fields"),
        ({"messages": [TURN]}, "empty", "no answer"),
        ({"messages": [TURN, TURN, {"role": "assistant", "content": "A."}]}, "role_order", "in a row"),
        ({"prompt": "Q?", "response": "A.<|im_end|>"}, "control_tokens", "'<|im_end|>'"),
        ({"prompt": "Who is {{name}}?", "response": "A."}, "placeholders", "{{name}}"),
        (example(1), "duplicate", "has this example already"),
        ({"prompt": f"  {example(1)['prompt']}", "response": example(1)["response"]}, "duplicate", "already"),
        ({"prompt": LONG["prompt"], "response": f"{LONG['response']} Always"}, "near_duplicate", "How is a large kiln"),
        ({"text": "Raw text."}, "another_kind", "the example is text data, the dataset holds sft data"),
        ({"prompt": "Q?", "response": "A.", "source_chunk": 7}, "malformed", "source_chunk"),
    ],
)
def test_a_bad_example_comes_back_with_the_reason_and_the_others_are_kept(
    workspace: Workspace, bad: dict[str, Any], reason: str, why: str
) -> None:
    made = authored.append(workspace, "glazes", [example(1), LONG, bad, example(2)])
    assert made.accepted == 3
    ((index, found, text),) = [tuple(refusal.values()) for refusal in made.refused]
    assert (index, found) == (2, reason)
    assert why in text
    assert len(prompts(made.row)) == 3


def test_duplicates_of_earlier_calls_are_refused_too(workspace: Workspace) -> None:
    authored.append(workspace, "glazes", [example(1)])
    made = authored.append(workspace, "glazes", [example(1), example(2)])
    assert [refusal["reason"] for refusal in made.refused] == ["duplicate"]
    assert len(prompts(made.row)) == 2


def test_without_an_accepted_example_nothing_is_made_or_changed(workspace: Workspace) -> None:
    nothing = authored.append(workspace, "glazes", [{"prompt": "Q?", "response": ""}])
    assert (nothing.row, nothing.dataset_id, nothing.accepted) == (None, None, 0)
    assert folders(workspace) == []
    made = authored.append(workspace, "glazes", [example(1)])
    unchanged = authored.append(workspace, "glazes", [example(1)])
    assert unchanged.row == made.row


def test_examples_are_linked_to_their_chunk(workspace: Workspace, tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("# Clay\n\nClay is plastic.", encoding="utf-8")
    (chunk,) = reading.read(workspace, str(tmp_path / "a.md"))
    (tmp_path / "b.md").write_text("# Glaze\n\nGlaze is glass.", encoding="utf-8")
    (other,) = reading.read(workspace, str(tmp_path / "b.md"))
    examples = [example(1), example(2) | {"source_chunk": other.id}, example(9) | {"source_chunk": "ch-nonsense"}]
    made = authored.append(workspace, "glazes", examples, chunk.id)
    assert [record.source_chunk for record in stored(made.row)["train"]] == [chunk.id, other.id]
    assert [(refused["index"], refused["reason"]) for refused in made.refused] == [(2, "unknown_chunk")]
    with pytest.raises(NotFound, match="chunk_not_found"):
        authored.append(workspace, "glazes", [example(3)], "ch-0123456789-800-1")
    assert len(prompts(workspace.store.artifact(made.row["id"] if made.row else ""))) == 2


def test_one_question_in_twenty_is_held_out_and_stays_so(workspace: Workspace) -> None:
    for begin in range(0, 400, 50):
        grown = authored.append(workspace, "a", [example(number) for number in range(begin, begin + 50)])
    held = stored(grown.row)
    assert 8 <= len(held["eval"]) <= 40
    at_once = stored(authored.append(workspace, "b", [example(number) for number in range(400)]).row)
    assert {record.prompt() for record in at_once["eval"]} == {record.prompt() for record in held["eval"]}
    first = {example(number)["prompt"] for number in range(authored.MIN_ROWS_FOR_EVAL)}
    assert not first & {record.prompt() for record in held["eval"]}


def test_what_asks_the_same_stands_in_the_same_split(workspace: Workspace) -> None:
    made = authored.append(workspace, "a", [example(number) for number in range(300)])
    held = stored(made.row)
    assert held["eval"]
    for split, record in (("eval", held["eval"][0]), ("train", held["train"][0])):
        other = {"prompt": record.prompt(), "response": "Neither is needed where wood ash does the fluxing."}
        again = stored(authored.append(workspace, "a", [other]).row)
        assert record.prompt() in [one.prompt() for one in again[split][-1:]]


def test_a_prepared_dataset_is_appended_to_and_keeps_its_history(
    workspace: Workspace, write: Callable[[str, Any], Path], alpaca: Callable[[int], list[dict[str, str]]]
) -> None:
    path = write("a.jsonl", [*alpaca(30), {"instruction": "", "input": "", "output": "x"}])
    prepared = prepare.prepare(workspace, str(path))
    before = read_json(Path(prepared["document"]["path"]) / "manifest.json")
    made = authored.append(workspace, prepared["id"], [example(1), example(2)])
    assert made.row is not None
    document, folder = made.row["document"], Path(made.row["document"]["path"])
    assert document["train_rows"] + document["eval_rows"] == 32
    assert document["dropped"] == prepared["document"]["dropped"] != {}
    assert document["sha256"] != prepared["document"]["sha256"]
    assert {"topics", "leakage"} & set(prepared["document"]) and not {"topics", "leakage"} & set(document)
    after = read_json(folder / "manifest.json")
    assert (after["files"], after["arguments"], after["source"]) == (before["files"], before["arguments"], str(path))
    assert after["added"] == [{"by": "add_examples", "rows": 2}]
    assert after["sha256"] == document["sha256"]
    assert sorted(entry.name for entry in folder.iterdir()) == [
        "eval.parquet", "manifest.json", "report.html", "report.json", "train.parquet",
    ]  # fmt: skip
    assert folders(workspace) == [folder.name]


def use_by_job(workspace: Workspace, dataset_id: str, state: str) -> None:
    workspace.store.execute(
        "INSERT INTO jobs(id, kind, state, needs_device, spec, created_at) VALUES (?,?,?,0,?,?)",
        "job-x-0000", "finetune", state, json.dumps({"dataset_id": dataset_id}), time.time(),
    )  # fmt: skip


@pytest.mark.parametrize("state", ["queued", "running", "interrupted"])
def test_a_dataset_that_a_job_uses_is_left_alone(workspace: Workspace, state: str) -> None:
    made = authored.append(workspace, "glazes", [example(1)])
    use_by_job(workspace, str(made.dataset_id), state)
    with pytest.raises(Conflict, match=r"dataset_in_use: .* is used by job-x-0000.*add_examples\(dataset=\"glazes-2\""):
        authored.append(workspace, "glazes", [example(2)])
    assert workspace.store.artifact(str(made.dataset_id)) == made.row


def test_a_dataset_whose_job_has_ended_can_grow(workspace: Workspace) -> None:
    made = authored.append(workspace, "glazes", [example(1)])
    use_by_job(workspace, str(made.dataset_id), "failed")
    assert authored.append(workspace, "glazes", [example(2)]).accepted == 1


def test_a_dataset_that_an_adapter_was_trained_on_is_left_alone(workspace: Workspace) -> None:
    made = authored.append(workspace, "glazes", [example(1)])
    workspace.store.add_artifact("ad-x-0000", "adapter", "x", {}, parents=[str(made.dataset_id)])
    with pytest.raises(Conflict, match=r"dataset_in_use: .* is used by ad-x-0000"):
        authored.append(workspace, str(made.dataset_id), [example(2)])


def test_a_job_that_begins_while_examples_are_written_wins(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = authored.append(workspace, "glazes", [example(1)])
    write = splits.write

    def submitted_meanwhile(*arguments: Any) -> int:
        if not workspace.store.rows("SELECT * FROM jobs"):
            use_by_job(workspace, str(made.dataset_id), "queued")
        return write(*arguments)

    monkeypatch.setattr(splits, "write", submitted_meanwhile)
    with pytest.raises(Conflict, match="dataset_in_use"):
        authored.append(workspace, "glazes", [example(2)])
    assert workspace.store.artifact(str(made.dataset_id)) == made.row
    assert folders(workspace) == [f"{made.dataset_id}.r1"]


def test_a_dataset_deleted_while_examples_are_written_stays_deleted(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = authored.append(workspace, "glazes", [example(1)])
    write = splits.write

    def deleted_meanwhile(*arguments: Any) -> int:
        workspace.store.execute("DELETE FROM artifacts WHERE id=?", made.dataset_id)
        return write(*arguments)

    monkeypatch.setattr(splits, "write", deleted_meanwhile)
    with pytest.raises(NotFound, match="was deleted meanwhile"):
        authored.append(workspace, "glazes", [example(2)])
    assert workspace.store.artifacts("dataset") == []


def test_too_many_rows_are_refused(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(authored, "MAX_ROWS", 1)
    authored.append(workspace, "glazes", [example(1), example(2)])
    with pytest.raises(Conflict, match=r"dataset_too_large: .* has 2 rows; examples are added to at most 1"):
        authored.append(workspace, "glazes", [example(3)])


def test_a_full_disk_is_said_before_anything_is_written(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 1})())
    with pytest.raises(NoSpace, match="Adding the examples needs"):
        authored.append(workspace, "glazes", [example(1)])
    assert folders(workspace) == []


def test_a_moved_home_loses_nothing(workspace: Workspace) -> None:
    made = authored.append(workspace, "glazes", [example(1)])
    moved = workspace.home.root.with_name("moved")
    workspace.store.close()
    workspace.home.root.rename(moved)
    authored.append(Workspace.open(moved), "others", [example(2)])
    assert (moved / "datasets" / f"{made.dataset_id}.r1" / "train.parquet").exists()


# Appends, and dies by SIGKILL when the function named in argv[2] is called for the argv[3]th time, before its work.
DYING = """
import os, shutil, signal, sys
from tunewright.pipeline import files
from tunewright.pipeline.data import authored, describe, splits
from tunewright.pipeline.store import Store
from tunewright.pipeline.workspace import Workspace
from pathlib import Path
workspace = Workspace.open(sys.argv[1])
owner, name = {
    "write": (splits, "write"), "describe": (describe, "write"), "rename": (Path, "rename"),
    "switch": (authored, "_switch"), "insert": (Store, "add_artifact"), "remove": (authored.shutil, "rmtree"),
}[sys.argv[2]]
real, left = getattr(owner, name), [int(sys.argv[3])]
def deadly(*arguments, **keywords):
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*arguments, **keywords)
setattr(owner, name, deadly)
import json
authored.append(workspace, "glazes", json.loads(sys.argv[4]))
"""


def die_appending(workspace: Workspace, place: str, call: int, examples: list[dict[str, str]]) -> None:
    ended = subprocess.run(
        [sys.executable, "-P", "-c", DYING, str(workspace.home.root), place, str(call), json.dumps(examples)],
        timeout=CHILD_TIMEOUT_S, check=False, capture_output=True, encoding="utf-8",
    )  # fmt: skip
    assert ended.returncode == -signal.SIGKILL, ended.stderr


@pytest.mark.parametrize(
    ("place", "call", "grew"),
    [
        ("write", 1, False),
        ("write", 2, False),
        ("describe", 1, False),
        ("rename", 1, False),
        ("switch", 1, False),
        # The first two calls of rmtree are those of files.new_folder, the third removes the old folder.
        ("remove", 3, True),
    ],
)
def test_a_kill_leaves_the_dataset_before_or_after(workspace: Workspace, place: str, call: int, grew: bool) -> None:
    made = authored.append(workspace, "glazes", [example(1)])
    die_appending(workspace, place, call, [example(2), example(3)])
    left = workspace.store.artifact(str(made.dataset_id))
    prompts_before = prompts(left)
    assert prompts_before == [example(n)["prompt"] for n in ((1, 2, 3) if grew else (1,))]
    assert left["document"]["train_rows"] == len(prompts_before)
    after = authored.append(workspace, "glazes", [example(4)])
    assert prompts(after.row) == [*prompts_before, example(4)["prompt"]]
    assert folders(workspace) == [f"{made.dataset_id}.r{3 if grew else 2}"]


@pytest.mark.parametrize(("place", "call"), [("write", 1), ("rename", 1), ("insert", 1)])
def test_a_kill_while_the_first_examples_are_stored_leaves_no_dataset(
    workspace: Workspace, place: str, call: int
) -> None:
    die_appending(workspace, place, call, [example(1)])
    assert workspace.store.artifacts("dataset") == []
    made = authored.append(workspace, "glazes", [example(2)])
    assert folders(workspace) == [f"{made.dataset_id}.r1"]


APPENDING = """
import json, sys
from tunewright.pipeline.data import authored
from tunewright.pipeline.workspace import Workspace
workspace = Workspace.open(sys.argv[1])
sys.stdin.readline()
for example in json.loads(sys.argv[2]):
    assert authored.append(workspace, "glazes", [example]).accepted == 1
"""


def test_two_processes_that_append_at_once_lose_nothing(workspace: Workspace) -> None:
    shares = [[example(number) for number in range(begin, begin + 8)] for begin in (0, 100)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-P", "-c", APPENDING, str(workspace.home.root), json.dumps(share)], stdin=subprocess.PIPE
        )
        for share in shares
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(b"\n")
        process.stdin.flush()
    for process in processes:
        process.communicate(timeout=CHILD_TIMEOUT_S)
        assert process.returncode == 0
    (row,) = workspace.store.artifacts("dataset")
    assert sorted(prompts(row)) == sorted(one["prompt"] for share in shares for one in share)
    assert folders(workspace) == [f"{row['id']}.r16"]


def test_the_same_calls_give_the_same_content(workspace: Workspace, tmp_path: Path) -> None:
    other = Workspace.open(tmp_path / "other")
    hashes: list[str] = []
    for home in (workspace, other):
        authored.append(home, "glazes", [example(1), example(2)])
        row = authored.append(home, "glazes", [example(3)]).row
        assert row is not None
        hashes.append(row["document"]["sha256"])
    assert hashes[0] == hashes[1]
