"""merged_4bit: what transformers would have written, and what it loads."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file

from tunewright.pipeline import files
from tunewright.pipeline.errors import Cancelled, InvalidInput
from tunewright.pipeline.exporting import bits4

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn.modules import Linear4bit
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig, GPT2Config, GPT2LMHeadModel

IDS = torch.arange(3, 63).reshape(2, 30)


def no_cancel() -> None: ...


def no_progress(phase: str, done: float, total: float) -> None: ...


@pytest.fixture
def quantized(tmp_path: Path) -> Callable[[Path], Path]:
    def quantize(model: Path) -> Path:
        folder = tmp_path / "4bit"
        folder.mkdir()
        bits4.quantize(model, folder, no_cancel, no_progress)
        return folder

    return quantize


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def by_transformers(model: Path) -> Any:
    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )  # fmt: skip
    return AutoModelForCausalLM.from_pretrained(model, quantization_config=config, dtype=torch.bfloat16)


@pytest.mark.parametrize("tied", [False, True])
def test_every_tensor_is_what_transformers_itself_writes(
    tied: bool, quantized: Callable[[Path], Path], tiny: Any, tmp_path: Path
) -> None:
    model = tiny.base(tmp_path / "model", tied=tied)
    by_transformers(model).save_pretrained(tmp_path / "theirs")
    ours, theirs = quantized(model), tmp_path / "theirs"
    expected, got = tensors(theirs), tensors(ours)
    assert got.keys() == expected.keys()
    assert [name for name in got if not torch.equal(got[name], expected[name])] == []
    configs = [files.read_json(folder / "config.json")["quantization_config"] for folder in (ours, theirs)]
    assert configs[0] == configs[1]
    assert files.size_bytes(ours / "model.safetensors") < 0.6 * files.size_bytes(model / "model.safetensors")


def test_transformers_loads_it_with_norms_embeddings_and_head_in_16_bits(
    quantized: Callable[[Path], Path], base: Path
) -> None:
    loaded: Any = AutoModelForCausalLM.from_pretrained(quantized(base))
    expected = by_transformers(base)
    pairs: dict[str, Any] = dict(expected.named_modules())
    seen = 0
    for name, module in loaded.named_modules():
        if isinstance(module, Linear4bit):
            seen += 1
            one, other = (
                dequantize_4bit(m.weight.data, m.weight.quant_state)
                for m in cast("tuple[Any, Any]", (module, pairs[name]))
            )
            assert torch.equal(one, other), name
    assert seen == 14, "seven products in each of two layers"
    plain = tensors(base)
    for name in (
        "lm_head.weight",
        "model.embed_tokens.weight",
        "model.norm.weight",
        "model.layers.0.input_layernorm.weight",
    ):
        assert torch.equal(loaded.state_dict()[name], plain[name]), name
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=IDS).logits, expected(input_ids=IDS).logits)


def test_shards_stay_shards_with_a_whole_index(
    quantized: Callable[[Path], Path], tiny: Any, base: Path, tmp_path: Path
) -> None:
    sharded = tiny.base(tmp_path / "sharded", shard="1MB")
    folder = quantized(sharded)
    index = files.read_json(folder / "model.safetensors.index.json")
    found = tensors(folder)
    assert index["weight_map"].keys() == found.keys()
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in found.values())
    assert len(set(index["weight_map"].values())) == len(list(sharded.glob("*.safetensors"))) > 1
    assert AutoModelForCausalLM.from_pretrained(folder)(input_ids=IDS).logits.shape == (2, 30, 480)


def test_the_files_beside_the_weights_go_with_it(quantized: Callable[[Path], Path], base: Path) -> None:
    folder = quantized(base)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        assert (folder / name).read_bytes() == (base / name).read_bytes()


def test_conv1d_products_of_gpt2_are_quantized_as_transformers_does(
    quantized: Callable[[Path], Path], tmp_path: Path
) -> None:
    torch.manual_seed(1)
    model = tmp_path / "gpt2"
    config = GPT2Config(vocab_size=480, n_embd=64, n_layer=1, n_head=2, n_positions=64)
    GPT2LMHeadModel(config).bfloat16().save_pretrained(model)
    by_transformers(model).save_pretrained(tmp_path / "theirs")
    got, expected = tensors(quantized(model)), tensors(tmp_path / "theirs")
    name = "transformer.h.0.attn.c_attn.weight"
    assert got[name].dtype == torch.uint8
    assert torch.equal(got[name], expected[name])


def test_a_model_whose_products_have_other_names_is_refused(
    quantized: Callable[[Path], Path], tiny: Any, tmp_path: Path
) -> None:
    model = tiny.base(tmp_path / "model")
    config = files.read_json(model / "config.json")
    files.write_json(model / "config.json", config | {"num_hidden_layers": 3, "layer_types": None})
    with pytest.raises(InvalidInput, match=r"model\.layers\.2") as caught:
        quantized(model)
    assert caught.value.code == "not_quantizable"


def test_a_cancel_stops_it_between_tensors(base: Path, tmp_path: Path) -> None:
    asked = 0

    def cancel() -> None:
        nonlocal asked
        asked += 1
        if asked == 3:
            raise Cancelled("job")

    with pytest.raises(Cancelled):
        bits4.quantize(base, tmp_path, cancel, no_progress)
    assert not list(tmp_path.glob("*.safetensors"))
