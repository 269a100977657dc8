"""Which adapters are read as plain LoRA, and that nothing else is taken for it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tunewright.pipeline.inference import lora

Folder = Callable[..., Path]


@pytest.fixture
def copied(adapter: Folder, tmp_path: Path) -> Path:
    return Path(shutil.copytree(adapter("qwen3", "lora"), tmp_path / "adapter"))


def change(folder: Path, **values: Any) -> None:
    file = folder / "adapter_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**config, **values}), encoding="utf-8")


def test_the_scale_is_alphas_over_the_rank_or_over_its_root(
    base: Folder, plain: Callable[..., Any], copied: Path
) -> None:
    model = plain(base("qwen3"))
    path = "model.layers.1.mlp.up_proj"
    stored = load_file(copied / "adapter_model.safetensors")[f"{lora.PREFIX}{path}.lora_B.weight"]
    for rooted, scale in ((False, 16 / 8), (True, 16 / 8**0.5)):
        change(copied, use_rslora=rooted)
        pairs = lora.read(copied, model)
        assert pairs is not None and len(pairs) == 14
        assert torch.allclose(pairs[path][1], stored * scale)


@pytest.mark.parametrize(
    "more",
    [
        {"peft_type": "LOHA"}, {"bias": "all"}, {"use_dora": True}, {"lora_bias": True},
        {"alpha_pattern": {"q_proj": 3}}, {"modules_to_save": ["lm_head"]}, {"init_lora_weights": "pissa_niter_4"},
        {"layer_replication": [[0, 2]]},
    ],
)  # fmt: skip
def test_what_is_more_than_plain_lora_is_left_to_peft(
    base: Folder, plain: Callable[..., Any], copied: Path, more: dict[str, Any]
) -> None:
    model = plain(base("qwen3"))
    assert lora.read(copied, model) is not None
    change(copied, **more)
    assert lora.read(copied, model) is None


@pytest.mark.parametrize(
    "name", ["model.embed_tokens.lora_embedding_A", "model.layers.9.self_attn.q_proj.lora_A.weight", "lm_head.weight"]
)
def test_a_tensor_that_belongs_to_no_linear_layer_leaves_all_to_peft(
    base: Folder, plain: Callable[..., Any], copied: Path, name: str
) -> None:
    file = copied / "adapter_model.safetensors"
    save_file({**load_file(file), f"{lora.PREFIX}{name}": torch.zeros(8, 64)}, file)
    assert lora.read(copied, plain(base("qwen3"))) is None


def test_conv1d_of_gpt2_is_left_to_peft(base: Folder, plain: Callable[..., Any], copied: Path) -> None:
    file = copied / "adapter_model.safetensors"
    path = f"{lora.PREFIX}transformer.h.0.attn.c_attn"
    save_file({f"{path}.lora_A.weight": torch.zeros(8, 64), f"{path}.lora_B.weight": torch.zeros(192, 8)}, file)
    assert lora.read(copied, plain(base("gpt2"))) is None
