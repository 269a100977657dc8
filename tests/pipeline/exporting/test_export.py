"""Exports for real: llama.cpp's converter, llama.cpp itself, and nothing left behind where one fails."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tunewright.pipeline import files, worker
from tunewright.pipeline.chat_template import ChatTemplate
from tunewright.pipeline.errors import Cancelled, Conflict, InvalidInput, NoSpace, NotFound, TunewrightError
from tunewright.pipeline.exporting import base_weights, export, merge, parity, pretokenizer, request
from tunewright.pipeline.exporting.runtime import LlamaRuntime
from tunewright.pipeline.publishing import gate
from tunewright.pipeline.workspace import Workspace


def leftovers(workspace: Workspace) -> list[str]:
    return [path.name for path in workspace.home.exports.iterdir()]


def test_an_export_holds_what_was_asked_for_and_nothing_else(exported: Any) -> None:
    names = sorted(path.name for path in exported.folder.iterdir())
    assert names == ["export.json", "lora", "merged", "parity.json", "tiny-one-q8_0.gguf"]
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


def test_parity_is_measured_stored_and_told_without_the_rows_that_it_quotes(exported: Any) -> None:
    whole = json.loads((exported.folder / "parity.json").read_text(encoding="utf-8"))
    told = exported.result["parity"]
    assert told == parity.summary(whole) and told["passed"], told["failures"]
    assert told["outputs"]["gguf:q8_0"]["kl"] < 0.01 and told["outputs"]["gguf:q8_0"]["greedy_of"] > 0
    assert whole["cases"]["asked"][0][0]["content"] not in json.dumps(told)


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


def test_a_wrong_pre_tokenizer_fails_the_parity_and_the_export_is_kept_as_failed(
    workspace: Workspace, tiny: Any, base: Path, adapter: Path, converter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretokenizer, "recognise", lambda folder: "gpt-2")
    row = tiny.add_adapter(workspace, adapter, base)
    context = tiny.start(workspace, request.check(workspace, row["id"], ["gguf:f16"]))
    result = export.run(context)
    assert result["parity"]["passed"] is False
    assert result["parity"]["failures"][0].startswith("gguf:f16: ")
    assert any(event["code"] == "parity_failed" for event in workspace.store.events(context.job_id, 10))
    row = workspace.store.artifact(result["export_id"], "export")
    with pytest.raises(Conflict, match="parity_failed"):
        gate.require(row, ["gguf:f16"], force=False, retry="publish_to_ollama(…)")


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
    assert result["parity"] == {}
    lora = workspace.home.exports / result["export_id"] / "lora"
    assert {path.name for path in lora.iterdir()} == {path.name for path in adapter.iterdir()}


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


def test_the_revision_that_was_trained_on_is_merged_into_not_the_newest(
    workspace: Workspace, tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub" / "models--me--tiny"
    trained_on, newest = "a" * 40, "b" * 40
    for revision in (trained_on, newest):
        tiny.base(repository / "snapshots" / revision)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(newest, encoding="utf-8")
    folder = tmp_path / "adapter"
    folder.mkdir()
    files.write_json(folder / "provenance.json", {"base_revision": trained_on})
    row = tiny.add_adapter(workspace, folder, tmp_path / "gone", base_model="me/tiny")
    assert base_weights.locate(workspace, row).name == trained_on


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

    def cancel_at_conversion(phase: str, done: float = 0, total: float = 0, **details: Any) -> None:
        report(phase, done, total, **details)
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


def test_combined_adapters_are_exported_as_one(
    workspace: Workspace, tiny: Any, base: Path, adapter: Path, tmp_path: Path
) -> None:
    other = tiny.adapter(tmp_path / "other", base, target_modules=["q_proj", "v_proj", "down_proj"])
    rows = [tiny.add_adapter(workspace, folder, base) for folder in (adapter, other)]
    spec = request.check(
        workspace, rows[0]["id"], ["lora", "merged_16bit"], adapter_scale=0.5, combine_with={rows[1]["id"]: 0.5}
    )
    result = export.run(tiny.start(workspace, spec))
    assert result["parity"]["passed"], result["parity"]["failures"]
    row = workspace.store.artifact(result["export_id"], "export")
    assert row["parents"] == [rows[0]["id"], rows[1]["id"]] and row["document"]["combination"] == "cat"


@pytest.mark.parametrize(("phase", "asked"), [("merging", ["merged_16bit"]), ("converting", ["gguf:f16"])])
def test_a_killed_export_begins_anew_and_leaves_nothing_of_the_first_attempt(
    phase: str, asked: list[str], workspace: Workspace, tiny: Any, base: Path, adapter: Path, converter: Path,
    eventually: Any,
) -> None:  # fmt: skip
    row = tiny.add_adapter(workspace, adapter, base)
    context = tiny.start(workspace, request.check(workspace, row["id"], asked))
    code = (
        "import sys; from pathlib import Path; from tunewright.pipeline.context import JobContext; "
        "from tunewright.pipeline.exporting import export; from tunewright.pipeline.workspace import Workspace; "
        "export.run(JobContext.of(Workspace.open(sys.argv[1]), sys.argv[2]))"
    )
    child = subprocess.Popen([sys.executable, "-P", "-c", code, str(workspace.home.root), context.job_id])
    try:
        eventually(
            lambda: ((workspace.store.job(context.job_id)["progress"] or {}).get("phase") or "").startswith(phase),
            timeout_s=120,
        )
    finally:
        child.kill()
        child.wait()
    assert [name[:9] for name in leftovers(workspace)] == [".partial-"]
    result = export.run(context)
    assert leftovers(workspace) == [result["export_id"]]
    assert result["parity"]["passed"], result["parity"]["failures"]
    # Run once more, as after a kill between its end and the word of it: the same export, made once.
    made_at = (workspace.home.exports / result["export_id"]).stat().st_mtime
    assert export.run(context) == result
    assert (workspace.home.exports / result["export_id"]).stat().st_mtime == made_at


def test_what_a_cancelled_job_s_kill_left_goes_with_the_next_export(
    workspace: Workspace, tiny: Any, adapter: Path
) -> None:
    left = workspace.home.exports / ".partial-job-gone-ab12-ex-gone-ab12"
    left.mkdir()
    (left / "half.gguf").write_bytes(b"half")
    row = tiny.add_adapter(workspace, adapter, Path("/gone"))
    spec = request.check(workspace, row["id"], ["lora"])
    at_work = workspace.home.exports / f".partial-{tiny.start(workspace, spec).job_id}-ex-other-ab12"
    at_work.mkdir()
    result = export.run(tiny.start(workspace, spec))
    assert sorted(leftovers(workspace)) == sorted([result["export_id"], at_work.name])
