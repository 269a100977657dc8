"""Each fault that makes a model answer otherwise than it was trained, planted in a real file, is found and named."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tunewright.pipeline.chat_template import ChatTemplate
from tunewright.pipeline.exporting import merge, parity
from tunewright.pipeline.exporting.parity import cases
from tunewright.pipeline.store import Row
from tunewright.pipeline.workspace import Workspace

Failures = Callable[..., list[str]]
Plant = Callable[..., Path]
SWITCH = "enable_thinking is defined and enable_thinking is false"


@pytest.fixture
def sound(base_gguf: Callable[[str], Path]) -> Path:
    return base_gguf("f16")


def merged(tiny: Any, workspace: Workspace, base: Path, adapter: Path, folder: Path, scale: float = 1.0) -> Path:
    folder.mkdir()
    merge.merge(tiny.start(workspace, {}), base, adapter, folder, scale)
    return folder


def measure_merge(
    tiny: Any, workspace: Workspace, base: Path, adapter: Path, folder: Path, **changed: Any
) -> dict[str, Any]:
    row: Row = tiny.add_adapter(workspace, adapter, base, **changed)
    with pytest.MonkeyPatch.context() as patch:
        # One answer will do: it is not looked at.
        patch.setattr(cases, "ASKED", 1)
        return parity.measure(
            tiny.start(workspace, {}), adapter=row, base=base, source=adapter, merged=folder, adapter_scale=1.0,
            ggufs={},
        )  # fmt: skip


def test_a_template_without_the_thinking_switch(sound: Path, failures: Failures, plant: Plant) -> None:
    def without(template: str) -> str:
        assert SWITCH in template
        return template.replace(SWITCH, "false")

    found = failures(plant(sound, tokenizer__chat_template=without))
    assert "where training made" in found[0] and "think" in found[0]


def test_a_template_that_thinks_when_asked_to_although_training_never_did(
    sound: Path, failures: Failures, plant: Plant, base: Path
) -> None:
    found = failures(plant(sound, tokenizer__chat_template=ChatTemplate(base).source))
    assert any("asked for without a word on thinking" in failure for failure in found)
    assert any("enable_thinking=true" in failure for failure in found)


def test_a_wrong_eos(sound: Path, failures: Failures, plant: Plant) -> None:
    found = failures(plant(sound, tokenizer__ggml__eos_token_id=0))
    assert found == ["its EOS is '<|endoftext|>', the tokenizer's is '<|im_end|>'"]


def test_an_end_at_which_it_does_not_stop(sound: Path, failures: Failures, plant: Plant) -> None:
    def renamed(tokens: list[str]) -> list[str]:
        return [token.replace("<|im_end|>", "<|never|>") for token in tokens]

    found = failures(plant(sound, tokenizer__ggml__tokens=renamed, tokenizer__ggml__eos_token_id=0))
    assert any("generation does not stop at '<|im_end|>' (2)" in failure for failure in found)


def test_a_doubled_bos(sound: Path, failures: Failures, plant: Plant, base: Path) -> None:
    found = failures(plant(sound, tokenizer__ggml__add_bos_token=True, tokenizer__ggml__bos_token_id=0))
    assert "gets the tokens [0] in front (a doubled BOS)" in found[0]
    # Training had one, written by the template, and the file writes two.
    trained = "<|endoftext|>" + ChatTemplate(base).source
    twice = plant(sound, tokenizer__chat_template=lambda source: "<|endoftext|>" * 2 + source)
    assert "'<|endoftext|><|endoftext|>" in failures(twice, template=trained)[0]


def test_a_bos_that_template_and_tokenizer_write_is_not_doubled_by_llama_cpp(
    sound: Path, failures: Failures, plant: Plant, base: Path
) -> None:
    file = plant(
        sound, tokenizer__chat_template=lambda source: "<|endoftext|>" + source, tokenizer__ggml__add_bos_token=True,
        tokenizer__ggml__bos_token_id=0,
    )  # fmt: skip
    assert failures(file, template="<|endoftext|>" + ChatTemplate(base).source) == []


@pytest.mark.parametrize("place", [0.0, 0.5, 1.0])
def test_a_tokenizer_with_one_merge_removed(sound: Path, failures: Failures, plant: Plant, place: float) -> None:
    def without(merges: list[str]) -> list[str]:
        at = round(place * (len(merges) - 1))
        return [*merges[:at], *merges[at + 1 :]]

    found = failures(plant(sound, tokenizer__ggml__merges=without))
    assert "tokens instead of" in found[0]


def test_an_adapter_merged_twice(tiny: Any, workspace: Workspace, base: Path, adapter: Path, tmp_path: Path) -> None:
    once = merged(tiny, workspace, base, adapter, tmp_path / "once")
    twice = shutil.copytree(base, tmp_path / "twice")
    shutil.copyfile(once / "model.safetensors", twice / "model.safetensors")
    again = tmp_path / "again"
    again.mkdir()
    merge.merge(tiny.start(workspace, {}), twice, unrecorded(adapter, tmp_path), again, 1.0)
    assert measure_merge(tiny, workspace, base, adapter, once)["failures"] == []
    (failure,) = measure_merge(tiny, workspace, base, adapter, again)["failures"]
    assert failure.startswith("merge: ") and "merged twice" in failure


def test_a_merge_with_another_scale(tiny: Any, workspace: Workspace, base: Path, adapter: Path, tmp_path: Path) -> None:
    folder = merged(tiny, workspace, base, adapter, tmp_path / "merged", scale=0.9)
    found = measure_merge(tiny, workspace, base, adapter, folder)
    assert not found["passed"] and not found["merge"]["passed"]


def unrecorded(adapter: Path, tmp_path: Path) -> Path:
    """The adapter with nothing in it that tells its base by its weights: merging itself would refuse another."""
    folder = shutil.copytree(adapter, tmp_path / "unrecorded")
    config = folder / "adapter_config.json"
    text = config.read_text(encoding="utf-8")
    config.write_text(text.replace('"base_model_name_or_path": ', '"was": '), encoding="utf-8")
    return folder


def test_an_adapter_merged_into_another_base(
    tiny: Any, workspace: Workspace, base: Path, adapter: Path, tmp_path: Path
) -> None:
    other = tiny.base(tmp_path / "other", hidden_size=256)
    shuffle(other)
    folder = tmp_path / "merged"
    folder.mkdir()
    merge.merge(tiny.start(workspace, {}), other, unrecorded(adapter, tmp_path), folder, 1.0)
    (failure,) = measure_merge(tiny, workspace, base, adapter, folder)["failures"]
    assert failure.startswith("merge: ") and "another base" in failure


def shuffle(folder: Path) -> None:
    """Other weights of the same shapes: the rows of every matrix of the layers in another order."""
    import torch
    from safetensors.torch import load_file, save_file

    torch.manual_seed(11)
    weights = load_file(folder / "model.safetensors")
    for name, weight in weights.items():
        if weight.ndim == 2 and "layers" in name:
            weights[name] = weight[torch.randperm(len(weight))].contiguous()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_truncated_gguf(sound: Path, failures: Failures, tmp_path: Path) -> None:
    file = tmp_path / "cut.gguf"
    file.write_bytes(sound.read_bytes()[:-1000])
    (failure,) = failures(file)
    assert failure.startswith("gguf_not_loadable: llama.cpp cannot load cut.gguf")


def test_weights_that_are_not_the_models(
    ggufs: dict[str, Path], failures: Failures, converter: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One block of Q8_0 in a hundred damaged: everything loads and answers, and only the distributions show it."""
    monkeypatch.syspath_prepend(str(converter / "gguf-py"))
    import gguf

    file = tmp_path / "damaged.gguf"
    shutil.copyfile(ggufs["q8_0"], file)
    reader = gguf.GGUFReader(file, "r+")
    for tensor in reader.tensors:
        if "blk" in tensor.name and tensor.tensor_type == gguf.GGMLQuantizationType.Q8_0:
            tensor.data[::10] = 0
    reader.data.flush()
    found = failures(file, output="gguf:q8_0")
    assert any("its mean KL to the 16-bit model is" in failure for failure in found)
