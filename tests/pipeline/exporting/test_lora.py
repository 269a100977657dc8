"""Reading an adapter: how strong each product is, and a refusal for whatever is not understood."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tunewright.pipeline import files
from tunewright.pipeline.errors import InvalidInput
from tunewright.pipeline.exporting import lora, weights


def edit_config(adapter: Path, **changes: Any) -> None:
    file = adapter / "adapter_config.json"
    files.write_json(file, files.read_json(file) | changes)


@pytest.mark.parametrize(
    ("config", "scales"),
    [
        ({}, {"q_proj": 2.0, "down_proj": 2.0}),
        ({"use_rslora": True}, {"q_proj": 16 / 8**0.5}),
        ({"rank_pattern": {"q_proj": 4}, "alpha_pattern": {"down_proj": 3}}, {"q_proj": 4.0, "down_proj": 3 / 8}),
    ],
    ids=["lora", "rslora", "patterns"],
)
def test_a_product_is_as_strong_as_its_alpha_rank_and_the_asked_scale_make_it(
    config: dict[str, Any], scales: dict[str, float], tiny: Any, base: Path, tmp_path: Path
) -> None:
    adapter = tiny.adapter(tmp_path / "adapter", base, **config)
    found = lora.read(adapter, weights.of_model(base), adapter_scale=0.5, tied=False).added
    assert len(found) == 6
    for layer, scale in scales.items():
        product = next(product for name, product in found.items() if f".{layer}." in name)
        assert product.scale == pytest.approx(0.5 * scale)
        assert product.shape == weights.of_model(base)[next(n for n in found if f".{layer}." in n)].shape


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"peft_type": "IA3"}, "IA3"),
        ({"init_lora_weights": "pissa_niter_4"}, "pissa"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
    ],
)
def test_an_adapter_with_another_formula_is_refused_by_its_name(
    change: dict[str, Any], named: str, tiny: Any, base: Path, tmp_path: Path
) -> None:
    adapter = tiny.adapter(tmp_path / "adapter", base)
    edit_config(adapter, **change)
    with pytest.raises(InvalidInput, match=named) as caught:
        lora.read(adapter, weights.of_model(base), adapter_scale=1.0, tied=False)
    assert caught.value.code == "adapter_not_mergeable"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("base_model.model.model.layers.7.mlp.up_proj.lora_A.weight", torch.zeros(8, 256), "layers.7"),
        ("base_model.model.model.layers.0.mlp.up_proj.lora_magnitude_vector", torch.zeros(512), "magnitude"),
        ("base_model.model.model.layers.0.mlp.up_proj.lora_A.weight", torch.zeros(8, 256), "only lora_A"),
        ("base_model.model.model.norm.weight", torch.full((256,), float("nan")), "NaN"),
    ],
    ids=["no-such-layer", "magnitude", "half-a-pair", "nan"],
)
def test_a_tensor_that_cannot_be_used_refuses_the_adapter(
    key: str, value: torch.Tensor, message: str, tiny: Any, base: Path, tmp_path: Path
) -> None:
    adapter = tiny.adapter(tmp_path / "adapter", base)
    file = adapter / "adapter_model.safetensors"
    save_file(load_file(file) | {key: value}, file)
    with pytest.raises(InvalidInput, match=message):
        lora.read(adapter, weights.of_model(base), adapter_scale=1.0, tied=False)
