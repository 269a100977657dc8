"""The whole gate over a real merge and real files: what it says of a sound export, and what its failure stops."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tunewright.pipeline.context import JobContext
from tunewright.pipeline.data import splits
from tunewright.pipeline.data.rows import Record
from tunewright.pipeline.errors import Cancelled, Conflict
from tunewright.pipeline.exporting import parity
from tunewright.pipeline.exporting.parity import cases
from tunewright.pipeline.publishing import gate
from tunewright.pipeline.store import Row
from tunewright.pipeline.workspace import Workspace

SECRET = "row-marker"


def add_dataset(workspace: Workspace, folder: Path, rows: dict[str, list[Record]]) -> str:
    folder.mkdir()
    for split, records in rows.items():
        splits.write(splits.split_file(folder, split), records[0].kind, records)
    workspace.store.add_artifact("ds-own-0000", "dataset", "own", {"path": str(folder)}, parents=[])
    return "ds-own-0000"


def conversation(question: str, answer: str) -> Record:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return Record(kind="sft", messages=turns)


@pytest.fixture(scope="module")
def measured(
    tiny: Any, machine: Workspace, base: Path, ggufs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[JobContext, dict[str, Any]]:
    """A full fine-tune with every type of file, one of them cut short."""
    rows = {
        "eval": [conversation(f"{SECRET} {number}?", f"The answer to {number} is {number}.") for number in range(4)]
    }
    dataset = add_dataset(machine, tmp_path_factory.mktemp("data") / "own", rows)
    row = tiny.add_adapter(machine, base, base, form="full", dataset_id=dataset)
    cut = tmp_path_factory.mktemp("cut") / "cut.gguf"
    cut.write_bytes(ggufs["q5_k_m"].read_bytes()[:-5000])
    files = {f"gguf:{name}": file for name, file in ggufs.items()} | {"gguf:q5_k_m": cut}
    context: JobContext = tiny.start(machine, {})
    document = parity.measure(context, adapter=row, base=base, source=base, merged=base, adapter_scale=1.0, ggufs=files)
    return context, document


def test_every_type_is_measured_and_only_the_broken_one_fails(measured: tuple[JobContext, dict[str, Any]]) -> None:
    document = measured[1]
    outputs = document["outputs"]
    assert [name for name, found in outputs.items() if not found["passed"]] == ["gguf:q5_k_m"]
    (failure,) = document["failures"]
    assert failure.startswith("gguf:q5_k_m: gguf_not_loadable") and not document["passed"]
    assert outputs["gguf:f16"]["kl"] < outputs["gguf:q8_0"]["kl"] < outputs["gguf:q4_k_m"]["kl"]
    assert outputs["gguf:f16"]["greedy"]["of"] == len(document["cases"]["asked"]) == cases.ASKED
    for name, found in outputs.items():
        assert name == "gguf:q5_k_m" or (found["prompts"]["equal"] and found["token_ids"]["equal"])


def test_the_reference_stands_in_numbers_that_can_be_checked(measured: tuple[JobContext, dict[str, Any]]) -> None:
    reference = measured[1]["reference"]
    exact = measured[1]["outputs"]["gguf:f16"]
    assert exact["eval_loss"] == pytest.approx(reference["eval_loss"], abs=0.01)
    assert 0 <= exact["kl"] < reference["noise_floor"]["kl"]
    assert reference["answers"] is not None and len(reference["answers"]) == cases.ASKED
    assert reference["scored_tokens"] > 20 and measured[1]["merge"] is None


def test_the_rows_stay_out_of_the_summary(measured: tuple[JobContext, dict[str, Any]]) -> None:
    document = measured[1]
    assert SECRET in json.dumps(document, allow_nan=False)
    told = parity.summary(document)
    assert SECRET not in json.dumps(told, allow_nan=False)
    assert told["outputs"]["gguf:q8_0"]["greedy_of"] == cases.ASKED
    assert told["recommendation"]["output"] in document["outputs"]


def test_what_failed_is_not_published_and_what_passed_is(measured: tuple[JobContext, dict[str, Any]]) -> None:
    export: Row = {"id": "ex-x", "document": {"adapter_id": "ad-x", "parity": parity.summary(measured[1])}}
    assert gate.require(export, ["gguf:q8_0"], force=False, retry="…") == []
    with pytest.raises(Conflict, match="gguf_not_loadable"):
        gate.require(export, ["gguf:q5_k_m"], force=False, retry="…")


def test_the_job_says_what_it_measures(measured: tuple[JobContext, dict[str, Any]]) -> None:
    context = measured[0]
    progress = context.workspace.store.job(context.job_id)["progress"]
    assert progress["phase"] == "measuring gguf:q3_k_m" and progress["total"] == 9


def test_a_cancel_between_two_files_is_heard(
    tiny: Any, machine: Workspace, whole: Row, base: Path, base_gguf: Callable[[str], Path]
) -> None:
    context: JobContext = tiny.start(machine, {})
    report = context.progress

    def cancel_at_the_file(phase: str, done: float = 0, total: float = 0) -> None:
        report(phase, done, total)
        if phase == "measuring gguf:f16":
            machine.store.execute("UPDATE jobs SET cancel='keep' WHERE id=?", context.job_id)

    context.progress = cancel_at_the_file
    with pytest.raises(Cancelled):
        parity.measure(
            context, adapter=whole, base=base, source=base, merged=base, adapter_scale=1.0,
            ggufs={"gguf:f16": base_gguf("f16")},
        )  # fmt: skip


def test_a_merged_model_that_lacks_a_tensor_fails(tiny: Any, machine: Workspace, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tiny.base(tmp_path / "lacking")
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    row = tiny.add_adapter(machine, folder, folder, form="full")
    found = parity.measure(
        tiny.start(machine, {}), adapter=row, base=folder, source=folder, merged=folder, adapter_scale=1.0, ggufs={}
    )
    (failure,) = found["failures"]
    assert failure.startswith("merge: ") and "model.layers.1.mlp.up_proj.weight" in failure
    assert parity.summary(found)["reference"]["eval_loss"] is None
