"""Combining adapters: the numbers are peft's own on the real base, and what does not go together is refused."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tunewright.pipeline import files
from tunewright.pipeline.errors import InvalidInput
from tunewright.pipeline.exporting import combine, merge
from tunewright.pipeline.workspace import Workspace

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from peft import PeftModel

IDS = torch.arange(3, 63).reshape(2, 30)
WEIGHTS = (0.7, -0.4)


def rescaled(adapter: Path, seed: int) -> Path:
    """Other values than those that every adapter of `tiny` has."""
    from safetensors.torch import save_file

    torch.manual_seed(seed)
    file = adapter / "adapter_model.safetensors"
    save_file({name: 0.05 * torch.randn_like(tensor) for name, tensor in load_file(file).items()}, file)
    return adapter


@pytest.fixture
def two(tiny: Any, base: Path, tmp_path: Path) -> list[Path]:
    """Adapters of one rank that share some layers and not others."""
    one = tiny.adapter(tmp_path / "one", base)
    return [one, rescaled(tiny.adapter(tmp_path / "other", base, target_modules=["q_proj", "up_proj"]), 9)]


@pytest.fixture
def three_ranks(tiny: Any, base: Path, tmp_path: Path) -> list[Path]:
    one = tiny.adapter(tmp_path / "one", base, target_modules=["q_proj", "embed_tokens"], lora_alpha=4)
    return [one, rescaled(tiny.adapter(tmp_path / "other", base, r=4), 9)]


def by_peft(tiny: Any, base: Path, adapters: list[Path], method: str, **options: Any) -> torch.Tensor:
    """The logits of the real base with peft's combination active on it."""
    model = PeftModel.from_pretrained(tiny.load(base), str(adapters[0]), adapter_name="0")
    model.load_adapter(str(adapters[1]), "1")
    model.add_weighted_adapter(["0", "1"], list(WEIGHTS), "both", combination_type=method, **options)
    model.set_adapter("both")
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("cat", {}),
        ("svd", {}),
        ("linear", {}),
        ("ties", {"density": 0.2}),
        ("ties_svd", {"density": 0.2, "svd_full_matrices": False}),
        ("magnitude_prune", {"density": 0.5}),
    ],
)
def test_a_combination_is_what_peft_makes_on_the_real_base(
    method: str, options: dict[str, Any], tiny: Any, base: Path, two: list[Path], tmp_path: Path
) -> None:
    expected = by_peft(tiny, base, two, method, **options)
    assert combine.combine(base, list(zip(two, WEIGHTS, strict=True)), method, tmp_path / "both") == []
    got = logits(tiny.with_adapter(base, tmp_path / "both"))
    assert (expected - logits(tiny.load(base))).abs().max() > 0.1
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("method", ["cat", "svd", "dare_linear_svd"])
def test_adapters_of_different_ranks_with_an_embedding_are_combined(
    method: str, tiny: Any, base: Path, three_ranks: list[Path], tmp_path: Path
) -> None:
    combine.combine(base, list(zip(three_ranks, WEIGHTS, strict=True)), method, tmp_path / "both")
    config = files.read_json(tmp_path / "both" / "adapter_config.json")
    assert config["r"] == config["lora_alpha"] == (12 if method == "cat" else 8)
    got = logits(tiny.with_adapter(base, tmp_path / "both"))
    if not method.startswith("dare"):
        torch.testing.assert_close(got, by_peft(tiny, base, three_ranks, method), rtol=1e-3, atol=1e-3)
    assert not torch.equal(got, logits(tiny.load(base)))


def test_rslora_is_not_scaled_twice(tiny: Any, base: Path, tmp_path: Path) -> None:
    adapter = tiny.adapter(tmp_path / "one", base, use_rslora=True)
    combine.combine(base, [(adapter, 0.5), (adapter, 0.5)], "cat", tmp_path / "both")
    expected = logits(tiny.with_adapter(base, adapter))
    torch.testing.assert_close(logits(tiny.with_adapter(base, tmp_path / "both")), expected, rtol=1e-3, atol=1e-3)


def test_a_combination_is_merged_like_any_other_adapter(
    tiny: Any, base: Path, two: list[Path], tmp_path: Path, workspace: Workspace
) -> None:
    combine.combine(base, list(zip(two, WEIGHTS, strict=True)), "cat", tmp_path / "both")
    merged = tmp_path / "merged"
    merged.mkdir()
    merge.merge(tiny.start(workspace, {}), base, tmp_path / "both", merged)
    expected = by_peft(tiny, base, two, "cat")
    assert (logits(tiny.load(merged)) - expected).norm() < 0.02 * expected.norm()


def test_chance_draws_the_same_every_time(base: Path, two: list[Path], tmp_path: Path) -> None:
    pairs = list(zip(two, WEIGHTS, strict=True))
    for name in ("first", "second"):
        torch.rand(1)
        combine.combine(base, pairs, "dare_ties", tmp_path / name)
    first, second = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("first", "second"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any((tensor == 0).float().mean() > 0.3 for tensor in first.values())


def test_the_folder_holds_a_tokenizer_its_origin_and_nothing_of_this_machine(
    base: Path, two: list[Path], tmp_path: Path
) -> None:
    combine.combine(base, list(zip(two, WEIGHTS, strict=True)), "linear", tmp_path / "both")
    names = {file.name for file in (tmp_path / "both").iterdir()}
    assert names == {
        "adapter_config.json", "adapter_model.safetensors", "provenance.json", "tokenizer.json",
        "tokenizer_config.json", "chat_template.jinja",
    }  # fmt: skip
    combination = files.read_json(tmp_path / "both" / "provenance.json")["combination"]
    assert combination == {
        "method": "linear", "adapters": [{"name": "one", "weight": 0.7}, {"name": "other", "weight": -0.4}]
    }  # fmt: skip


def test_another_template_is_a_warning(base: Path, two: list[Path], tmp_path: Path) -> None:
    files.write_text(two[1] / "chat_template.jinja", "{{ messages }}")
    found = combine.combine(base, list(zip(two, WEIGHTS, strict=True)), "cat", tmp_path / "both")
    assert len(found) == 1
    assert "other was trained with another chat template than one" in found[0]
    assert (tmp_path / "both" / "chat_template.jinja").read_bytes() == (two[0] / "chat_template.jinja").read_bytes()


def refused(base: Path, adapters: list[Path], method: str, folder: Path) -> str:
    with pytest.raises(InvalidInput) as caught:
        combine.combine(base, [(adapter, 1.0) for adapter in adapters], method, folder)
    assert not folder.exists(), "refused before anything is written"
    return str(caught.value)


def test_an_unknown_method_is_refused_with_those_there_are(base: Path, two: list[Path], tmp_path: Path) -> None:
    message = refused(base, two, "average", tmp_path / "both")
    assert "'average'" in message and "cat, svd, linear" in message


def test_one_rank_methods_refuse_two_ranks(base: Path, three_ranks: list[Path], tmp_path: Path) -> None:
    assert "these have 4, 8" in refused(base, three_ranks, "linear", tmp_path / "both")


def test_a_dora_adapter_is_refused(tiny: Any, base: Path, adapter: Path, tmp_path: Path) -> None:
    dora = tiny.adapter(tmp_path / "dora", base, use_dora=True)
    assert "dora was trained with DoRA" in refused(base, [adapter, dora], "cat", tmp_path / "both")


def test_an_adapter_with_whole_layers_is_refused(tiny: Any, base: Path, adapter: Path, tmp_path: Path) -> None:
    saved = tiny.adapter(tmp_path / "saved", base, modules_to_save=["lm_head"])
    assert "trained 'lm_head.weight' as a whole" in refused(base, [adapter, saved], "cat", tmp_path / "both")


def test_a_whole_model_is_refused(base: Path, adapter: Path, tmp_path: Path) -> None:
    assert "is a whole model" in refused(base, [adapter, base], "cat", tmp_path / "both")


def test_adapters_of_different_bases_are_refused(base: Path, two: list[Path], tmp_path: Path) -> None:
    for adapter, name in zip(two, ("org/one", "org/other"), strict=True):
        file = adapter / "adapter_config.json"
        files.write_json(file, files.read_json(file) | {"base_model_name_or_path": name})
    assert "different bases (org/one, org/other)" in refused(base, two, "cat", tmp_path / "both")
