"""Merging: the same numbers as peft's own, shard by shard, and a refusal for whatever is not understood."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

from tunewright.pipeline import files
from tunewright.pipeline.errors import Cancelled, InvalidInput
from tunewright.pipeline.exporting import merge, shards, weights
from tunewright.pipeline.workspace import Workspace

ADAPTER = "adapter_model.safetensors"
IDS = torch.arange(3, 63).reshape(2, 30)


@pytest.fixture
def into(workspace: Workspace, tiny: Any, tmp_path: Path) -> Any:
    """Merges into a new folder and returns it."""

    def merge_into(base: Path, adapter: Path, scale: float = 1.0) -> Path:
        folder = tmp_path / "merged"
        folder.mkdir()
        merge.merge(tiny.start(workspace, {}), base, adapter, folder, scale)
        return folder

    return merge_into


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def edit_config(adapter: Path, **changes: Any) -> None:
    file = adapter / "adapter_config.json"
    files.write_json(file, files.read_json(file) | changes)


def test_merged_logits_are_those_of_the_base_with_its_adapter(into: Any, tiny: Any, base: Path, adapter: Path) -> None:
    merged = tiny.load(into(base, adapter))
    with torch.no_grad():
        plain, tuned, got = (
            m(input_ids=IDS).logits for m in (tiny.load(base), tiny.with_adapter(base, adapter), merged)
        )
    assert (tuned - plain).abs().max() > 0.5
    # Weights in bfloat16 keep 8 bits: 0.4 % each.
    assert (got - tuned).abs().max() < 0.02 * tuned.abs().max()
    assert (got - tuned).norm() < 0.02 * (tuned - plain).norm()


@pytest.mark.parametrize(
    "config",
    [
        {"target_modules": "all-linear"},
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 4}, "alpha_pattern": {"layers.1.self_attn.q_proj": 32, "down_proj": 3}},
        {"modules_to_save": ["lm_head"], "use_rslora": True, "rank_pattern": {"v_proj": 2}},
        {"target_modules": ["embed_tokens", "o_proj"]},
        {"bias": "lora_only"},
        {"use_dora": True, "use_rslora": True, "alpha_pattern": {"down_proj": 3}},
    ],
    ids=["all-linear", "rslora", "patterns", "modules-to-save", "embedding", "bias", "dora"],
)
def test_every_merged_weight_is_bit_for_bit_what_peft_computes(
    config: dict[str, Any], into: Any, tiny: Any, base: Path, tmp_path: Path
) -> None:
    adapter = tiny.adapter(tmp_path / "adapter", base, **config)
    expected = tiny.with_adapter(base, adapter).merge_and_unload().state_dict()
    merged = tensors(into(base, adapter))
    assert merged.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(merged[name], expected[name].bfloat16())] == []
    assert any(not torch.equal(merged[name], tensor) for name, tensor in tensors(base).items())


def test_conv1d_weights_of_gpt2_are_merged_transposed(into: Any, tiny: Any, tmp_path: Path) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model

    torch.manual_seed(1)
    base, adapter = tmp_path / "gpt2", tmp_path / "adapter"
    config = GPT2Config(vocab_size=480, n_embd=64, n_layer=1, n_head=2, n_positions=64)
    GPT2LMHeadModel(config).save_pretrained(base)
    tiny.tokenizer(base)
    lora = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["c_attn"], fan_in_fan_out=True)
    model = get_peft_model(GPT2LMHeadModel.from_pretrained(base), lora)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    model.save_pretrained(str(adapter))
    expected = PeftModel.from_pretrained(GPT2LMHeadModel.from_pretrained(base), str(adapter)).merge_and_unload()
    merged = tensors(into(base, adapter))
    name = "transformer.h.0.attn.c_attn.weight"
    torch.testing.assert_close(merged[name].float(), expected.state_dict()[name], rtol=0.01, atol=0.001)


def test_adapter_scale_multiplies_the_change(into: Any, base: Path, adapter: Path) -> None:
    name = "model.layers.0.mlp.down_proj.weight"
    lora = load_file(adapter / "adapter_model.safetensors")
    a, b = (lora[f"base_model.model.{name.replace('weight', part)}.weight"] for part in ("lora_A", "lora_B"))
    expected = tensors(base)[name].float() + 0.25 * (16 / 8) * (b @ a)
    torch.testing.assert_close(tensors(into(base, adapter, 0.25))[name].float(), expected, rtol=0.005, atol=1e-4)


def test_shards_are_cut_anew_at_the_limit_with_a_whole_index(
    into: Any,
    tiny: Any,
    base: Path,
    adapter: Path,
    tmp_path: Path,
    workspace: Workspace,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sharded = tiny.base(tmp_path / "sharded", shard="1MB")
    single = tmp_path / "single"
    single.mkdir()
    merge.merge(tiny.start(workspace, {}), sharded, adapter, single)
    assert [file.name for file in single.glob("model*")] == ["model.safetensors"]
    monkeypatch.setattr(shards, "MAX_SHARD_BYTES", 600_000)
    merged = into(base, adapter)
    index = files.read_json(merged / "model.safetensors.index.json")
    named = sorted(set(index["weight_map"].values()))
    assert named == [f"model-{i + 1:05}-of-{len(named):05}.safetensors" for i in range(len(named))]
    assert len(named) > 3
    assert all(sum(tensor.nbytes for tensor in load_file(merged / name).values()) <= 600_000 for name in named)
    assert all(name in load_file(merged / shard) for name, shard in index["weight_map"].items())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors(merged).values())
    one, other = tensors(merged), tensors(single)
    assert one.keys() == other.keys() == index["weight_map"].keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert tiny.load(merged)(input_ids=IDS).logits.shape == (2, 30, 480)


@pytest.mark.parametrize(
    "config",
    [{"target_modules": "all-linear"}, {"use_dora": True}, {"target_modules": ["embed_tokens"]}],
    ids=["all-linear", "dora", "transposed"],
)
def test_a_matrix_of_many_blocks_is_merged_like_one_of_one(
    config: dict[str, Any], into: Any, tiny: Any, base: Path, tmp_path: Path, workspace: Workspace,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    adapter = tiny.adapter(tmp_path / "adapter", base, **config)
    whole = tensors(into(base, adapter))
    blocks = tmp_path / "blocks"
    blocks.mkdir()
    # Seven rows of 256 columns, three of 512: no matrix ends with a whole block.
    monkeypatch.setattr(shards, "BLOCK_ELEMENTS", 7 * 256)
    monkeypatch.setattr(shards, "BLOCK_BYTES", 999)
    merge.merge(tiny.start(workspace, {}), base, adapter, blocks)
    for name, tensor in tensors(blocks).items():
        # A matrix library may add up a smaller product in another order: one unit in bfloat16's last place.
        torch.testing.assert_close(tensor, whole[name], rtol=2**-7, atol=1e-7)
        if f"base_model.model.{name}".removesuffix(".weight") not in str(load_file(adapter / ADAPTER).keys()):
            assert torch.equal(tensor, whole[name]), name


def test_a_32_bit_base_becomes_bfloat16_in_weights_and_config(
    into: Any, tiny: Any, adapter: Path, tmp_path: Path
) -> None:
    wide = tiny.base(tmp_path / "wide", dtype=torch.float32)
    merged = into(wide, adapter)
    assert {tensor.dtype for tensor in tensors(merged).values()} == {torch.bfloat16}
    assert files.read_json(merged / "config.json")["dtype"] == "bfloat16"
    assert merge.merged_bytes(wide) == pytest.approx(files.size_bytes(merged / "model.safetensors"), rel=0.01)


def test_a_float16_base_stays_float16(into: Any, tiny: Any, adapter: Path, tmp_path: Path) -> None:
    merged = into(tiny.base(tmp_path / "half", dtype=torch.float16), adapter)
    assert {tensor.dtype for tensor in tensors(merged).values()} == {torch.float16}
    assert files.read_json(merged / "config.json")["dtype"] == "float16"


def test_tied_weights_stay_tied(into: Any, tiny: Any, tmp_path: Path) -> None:
    tied = tiny.base(tmp_path / "tied", tied=True)
    adapter = tiny.adapter(tmp_path / "adapter", tied)
    merged = into(tied, adapter)
    assert "lm_head.weight" not in tensors(merged)
    with torch.no_grad():
        expected = tiny.with_adapter(tied, adapter)(input_ids=IDS).logits
        torch.testing.assert_close(tiny.load(merged)(input_ids=IDS).logits, expected, rtol=0.02, atol=0.05)


def test_the_tokenizer_of_the_adapter_goes_with_the_merged_model(into: Any, base: Path, adapter: Path) -> None:
    merged = into(base, adapter)
    for name in ("tokenizer.json", "chat_template.jinja"):
        assert (merged / name).read_bytes() == (adapter / name).read_bytes()
    assert files.read_json(merged / "generation_config.json")["eos_token_id"] == 2
    assert not (merged / "adapter_config.json").exists()


def test_training_the_embedding_of_a_tied_base_is_refused(into: Any, tiny: Any, base: Path, tmp_path: Path) -> None:
    tied = tiny.base(tmp_path / "tied", tied=True)
    adapter = tiny.adapter(tmp_path / "adapter", base, target_modules=["embed_tokens"])
    with pytest.raises(InvalidInput, match="embed_tokens"):
        into(tied, adapter)


def test_a_tied_embedding_trained_as_one_matrix_stays_one(into: Any, tiny: Any, tmp_path: Path) -> None:
    tied = tiny.base(tmp_path / "tied", tied=True)
    saved = {"modules_to_save": ["embed_tokens", "lm_head"], "ensure_weight_tying": True}
    adapter = tiny.adapter(tmp_path / "adapter", tied, **saved)
    merged = into(tied, adapter)
    assert "lm_head.weight" not in tensors(merged)
    assert not torch.equal(*(tensors(folder)["model.embed_tokens.weight"] for folder in (tied, merged)))
    with torch.no_grad():
        expected = tiny.with_adapter(tied, adapter)(input_ids=IDS).logits
        torch.testing.assert_close(tiny.load(merged)(input_ids=IDS).logits, expected, rtol=0.02, atol=0.05)


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
def test_a_tied_embedding_whose_head_went_its_own_way_is_refused(into: Any, tiny: Any, tmp_path: Path) -> None:
    tied = tiny.base(tmp_path / "tied", tied=True)
    adapter = tiny.adapter(tmp_path / "adapter", tied, modules_to_save=["embed_tokens"])
    with pytest.raises(InvalidInput, match="embed_tokens"):
        into(tied, adapter)


def test_a_loftq_adapter_is_merged_into_what_4_bits_left_of_the_base(
    into: Any, tiny: Any, base: Path, tmp_path: Path
) -> None:
    from bitsandbytes.nn.modules import Linear4bit

    adapter = tiny.adapter(tmp_path / "adapter", base)
    name = "model.layers.1.mlp.down_proj.weight"
    weight = tensors(base)[name]
    layer = Linear4bit(weight.shape[1], weight.shape[0], bias=False, compress_statistics=True, quant_type="nf4")
    layer.load_state_dict({"weight": weight})
    with torch.no_grad():
        of_base = layer.to("cpu")(torch.eye(weight.shape[1])).T
    before = tensors(into(base, adapter))
    edit_config(adapter, loftq_config={"loftq_bits": 4, "loftq_iter": 1})
    shutil.rmtree(tmp_path / "merged")
    after = tensors(into(base, adapter))
    expected = before[name].float() - weight.float() + of_base
    torch.testing.assert_close(after[name].float(), expected, rtol=0.02, atol=2e-3)
    assert torch.equal(after["model.layers.1.mlp.up_proj.weight"], before["model.layers.1.mlp.up_proj.weight"])


def test_a_model_trained_as_a_whole_only_changes_its_width(into: Any, tiny: Any, tmp_path: Path) -> None:
    whole = tiny.base(tmp_path / "whole", dtype=torch.float32)
    folder = into(whole, whole)
    merged = tensors(folder)
    assert {file.name for file in whole.iterdir()} <= {file.name for file in folder.iterdir()}, "its tokenizer too"
    assert tensors(whole).keys() == merged.keys()
    assert all(torch.equal(merged[name], tensor.bfloat16()) for name, tensor in tensors(whole).items())


def test_an_adapter_of_another_width_is_refused(into: Any, base: Path, tiny: Any, tmp_path: Path) -> None:
    adapter = tiny.adapter(tmp_path / "adapter", base)
    file = adapter / "adapter_model.safetensors"
    save_file({k: v[:, :128].contiguous() if "down_proj.lora_A" in k else v for k, v in load_file(file).items()}, file)
    with pytest.raises(InvalidInput, match="down_proj") as caught:
        into(base, adapter)
    assert caught.value.code == "adapter_of_another_base"


def test_a_base_with_a_missing_shard_is_refused_before_anything_is_written(
    into: Any, tiny: Any, adapter: Path, tmp_path: Path
) -> None:
    sharded = tiny.base(tmp_path / "sharded", shard="1MB")
    sorted(sharded.glob("*.safetensors"))[1].unlink()
    with pytest.raises(InvalidInput, match="model-00002-of") as caught:
        into(sharded, adapter)
    assert caught.value.code == "base_incomplete"
    assert not list((tmp_path / "merged").iterdir())


def test_a_cut_off_shard_is_refused_before_anything_is_written(
    into: Any, tiny: Any, adapter: Path, tmp_path: Path
) -> None:
    cut = tiny.base(tmp_path / "cut")
    with (cut / "model.safetensors").open("r+b") as file:
        file.truncate(500_000)
    with pytest.raises(InvalidInput, match="it has 500,000 bytes and must have") as caught:
        into(cut, adapter)
    assert caught.value.code == "weights_damaged"
    assert not list((tmp_path / "merged").iterdir())


def test_a_cancel_stops_the_merge_between_tensors(
    workspace: Workspace, tiny: Any, base: Path, adapter: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "merged"
    folder.mkdir()
    context = tiny.start(workspace, {})
    report = context.progress

    def cancel_at_the_second(phase: str, done: float = 0, total: float = 0) -> None:
        report(phase, done, total)
        if done:
            workspace.store.execute("UPDATE jobs SET cancel='keep' WHERE id=?", context.job_id)

    context.progress = cancel_at_the_second
    with pytest.raises(Cancelled):
        merge.merge(context, base, adapter, folder)
    assert workspace.store.job(context.job_id)["progress"]["done"] == merge.TOLD_EVERY
    assert not (folder / "config.json").exists()


def moved(folder: Path, **config: Any) -> None:
    """As if the adapter had been trained elsewhere: its base is gone, or is known by a name only."""
    edit_config(folder, base_model_name_or_path="org/model", **config)


def test_another_base_of_the_same_shapes_is_refused_by_its_recorded_fingerprint(
    into: Any, tiny: Any, base: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(base, other)
    changed = tensors(base)
    changed["model.layers.1.mlp.up_proj.weight"] += 1
    save_file(changed, other / "model.safetensors")
    adapter = tiny.adapter(tmp_path / "adapter", base)
    moved(adapter)
    files.write_json(adapter / "provenance.json", {"base_fingerprint": weights.fingerprint(base)})
    with pytest.raises(InvalidInput, match="trained on other weights") as caught:
        into(other, adapter)
    assert caught.value.code == "adapter_of_another_base"
    assert not list((tmp_path / "merged").iterdir())


def test_merging_an_adapter_twice_is_refused(
    into: Any, tiny: Any, base: Path, adapter: Path, tmp_path: Path, workspace: Workspace
) -> None:
    once = into(base, adapter)
    twice = tmp_path / "twice"
    twice.mkdir()
    with pytest.raises(InvalidInput, match="merged into already") as caught:
        merge.merge(tiny.start(workspace, {}), once, adapter, twice)
    assert caught.value.code == "adapter_of_another_base"


def test_a_moved_or_cut_anew_copy_of_the_base_is_the_base(into: Any, tiny: Any, base: Path, tmp_path: Path) -> None:
    adapter = tiny.adapter(tmp_path / "adapter", base)
    moved(adapter)
    files.write_json(adapter / "provenance.json", {"base_fingerprint": weights.fingerprint(base)})
    assert (into(tiny.base(tmp_path / "sharded", shard="1MB"), adapter) / "config.json").is_file()


def test_an_adapter_that_names_a_base_of_another_place_is_taken_by_its_shapes(
    into: Any, tiny: Any, base: Path, tmp_path: Path
) -> None:
    adapter = tiny.adapter(tmp_path / "adapter", base)
    moved(adapter)
    assert (into(base, adapter) / "config.json").is_file()


def test_every_small_file_is_carried_along_and_two_tokenizers_are_never_mixed(
    into: Any, tiny: Any, adapter: Path, tmp_path: Path
) -> None:
    base = tiny.base(tmp_path / "base")
    extra = {
        "LICENSE": "terms", "NOTICE.txt": "by", "preprocessor_config.json": "{}", "processor_config.json": "{}",
        "vocab.json": "{}", "merges.txt": "", "special_tokens_map.json": "{}", "notes.md": "no",
    }  # fmt: skip
    for name, text in extra.items():
        files.write_text(base / name, text)
    own = tmp_path / "adapter"
    shutil.copytree(adapter, own)
    (own / "additional_chat_templates").mkdir()
    files.write_text(own / "additional_chat_templates" / "rag.jinja", "{{ documents }}")
    names = {file.relative_to(tmp_path / "merged").as_posix() for file in into(base, own).rglob("*") if file.is_file()}
    assert names == {
        "config.json", "generation_config.json", "model.safetensors", "LICENSE", "NOTICE.txt",
        "preprocessor_config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json",
        "chat_template.jinja", "additional_chat_templates/rag.jinja",
    }  # fmt: skip
