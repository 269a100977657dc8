"""What is validated on without saying so, and what is refused before a job is started."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tunewright.pipeline import domains, toy
from tunewright.pipeline.data import splits
from tunewright.pipeline.data.rows import Kind, Record
from tunewright.pipeline.errors import InvalidInput, NotFound, TunewrightError
from tunewright.pipeline.ids import new_id
from tunewright.pipeline.store import Row
from tunewright.pipeline.validation import familiar, request, samples
from tunewright.pipeline.workspace import Workspace

AddDataset = Callable[..., str]
AddAdapter = Callable[..., Row]


def conversation(question: str, answer: str = "Yes.") -> Record:
    return Record("sft", [{"role": "user", "content": question}, {"role": "assistant", "content": answer}])


TRAIN = [conversation(f"Is {number} a number?") for number in range(8)]
EVAL = [conversation(f"Is {letter} a letter?") for letter in "abc"]


@pytest.fixture
def add_dataset(workspace: Workspace) -> AddDataset:
    def add(train: list[Record], evaluation: list[Record], kind: Kind = "sft") -> str:
        dataset_id = new_id("dataset", "numbers")
        folder = workspace.home.datasets / dataset_id
        folder.mkdir()
        for split, rows in ((splits.TRAIN, train), (splits.EVAL, evaluation)):
            splits.write(splits.split_file(folder, split), kind, rows)
        document = {"path": str(folder), "kind": kind}
        workspace.store.add_artifact(dataset_id, "dataset", "numbers", document, parents=[])
        return dataset_id

    return add


@pytest.fixture
def add_adapter(workspace: Workspace, toy_folder: Path) -> AddAdapter:
    """An adapter of the toy whose weights nobody loads here."""
    shutil.copytree(toy_folder, toy.folder(workspace.home))
    (toy.folder(workspace.home) / "model.safetensors").touch()

    def add(*parents: str) -> Row:
        adapter_id = new_id("adapter", "numbers")
        folder = workspace.home.adapters / adapter_id
        shutil.copytree(toy_folder, folder)
        (folder / "adapter_model.safetensors").touch()
        document = {
            "path": str(folder), "form": "lora", "base_model": "toy", "base_path": str(toy.folder(workspace.home)),
            "dataset_id": parents[0] if parents else "ds-gone-0000", "training": {"load_in_4bit": False},
            "max_seq_length": 256, "enable_thinking": False,
        }  # fmt: skip
        workspace.store.add_artifact(adapter_id, "adapter", "numbers", document, parents=list(parents))
        return workspace.store.artifact(adapter_id)

    return add


def test_the_rows_held_out_of_the_adapters_own_dataset_are_the_default(
    workspace: Workspace, add_dataset: AddDataset, add_adapter: AddAdapter
) -> None:
    adapter = add_adapter(own := add_dataset(TRAIN, EVAL))
    spec = request.check(workspace, adapter_id=adapter["id"][:-1])
    assert spec == {
        "adapter_id": adapter["id"], "dataset_id": own, "split": "eval", "prompts": None, "domain": None,
        "max_samples": 50, "max_new_tokens": 512, "pairs": 20, "name": "numbers",
    }  # fmt: skip


def test_training_rows_stand_in_where_none_was_held_out(
    workspace: Workspace, add_dataset: AddDataset, add_adapter: AddAdapter
) -> None:
    adapter = add_adapter(add_dataset(TRAIN, []))
    assert request.check(workspace, adapter_id=adapter["id"])["split"] == "train"
    other = add_dataset([], EVAL)
    spec = request.check(workspace, adapter_id=adapter["id"], dataset_id=other[:-1])
    assert (spec["dataset_id"], spec["split"]) == (other, "eval")


def test_a_users_own_pack_is_named_by_its_whole_path(
    workspace: Workspace, add_adapter: AddAdapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = add_adapter()
    built_in = domains.available()[0]
    shutil.copyfile(domains.path_of(built_in), tmp_path / "mine.yaml")
    monkeypatch.chdir(tmp_path)
    spec = request.check(workspace, adapter_id=adapter["id"], prompts=["Hi?"], domain="mine.yaml")
    assert spec["domain"] == str(tmp_path / "mine.yaml")
    assert (spec["dataset_id"], spec["split"], spec["prompts"]) == (None, None, ["Hi?"])
    assert request.check(workspace, adapter_id=adapter["id"], prompts=["Hi?"], domain=built_in)["domain"] == built_in


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ({"max_samples": 0}, "out_of_bounds"),
        ({"max_new_tokens": 0}, "out_of_bounds"),
        ({"pairs": -1}, "out_of_bounds"),
        ({"prompts": []}, "invalid_prompts"),
        ({"prompts": ["Hi?", " "]}, "invalid_prompts"),
        ({"prompts": ["Hi?", "Bye? " * 3000]}, "prompt_too_long"),
        ({"prompts": ["Hi?"], "max_new_tokens": 2048}, "prompt_too_long"),
        ({"prompts": ["Hi?"], "dataset_id": "ds-numbers-0000"}, "dataset_or_prompts"),
        ({"dataset_id": "ds-numbers-0000"}, "artifact_not_found"),
        ({"adapter_id": "ad-nobody-0000"}, "artifact_not_found"),
        ({"max_new_tokens": 2048}, "no_samples"),
    ],
)
def test_what_cannot_be_done_is_refused_with_the_next_call(
    workspace: Workspace, add_dataset: AddDataset, add_adapter: AddAdapter, arguments: dict[str, Any], code: str
) -> None:
    adapter = add_adapter(add_dataset(TRAIN, EVAL))
    with pytest.raises(TunewrightError) as refusal:
        request.check(workspace, **{"adapter_id": adapter["id"], **arguments})
    assert isinstance(refusal.value, InvalidInput | NotFound)
    assert refusal.value.code == code
    assert "(" in refusal.value.next and refusal.value.allowed


def test_a_dataset_that_is_gone_or_has_no_usable_row_is_refused(
    workspace: Workspace, add_dataset: AddDataset, add_adapter: AddAdapter
) -> None:
    with pytest.raises(NotFound, match="dataset_gone"):
        request.check(workspace, adapter_id=add_adapter()["id"])
    unwanted = [Record("kto", TRAIN[0].messages, label=False)]
    adapter = add_adapter(add_dataset(unwanted, [], "kto"))
    with pytest.raises(InvalidInput, match=r"no_samples.*1 unwanted answer"):
        request.check(workspace, adapter_id=adapter["id"])
    emptied = add_dataset(TRAIN, EVAL)
    shutil.rmtree(workspace.home.datasets / emptied)
    with pytest.raises(NotFound, match="files_gone"):
        request.check(workspace, adapter_id=adapter["id"], dataset_id=emptied)


def asked(*questions: str) -> list[samples.Sample]:
    return [
        samples.Sample(i, [{"role": "user", "content": text}], [1], None, False, None)
        for i, text in enumerate(questions)
    ]


def test_samples_that_were_met_in_training_are_counted_word_for_word(
    workspace: Workspace, add_dataset: AddDataset, add_adapter: AddAdapter
) -> None:
    adapter = add_adapter(own := add_dataset(TRAIN, EVAL))
    posed = asked("Is 3 a number?", "is 4 a  number?", "Is 99 a number?", "Is 3 a number, really?", "Is a a letter?")
    assert familiar.count(workspace, adapter, posed, None, lambda: None) == 2
    # The dataset's own eval rows were kept out of its training rows when it was made.
    assert familiar.count(workspace, adapter, posed, own, lambda: None) == 0


def test_the_data_of_the_adapter_that_was_gone_on_from_count_too(
    workspace: Workspace, add_dataset: AddDataset, add_adapter: AddAdapter
) -> None:
    before = add_adapter(old := add_dataset(TRAIN, []))
    pair = Record(
        "preference", [{"role": "user", "content": "Tea?"}], chosen=[{"role": "assistant", "content": "Yes."}],
        rejected=[{"role": "assistant", "content": "No."}],
    )  # fmt: skip
    adapter = add_adapter(new := add_dataset([pair], [], "preference"), before["id"])
    assert {row["id"] for row in familiar.trained_on(workspace, adapter)} == {old, new}
    assert familiar.count(workspace, adapter, asked("Is 3 a number?", "Tea?", "Coffee?"), None, lambda: None) == 2


def test_the_search_can_be_stopped(workspace: Workspace, add_dataset: AddDataset, add_adapter: AddAdapter) -> None:
    adapter = add_adapter(add_dataset(TRAIN, []))

    def stop() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        familiar.count(workspace, adapter, asked("Tea?"), None, stop)
