"""What transformers says of a merged model: from memory or from the disk, and whether the merge is base and adapter."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tunewright.pipeline import host, toy
from tunewright.pipeline.data import splits
from tunewright.pipeline.data.rows import Record
from tunewright.pipeline.exporting import merge
from tunewright.pipeline.exporting.parity import cases, judge, reference
from tunewright.pipeline.exporting.parity.cases import Cases
from tunewright.pipeline.exporting.parity.reference import Reference
from tunewright.pipeline.workspace import Workspace

KINDS: dict[str, dict[str, Any]] = {
    "rslora": {"use_rslora": True, "alpha_pattern": {"v_proj": 4}},
    "dora": {"use_dora": True},
    "embedding and head": {"target_modules": ["q_proj", "embed_tokens", "lm_head"]},
    "layers trained whole": {"modules_to_save": ["embed_tokens", "lm_head"]},
}


def merged(tiny: Any, machine: Workspace, base: Path, adapter: Path, folder: Path, scale: float) -> Path:
    folder.mkdir()
    merge.merge(tiny.start(machine, {}), base, adapter, folder, scale)
    return folder


def measure(tiny: Any, machine: Workspace, base: Path, adapter: Path, folder: Path, scale: float = 1.0) -> Reference:
    found = cases.collect(machine, tiny.add_adapter(machine, adapter, base), adapter, folder)
    found = replace(found, asked_ids=found.asked_ids[:1])
    return reference.measure(
        found, base=base, source=adapter, merged=folder, adapter_scale=scale, tell=lambda phase: None
    )


@pytest.mark.parametrize("kind", list(KINDS))
def test_every_kind_of_adapter_passes_once_merged_and_fails_with_another_scale(
    tiny: Any, machine: Workspace, base: Path, tmp_path: Path, kind: str
) -> None:
    adapter = tiny.adapter(tmp_path / "adapter", base, **KINDS[kind])
    folder = merged(tiny, machine, base, adapter, tmp_path / "merged", 0.5)
    assert judge.of_merge(measure(tiny, machine, base, adapter, folder, 0.5)) == []
    assert judge.of_merge(measure(tiny, machine, base, adapter, folder, 1.0)) != []


def test_logits_are_those_of_each_text_alone(seen: tuple[Cases, Reference], tiny: Any, base: Path) -> None:
    found, said = seen
    model = tiny.load(base)
    rows: list[torch.Tensor] = []
    for one in found.scored:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([one.ids])).logits[0]
        rows += [torch.log_softmax(logits[i - 1], dim=-1) for i in one.positions]
    assert torch.allclose(torch.stack(rows), torch.from_numpy(said.logprobs), atol=1e-4)


def test_answers_are_the_models_own_greedy_ones(seen: tuple[Cases, Reference], tiny: Any, base: Path) -> None:
    found, said = seen
    model, ids, tokens = tiny.load(base), found.asked_ids[0], list[int]()
    with torch.no_grad():
        while len(tokens) < cases.ANSWER_TOKENS and not set(tokens) & set(found.ends):
            tokens.append(int(model(input_ids=torch.tensor([ids + tokens])).logits[0, -1].argmax()))
    assert said.answers.given is not None and said.answers.given[0].tokens == tokens
    assert all(step[token] == max(step.values()) for answer in said.answers.given for token, step in
               zip(answer.tokens, answer.steps, strict=True))  # fmt: skip


def test_a_model_larger_than_memory_gives_the_same_from_the_disk(
    tiny: Any, machine: Workspace, base: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = merged(tiny, machine, base, adapter, tmp_path / "merged", 1.0)
    in_memory = measure(tiny, machine, base, adapter, folder)
    monkeypatch.setattr(host, "memory_gib", lambda: (0.001, 1.0))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    from_disk = measure(tiny, machine, base, adapter, folder)
    assert not any((tmp_path / "here").iterdir()), "peft's copies go with the folder that they are made in"
    assert from_disk.logprobs == pytest.approx(in_memory.logprobs, abs=1e-5)
    assert from_disk.merge == in_memory.merge and in_memory.answers.given is not None
    assert from_disk.answers.given is None and "no answers" in from_disk.notes[0]


def test_an_adapter_that_peft_cannot_run_from_the_disk_is_told_as_not_checked(
    tiny: Any, machine: Workspace, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = tiny.adapter(tmp_path / "adapter", base, use_dora=True)
    folder = merged(tiny, machine, base, adapter, tmp_path / "merged", 1.0)
    monkeypatch.setattr(host, "memory_gib", lambda: (0.001, 1.0))
    found = measure(tiny, machine, base, adapter, folder)
    assert found.merge is None and "the merge was not checked" in found.notes[0]


def test_a_trained_model_on_weights_that_are_not_its_own_has_lost_what_it_knew(
    tiny: Any, workspace: Workspace, trained_toy: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    rows = [Record(kind="sft", messages=list(turns)) for turns in toy.conversations()[:10]]
    splits.write(splits.split_file(folder, splits.EVAL), "sft", rows)
    workspace.store.add_artifact("ds-toy-0000", "dataset", "toy", {"path": str(folder)}, parents=[])
    row = tiny.add_adapter(
        workspace, trained_toy, trained_toy, form="full", dataset_id="ds-toy-0000", method="sft",
        training={"train_on": "responses"},
    )  # fmt: skip
    found = replace(cases.collect(workspace, row, trained_toy, trained_toy), asked_ids=[])

    def judged(weights: Path) -> tuple[float, list[str]]:
        said = reference.measure(
            found, base=trained_toy, source=trained_toy, merged=weights, adapter_scale=1.0, tell=lambda phase: None
        )
        row["document"]["metrics"] = row["document"].get("metrics") or {"eval_loss": said.loss}
        return said.loss, judge.of_loss(row, found, said, trained_toy, 1.0)

    own, failures = judged(trained_toy)
    assert failures == []
    other = shutil.copytree(trained_toy, tmp_path / "other")
    (other / "model.safetensors").unlink()
    torch.manual_seed(1)
    model = tiny.load(trained_toy)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.data = parameter.data[torch.randperm(len(parameter))]
    model.save_pretrained(other)
    lost, failures = judged(other)
    assert lost > own + 3 and "its loss on 10 evaluation rows" in failures[0]
