"""Counts of parameters and arithmetic from config.json, held against models whose figures are known."""

import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tunewright.pipeline.errors import InvalidInput
from tunewright.pipeline.models import Model
from tunewright.pipeline.planning import architecture
from tunewright.pipeline.planning.architecture import Architecture
from tunewright.pipeline.training.arguments import ALL_LINEAR, TARGET_MODULES


def of(name: str = "owner/model", folder: Path | None = None, **config: Any) -> Architecture:
    return architecture.of(Model(name, "local", folder, config))


QWEN3_8B = {
    "model_type": "qwen3", "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936,
    "max_position_embeddings": 40960, "tie_word_embeddings": False,
}  # fmt: skip
QWEN3_30B_A3B = {
    "model_type": "qwen3_moe", "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 48,
    "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128, "vocab_size": 151936, "num_experts": 128,
    "num_experts_per_tok": 8, "moe_intermediate_size": 768, "decoder_sparse_step": 1, "mlp_only_layers": [],
    "tie_word_embeddings": False, "max_position_embeddings": 40960,
}  # fmt: skip
MIXTRAL_8X7B = {
    "model_type": "mixtral", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32000, "num_local_experts": 8,
    "num_experts_per_tok": 2, "tie_word_embeddings": False, "max_position_embeddings": 32768,
}  # fmt: skip
LLAMA_31_8B = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 131072,
}  # fmt: skip
# From the models' cards.
KNOWN = [(QWEN3_8B, 8.19e9), (QWEN3_30B_A3B, 30.5e9), (MIXTRAL_8X7B, 46.7e9), (LLAMA_31_8B, 8.03e9)]


@pytest.mark.parametrize(("config", "parameters"), KNOWN, ids=lambda value: str(value)[:20])
def test_the_parameters_are_those_of_the_models_card(config: dict[str, Any], parameters: float) -> None:
    assert of(**config).parameters == pytest.approx(parameters, rel=0.002)


@pytest.mark.parametrize(("config", "active"), [(QWEN3_30B_A3B, 3.3e9), (MIXTRAL_8X7B, 12.9e9)])
def test_a_token_passes_only_the_experts_that_it_is_sent_to(config: dict[str, Any], active: float) -> None:
    model = of(**config)
    assert model.active_linear + model.embeddings + model.head == pytest.approx(active, rel=0.02)


def test_a_tied_head_is_counted_once() -> None:
    untied = of(**QWEN3_8B)
    tied = of(**QWEN3_8B | {"tie_word_embeddings": True})
    assert untied.parameters - tied.parameters == 151936 * 4096
    assert tied.head == 0
    assert of(**LLAMA_31_8B | {"model_type": "gemma"}).tied


@pytest.fixture
def trained_by_size() -> dict[str, int]:
    """Trainable parameters that PEFT reported for r 16 on all seven layers (RESULTS.md's table of 2026-11-21)."""
    return {"0.6b": 10_092_544, "4b": 33_030_144, "8b": 43_646_976}


def test_the_adapter_has_as_many_parameters_as_peft_made(trained_by_size: dict[str, int], model_of: Any) -> None:
    for size, trained in trained_by_size.items():
        model = architecture.of(model_of(size))
        assert model.adapter_parameters(16, TARGET_MODULES) == trained
        assert model.adapter_parameters(16, ALL_LINEAR) == trained
        assert model.adapter_parameters(32, ["q_proj"]) < trained


def test_dora_adds_a_magnitude_for_each_output() -> None:
    model = of(**QWEN3_8B)
    added = model.adapter_parameters(8, ["q_proj"], dora=True) - model.adapter_parameters(8, ["q_proj"])
    assert added == 36 * 32 * 128


def test_weights_take_what_the_device_showed_when_they_were_loaded(model_of: Any) -> None:
    # torch.cuda.memory_allocated after loading, less cuBLAS's workspace, RESULTS.md's table of 2026-11-21.
    loaded_gib = {("0.6b", 4): 0.533, ("0.6b", 16): 1.141, ("4b", 4): 2.502, ("4b", 16): 7.524, ("8b", 4): 5.688,
                  ("8b", 16): 15.288}  # fmt: skip
    for (size, bits), gib in loaded_gib.items():
        assert architecture.of(model_of(size)).weight_bytes(bits) / 2**30 == pytest.approx(gib - 0.031, abs=0.002)


def test_the_text_model_of_a_multimodal_one_is_read_and_its_tower_is_counted(tmp_path: Path) -> None:
    tensors = {"a": {"dtype": "BF16", "shape": [4096, 1_000_000], "data_offsets": [0, 0]}}
    header = json.dumps(tensors | {"__metadata__": {"format": "pt"}}).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    inner = LLAMA_31_8B | {"model_type": "gemma3_text", "tie_word_embeddings": False, "intermediate_size": 1024}
    model = of(folder=tmp_path, model_type="gemma3", text_config=inner)
    assert model.model_type == "gemma3_text"
    assert model.parameters == 4096 * 1_000_000
    assert model.other > 0
    assert of(folder=None, model_type="gemma3", text_config=inner).other == 0


@pytest.mark.parametrize(
    ("config", "packs"),
    [
        (QWEN3_8B, True), (LLAMA_31_8B, True), (QWEN3_30B_A3B, True), (LLAMA_31_8B | {"model_type": "gemma2"}, False),
        (LLAMA_31_8B | {"model_type": "gpt_oss"}, False), (LLAMA_31_8B | {"model_type": "never_heard_of"}, False),
        (QWEN3_8B | {"layer_types": ["linear_attention", "full_attention"]}, False),
        (QWEN3_8B | {"mamba_d_state": 16}, False),
    ],
)  # fmt: skip
def test_only_families_that_keep_examples_apart_are_packed(config: dict[str, Any], packs: bool) -> None:
    assert of(**config).can_pack is packs


def test_the_older_names_of_a_shape_are_understood() -> None:
    gpt2 = of(model_type="gpt2", n_embd=768, n_layer=12, n_head=12, vocab_size=50257, n_positions=1024)
    assert (gpt2.hidden, gpt2.layers, gpt2.context, gpt2.intermediate) == (768, 12, 1024, 3072)


def test_a_number_for_each_layer_is_understood(model_of: Any) -> None:
    listed = model_of("0.6b", intermediate_size=[3072] * 28, num_key_value_heads=[8] * 28, head_dim=128.0)
    assert architecture.of(listed) == architecture.of(model_of("0.6b"))


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({"hidden_size": "1024"}, "unknown_architecture"), ({"num_key_value_heads": "x"}, "unknown_architecture"),
        ({"num_hidden_layers": -1}, "unknown_architecture"), ({"vocab_size": True}, "unknown_architecture"),
        ({"intermediate_size": [None]}, "unknown_architecture"), ({"num_experts": {}}, None),
        ({"text_config": "x", "quantization_config": "x", "layer_types": [1]}, None),
        ({"max_position_embeddings": 16}, "context_too_short"), ({"is_encoder_decoder": True}, "not_a_decoder"),
        ({"architectures": ["BertForMaskedLM"]}, "not_a_decoder"), ({"architectures": ["Qwen3ForCausalLM"]}, None),
    ],
)  # fmt: skip
def test_an_odd_config_is_read_or_refused_but_never_stumbled_over(
    model_of: Any, changed: dict[str, Any], code: str | None
) -> None:
    base = model_of("0.6b", **changed)
    if code is None:
        assert architecture.of(base).parameters == architecture.of(model_of("0.6b")).parameters
        return
    with pytest.raises(InvalidInput) as refused:
        architecture.of(base)
    assert refused.value.code == code


def test_a_config_that_is_a_list_is_refused(model_of: Any) -> None:
    with pytest.raises(InvalidInput, match="unknown_architecture"):
        architecture.of(replace(model_of("0.6b"), config=[1]))


def test_a_config_that_is_no_language_model_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"unknown_architecture: owner/model's config\.json .*hidden_size"):
        of(model_type="resnet", num_channels=3)


def test_a_quantized_file_says_its_width() -> None:
    assert of(**QWEN3_8B | {"quantization_config": {"load_in_4bit": True}}).quantized_bits == 4
    assert of(**QWEN3_8B).quantized_bits is None


def test_a_dynamic_4_bit_file_is_allowed_for() -> None:
    plain, dynamic = of("local", **QWEN3_8B), of("unsloth/Qwen3-8B", **QWEN3_8B)
    assert dynamic.weight_bytes(4) > 1.1 * plain.weight_bytes(4)
    assert dynamic.weight_bytes(16) == plain.weight_bytes(16)
