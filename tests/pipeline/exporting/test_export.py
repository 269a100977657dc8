"""Exports for real: llama.cpp's converter, llama.cpp itself, and nothing left behind where one fails."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tunewright.pipeline import files, worker
from tunewright.pipeline.chat_template import ChatTemplate
from tunewright.pipeline.errors import Cancelled, InvalidInput, NoSpace, NotFound, TunewrightError
from tunewright.pipeline.exporting import export, merge, pretokenizer, request, verify
from tunewright.pipeline.exporting.runtime import LlamaRuntime
from tunewright.pipeline.workspace import Workspace


def leftovers(workspace: Workspace) -> list[str]:
    return [path.name for path in workspace.home.exports.iterdir()]


def test_an_export_holds_what_was_asked_for_and_nothing_else(exported: Any) -> None:
    names = sorted(path.name for path in exported.folder.iterdir())
    assert names == ["lora", "merged", "parity.json", "tiny-one-q8_0.gguf"]
    assert leftovers(exported.workspace) == [exported.result["export_id"]]
    for entry in exported.result["files"]:
        assert entry["bytes"] == files.size_bytes(Path(entry["path"]))
    gguf = exported.path("gguf:q8_0")
    entry = next(entry for entry in exported.result["files"] if entry["output"] == "gguf:q8_0")
    assert entry["sha256"] == hashlib.sha256(gguf.read_bytes()).hexdigest()


def test_the_artifact_says_where_the_export_comes_from(exported: Any) -> None:
    row = exported.workspace.store.artifact(exported.result["export_id"], "export")
    assert row["parents"] == [exported.adapter["id"]] and row["job_id"] == exported.context.job_id
    document = row["document"]
    assert document["files"] == exported.result["files"] and document["path"] == str(exported.folder)
    assert document["adapter_scale"] == 0.5 and document["enable_thinking"] is False
    assert document["max_seq_length"] == 256 and document["base_model"] == exported.adapter["document"]["base_model"]


def test_parity_is_stored_beside_the_files(exported: Any) -> None:
    parity = json.loads((exported.folder / "parity.json").read_text(encoding="utf-8"))
    assert parity == exported.result["parity"]
    found = parity["gguf:q8_0"]
    assert found["token_ids"] == {"texts": len(verify.CORPUS) + 1, "equal": True, "combining_marks_equal": True}
    assert found["prompts"] == {"conversations": len(verify.CONVERSATIONS) + 1, "equal": True}
    assert found["answer"]["tokens"] > 0 and found["answer"]["ended"] in ("stop", "length")


def test_the_exported_adapter_carries_the_scale_of_the_merge(exported: Any, adapter: Path) -> None:
    lora = exported.path("lora")
    assert files.read_json(lora / "adapter_config.json")["lora_alpha"] == 8
    assert (lora / "adapter_model.safetensors").read_bytes() == (adapter / "adapter_model.safetensors").read_bytes()


def test_the_merged_model_loads_and_differs_from_its_base(exported: Any, base: Path, tiny: Any) -> None:
    merged = exported.path("merged_16bit")
    tiny.load(merged)
    name = "model.layers.0.mlp.down_proj.weight"
    assert not load_file(merged / "model.safetensors")[name].equal(load_file(base / "model.safetensors")[name])


def test_the_gguf_keeps_thinking_off_even_for_who_turns_it_on(exported: Any, adapter: Path, tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    expected = ChatTemplate(adapter, enable_thinking=False).render(messages, add_generation_prompt=True)
    assert expected.endswith("<think>\n\n</think>\n\n")
    with LlamaRuntime(exported.path("gguf:q8_0"), log=tmp_path / "log") as runtime:
        for switch in (None, True, False):
            assert runtime.apply_template(messages, enable_thinking=switch) == expected


def test_the_gguf_answers_as_the_merged_model_does(exported: Any, adapter: Path, tiny: Any, tmp_path: Path) -> None:
    import torch

    messages = [{"role": "user", "content": "Where is the fox?"}]
    template = ChatTemplate(adapter)
    ids = template.ids(template.render(messages, add_generation_prompt=True))
    with torch.no_grad():
        best = tiny.load(exported.path("merged_16bit"))(input_ids=torch.tensor([ids])).logits[0, -1].topk(3).indices
    with LlamaRuntime(exported.path("gguf:q8_0"), log=tmp_path / "log") as runtime:
        reply = runtime.chat(messages, max_tokens=4)
    assert reply["tokens"][0] in best.tolist()
    assert len(reply["tokens"]) == 4 and reply["finish_reason"] == "length"


def test_a_wrong_pre_tokenizer_fails_the_job_and_leaves_nothing(
    workspace: Workspace, tiny: Any, base: Path, adapter: Path, converter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretokenizer, "recognise", lambda folder: "gpt-2")
    row = tiny.add_adapter(workspace, adapter, base)
    context = tiny.start(workspace, request.check(workspace, row["id"], ["gguf:f16"]))
    with pytest.raises(TunewrightError, match="instead of") as caught:
        export.run(context)
    assert caught.value.code == "parity_failed"
    assert leftovers(workspace) == [] and workspace.store.artifacts("export") == []


def test_an_unknown_split_is_refused_by_the_converter_and_leaves_nothing(
    workspace: Workspace, tiny: Any, base: Path, converter: Path, tmp_path: Path
) -> None:
    adapter = tiny.adapter(tmp_path / "adapter", base)
    tiny.tokenizer(adapter, split=r"\p{L}+|\p{N}|\s|.")
    row = tiny.add_adapter(workspace, adapter, base)
    context = tiny.start(workspace, request.check(workspace, row["id"], ["gguf:q8_0"]))
    with pytest.raises(TunewrightError, match="pre-tokenizer was not recognized") as caught:
        export.run(context)
    assert caught.value.code == "conversion_failed"
    assert leftovers(workspace) == []


def test_an_adapter_alone_needs_neither_base_nor_converter(workspace: Workspace, tiny: Any, adapter: Path) -> None:
    row = tiny.add_adapter(workspace, adapter, Path("/gone"))
    result = export.run(tiny.start(workspace, request.check(workspace, row["id"], ["lora"])))
    lora = workspace.home.exports / result["export_id"] / "lora"
    assert {path.name for path in lora.iterdir()} == {path.name for path in adapter.iterdir()}
    assert result["parity"] == {}


def test_a_base_that_is_gone_is_not_found(workspace: Workspace, tiny: Any, adapter: Path, tmp_path: Path) -> None:
    row = tiny.add_adapter(workspace, adapter, tmp_path / "gone")
    with pytest.raises(NotFound, match="base_missing"):
        export.run(tiny.start(workspace, request.check(workspace, row["id"], ["merged_16bit"])))
    assert leftovers(workspace) == []


def test_a_quantized_base_is_never_merged_into(workspace: Workspace, tiny: Any, adapter: Path, tmp_path: Path) -> None:
    base = tiny.base(tmp_path / "base")
    config = files.read_json(base / "config.json")
    files.write_json(base / "config.json", config | {"quantization_config": {"quant_method": "bitsandbytes"}})
    row = tiny.add_adapter(workspace, adapter, base)
    with pytest.raises(InvalidInput, match="bitsandbytes") as caught:
        export.run(tiny.start(workspace, request.check(workspace, row["id"], ["merged_16bit"])))
    assert caught.value.code == "base_quantized"


def test_a_4bit_copy_from_the_hub_is_replaced_by_its_cached_original(
    workspace: Workspace, tiny: Any, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    cache = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    repository = cache / "models--unsloth--Tiny"
    tiny.base(repository / "snapshots" / "abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc", encoding="utf-8")
    quantized = tmp_path / "quantized"
    quantized.mkdir()
    files.write_json(quantized / "config.json", {"quantization_config": {"quant_method": "bitsandbytes"}})
    row = tiny.add_adapter(workspace, adapter, quantized, base_model="unsloth/Tiny-unsloth-bnb-4bit")
    result = export.run(tiny.start(workspace, request.check(workspace, row["id"], ["merged_16bit"])))
    assert (workspace.home.exports / result["export_id"] / "merged" / "model.safetensors").is_file()


def test_too_little_space_is_said_with_both_numbers_before_anything_is_written(
    workspace: Workspace, tiny: Any, base: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merge, "merged_bytes", lambda base: 10**15)
    row = tiny.add_adapter(workspace, adapter, base)
    with pytest.raises(NoSpace, match=r"1000000\.10 GB"):
        export.run(tiny.start(workspace, request.check(workspace, row["id"], ["merged_16bit"])))
    assert leftovers(workspace) == []


def test_a_cancel_during_conversion_kills_the_converter_and_leaves_nothing(
    workspace: Workspace, tiny: Any, base: Path, adapter: Path, converter: Path
) -> None:
    row = tiny.add_adapter(workspace, adapter, base)
    context = tiny.start(workspace, request.check(workspace, row["id"], ["gguf:q8_0"]))
    report = context.progress

    def cancel_at_conversion(phase: str, done: float = 0, total: float = 0) -> None:
        report(phase, done, total)
        if phase.startswith("converting"):
            workspace.store.execute("UPDATE jobs SET cancel='keep' WHERE id=?", context.job_id)

    context.progress = cancel_at_conversion
    with pytest.raises(Cancelled):
        export.run(context)
    assert leftovers(workspace) == []


def test_the_worker_runs_an_export_to_success(workspace: Workspace, tiny: Any, base: Path, adapter: Path) -> None:
    row = tiny.add_adapter(workspace, adapter, base)
    context = tiny.start(workspace, request.check(workspace, row["id"], ["merged_16bit"]))
    workspace.store.execute("UPDATE jobs SET state='queued' WHERE id=?", context.job_id)
    assert worker.run_job(workspace, context.job_id) == "succeeded"
    job = workspace.store.job(context.job_id)
    assert workspace.store.artifact(job["result"]["export_id"])["kind"] == "export"
