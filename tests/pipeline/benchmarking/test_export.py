"""An export beside the model that it was made of: in llama.cpp, with the same tokens, to the same letters."""

import json
from pathlib import Path
from typing import Any

from tunewright.pipeline.benchmarking import benchmark, request
from tunewright.pipeline.exporting import gguf, toolchain
from tunewright.pipeline.workspace import Workspace


def test_a_16_bit_export_answers_as_the_model_does(
    workspace: Workspace, bench: Any, tiny: Path, toy_folder: Path, tmp_path: Path
) -> None:
    tuned = bench.save(bench.random_model(4), tmp_path / "tuned", toy_folder)
    row = bench.add_adapter(workspace, tuned, tiny, form="full")
    folder, layout = workspace.home.exports / "ex-tiny-0000", tmp_path / "layout"
    folder.mkdir()
    layout.mkdir()
    gguf.lay_out(tuned, layout, enable_thinking=False)
    log, file = tmp_path / "log", folder / "tiny-f16.gguf"
    gguf.convert(toolchain.provide(log), layout, file, "f16", name="tiny", log=log, check_cancelled=lambda: None)
    document = {
        "adapter_id": row["id"],
        "files": [{"output": "gguf:f16", "path": str(file), "bytes": file.stat().st_size}],
        "parity": {},
    }
    workspace.store.add_artifact(folder.name, "export", "tiny", document, parents=[row["id"]])
    root = bench.write_exam(tmp_path / "exam", {"law": 30, "logic": 30})
    spec = request.check(workspace, row["id"], task_dir=str(root), n_shot=1, export_id=folder.name)
    result = benchmark.run(bench.start(workspace, spec))
    lines = [json.loads(line) for line in Path(result["files"]["samples"]).read_text(encoding="utf-8").splitlines()]
    by_model = {name: [line for line in lines if line["model"] == name] for name in ("tuned", "base", "export")}
    apart = [
        max(abs(one - other) for one, other in zip(a["logprobs"], b["logprobs"], strict=True))
        for a, b in zip(by_model["tuned"], by_model["export"], strict=True)
    ]
    # Weights rounded to 16 bits; the base, another random model, is as far off as can be.
    assert max(apart) < 0.05
    assert sum(a["chosen"] == b["chosen"] for a, b in zip(by_model["tuned"], by_model["export"], strict=True)) >= 57
    assert [(one["a"], one["b"]) for one in result["comparisons"]] == [
        ("tuned", "base"), ("export", "base"), ("export", "tuned"),
    ]  # fmt: skip
    assert result["comparisons"][2]["sentence"].startswith("No difference shown between the export and the tuned model")
    assert any("export: gguf:f16 of ex-tiny-0000, the smallest" in note for note in result["notes"])
