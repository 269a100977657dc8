"""The stage of the job kind `export`: an adapter in the forms that were asked for, and the proof that they are it.

Guarantees: `exports/ID/` appears whole or not at all, and its row after it; a run after a kill clears what the killed
one left, or finds its finished work. An export that failed its parity is kept and says so (`publishing/gate.py` stops
it there). Runs in a worker; uses the GPU if one is there. llama.cpp runs in its own processes.
"""

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tunewright.pipeline import files, jobs
from tunewright.pipeline.context import JobContext
from tunewright.pipeline.exporting import (
    base_weights,
    bits4,
    combine,
    gguf,
    lora_gguf,
    merge,
    parity,
    quantizer,
    toolchain,
)
from tunewright.pipeline.exporting.outputs import (
    BITS_PER_WEIGHT,
    DIRECT,
    LORA,
    LORA_GGUF,
    MERGED,
    MERGED_4BIT,
    gguf_type,
    is_adapter,
    is_gguf,
)
from tunewright.pipeline.ids import id_within, slug
from tunewright.pipeline.store import Row

DOCUMENT = "export.json"
# NF4 with quantized scales, and the embeddings in 16 bits: about a third of a small model, less of a large one.
BITS_IN_4BIT_FOLDER = 6.0


@dataclass(frozen=True)
class Parts:
    """What the outputs are made of. None where they do without: an adapter alone needs no base, F16 no quantizer."""

    adapter: Row
    source: Path
    scale: float
    base: Path | None
    converter: Path | None
    quantizer: Path | None


def run(context: JobContext) -> dict[str, Any]:
    """Exports `spec["adapter_id"]` as `spec["outputs"]` (see `request.check`); stores the artifact and returns its id.

    Raises TunewrightError, NoSpace and Cancelled; nothing of the export is left then.
    """
    store, spec = context.workspace.store, context.spec
    exports = context.workspace.home.exports
    adapter = store.artifact(spec["adapter_id"], "adapter")
    final = exports / id_within("export", spec["name"], context.job_id)
    _remove_abandoned(context)
    if not final.exists():
        with files.new_folder(final, owner=context.job_id) as folder:
            files.write_json(folder / DOCUMENT, _make(context, adapter, folder, final))
            context.check_cancelled()
    context.progress("exported", len(spec["outputs"]), len(spec["outputs"]))
    document = files.read_json(final / DOCUMENT)
    if not store.rows("SELECT id FROM artifacts WHERE id=?", final.name):
        parents = [adapter["id"], *spec["combine_with"]]
        try:
            store.add_artifact(final.name, "export", spec["name"], document, parents=parents, job_id=context.job_id)
        except BaseException:
            shutil.rmtree(final)
            raise
    return {"export_id": final.name, "files": document["files"], "parity": document["parity"]}


def _remove_abandoned(context: JobContext) -> None:
    """What killed runs left: of this job, and of jobs that will not go on. They can be as large as the model."""
    exporting = context.workspace.store.rows("SELECT id, state FROM jobs WHERE kind='export'")
    others = [row["id"] for row in exporting if row["state"] in jobs.ACTIVE and row["id"] != context.job_id]
    for left in context.workspace.home.exports.glob(f"{files.PARTIAL}job-*"):
        if not any(left.name.startswith(f"{files.PARTIAL}{owner}-") for owner in others):
            shutil.rmtree(left, ignore_errors=True)


def _make(context: JobContext, adapter: Row, folder: Path, final: Path) -> dict[str, Any]:
    """Fills the export's folder; returns the artifact's document."""
    spec = context.spec
    with TemporaryDirectory(dir=folder) as temporary:
        parts = _gather(context, adapter, Path(temporary))
        written = _write_adapters(context, parts, folder)
        measured: dict[str, Any] = {}
        if parts.base is not None and not all(map(is_adapter, spec["outputs"])):
            merged = folder / "merged" if MERGED in spec["outputs"] else Path(temporary) / "merged"
            written |= _write_models(context, parts, parts.base, merged, folder, Path(temporary))
            if spec["verify"]:
                measured = _measure(context, parts, parts.base, merged, written, folder)
    files_made = [_entry(folder, final, output, written[output]) for output in spec["outputs"]]
    document = adapter["document"]
    return {
        "path": str(final),
        "adapter_id": adapter["id"],
        "combine_with": spec["combine_with"],
        "combination": spec["combination"],
        "base_model": document["base_model"],
        "files": files_made,
        "parity": measured,
        "enable_thinking": document.get("enable_thinking", False),
        "max_seq_length": document.get("max_seq_length"),
        "adapter_scale": spec["adapter_scale"],
    }


def _gather(context: JobContext, adapter: Row, temporary: Path) -> Parts:
    """Finds or fetches all that is needed, and checks the disk for all that will be written, before it is."""
    spec, workspace = context.spec, context.workspace
    outputs: list[str] = spec["outputs"]
    types = [gguf_type(output) for output in outputs if is_gguf(output)]
    log = context.folder / "toolchain.log"
    converter = program = base = None
    if types or LORA_GGUF in outputs:
        context.progress("finding the converter")
        converter = toolchain.provide(log, context.check_cancelled)
    if any(kind not in DIRECT for kind in types):
        context.progress("finding the quantizer")
        program = toolchain.provide_quantizer(log, context.check_cancelled, context.progress)
    elif len(types) > 1:
        # One conversion is faster than several, but worth no building.
        program = toolchain.find_quantizer()
    source, scale = Path(adapter["document"]["path"]), spec["adapter_scale"]
    needed = files.size_bytes(source) * sum(map(is_adapter, outputs))
    if any(output != LORA for output in outputs) or spec["combine_with"]:
        context.progress("finding the base's weights")
        base = base_weights.locate(workspace, adapter)
    if base is not None and not all(map(is_adapter, outputs)):
        needed += _model_bytes(merge.merged_bytes(base), outputs, types, intermediate=program is not None)
    files.require_space(workspace.home.exports, needed, f"The export ({', '.join(outputs)})")
    context.check_cancelled()
    if base is not None and spec["combine_with"]:
        source, scale = _combined(context, adapter, base, temporary), 1.0
    return Parts(adapter, source, scale, base, converter, program)


def _model_bytes(merged: int, outputs: Sequence[str], types: Sequence[str], *, intermediate: bool) -> int:
    """The merged model is on the disk while the others are made, wanted or not, and so is what is quantized from."""
    shares = [BITS_PER_WEIGHT[kind] / 16 for kind in types]
    if intermediate and not {"f16", "bf16"} & set(types):
        shares.append(1.0)
    if MERGED_4BIT in outputs:
        shares.append(BITS_IN_4BIT_FOLDER / 16)
    return round(merged * (1 + sum(shares)))


def _combined(context: JobContext, adapter: Row, base: Path, temporary: Path) -> Path:
    store, spec = context.workspace.store, context.spec
    weights = {adapter["id"]: spec["adapter_scale"], **spec["combine_with"]}
    context.progress(f"combining {len(weights)} adapters")
    sources = [
        (Path(store.artifact(adapter_id, "adapter")["document"]["path"]), weight)
        for adapter_id, weight in weights.items()
    ]
    folder = temporary / "combined"
    for warning in combine.combine(base, sources, spec["combination"], folder):
        context.event("warning", "combination", warning)
    return folder


def _write_adapters(context: JobContext, parts: Parts, folder: Path) -> dict[str, Path]:
    written: dict[str, Path] = {}
    if LORA in context.spec["outputs"]:
        written[LORA] = folder / "lora"
        _copy_adapter(parts.source, written[LORA], parts.scale)
    if LORA_GGUF in context.spec["outputs"] and parts.converter is not None and parts.base is not None:
        context.progress("converting the adapter")
        written[LORA_GGUF] = folder / f"{slug(context.spec['name'], 64)}-lora.gguf"
        lora_gguf.convert(
            parts.converter, parts.source, parts.base, written[LORA_GGUF], adapter_scale=parts.scale,
            log=context.folder / "converter.log", check_cancelled=context.check_cancelled,
        )  # fmt: skip
    return written


def _write_models(
    context: JobContext, parts: Parts, base: Path, merged: Path, folder: Path, temporary: Path
) -> dict[str, Path]:
    outputs: list[str] = context.spec["outputs"]
    written: dict[str, Path] = {}
    merged.mkdir()
    merge.merge(context, base, parts.source, merged, parts.scale)
    if MERGED in outputs:
        written[MERGED] = merged
    else:
        # How long a context the model knows is asked for when a GGUF goes to Ollama.
        shutil.copyfile(merged / "config.json", folder / "config.json")
    if MERGED_4BIT in outputs:
        written[MERGED_4BIT] = folder / "merged_4bit"
        written[MERGED_4BIT].mkdir()
        bits4.quantize(merged, written[MERGED_4BIT], context.check_cancelled, context.progress)
    types = [gguf_type(output) for output in outputs if is_gguf(output)]
    if types and parts.converter is not None:
        layout = temporary / "layout"
        layout.mkdir()
        gguf.lay_out(merged, layout, enable_thinking=parts.adapter["document"].get("enable_thinking", False))
        written |= _convert(context, parts.converter, parts.quantizer, layout, types, folder, temporary)
    return written


def _convert(
    context: JobContext,
    converter: Path,
    program: Path | None,
    layout: Path,
    types: Sequence[str],
    folder: Path,
    temporary: Path,
) -> dict[str, Path]:
    """Every GGUF: by one conversion without loss and the quantizer, or without a quantizer each by the converter."""
    name = context.spec["name"]
    final = {kind: folder / f"{slug(name, 64)}-{kind}.gguf" for kind in types}
    lossless = "f16" if files.read_json(layout / "config.json")["dtype"] == "float16" else "bf16"
    by_converter = [lossless] if program else list(types)
    source = final.get(lossless, temporary / "lossless.gguf")
    for number, kind in enumerate([*by_converter, *(kind for kind in types if kind not in by_converter)]):
        context.check_cancelled()
        context.progress(f"converting to {kind}", number, len(types))
        if kind in by_converter:
            gguf.convert(
                converter, layout, final.get(kind, source), kind, name=name, log=context.folder / "converter.log",
                check_cancelled=context.check_cancelled,
            )  # fmt: skip
        elif program is not None:
            fell_back = quantizer.quantize(
                program, source, final[kind], kind, log=context.folder / "quantizer.log",
                check_cancelled=context.check_cancelled,
                progress=partial(context.progress, f"quantizing to {kind}"),
            )  # fmt: skip
            if fell_back:
                context.event(
                    "warning", "other_type", f"{fell_back} tensors of {final[kind].name} have rows that {kind} cannot "
                    "hold (256 weights a block): llama.cpp stored them in a larger type.",
                )  # fmt: skip
    return {f"gguf:{kind}": path for kind, path in final.items()}


def _copy_adapter(source: Path, target: Path, adapter_scale: float) -> None:
    """The adapter as it is; a scale other than 1 goes into its alpha, where everyone who loads it reads it."""
    shutil.copytree(source, target)
    if adapter_scale != 1.0:
        config = files.read_json(target / "adapter_config.json")
        config["lora_alpha"] *= adapter_scale
        config["alpha_pattern"] = {k: v * adapter_scale for k, v in (config.get("alpha_pattern") or {}).items()}
        files.write_json(target / "adapter_config.json", config)


def _measure(
    context: JobContext, parts: Parts, base: Path, merged: Path, written: dict[str, Path], folder: Path
) -> dict[str, Any]:
    """Writes `parity.json`, says what failed as events, and returns the summary."""
    found = parity.measure(
        context, adapter=parts.adapter, base=base, source=parts.source, merged=merged, adapter_scale=parts.scale,
        ggufs={output: path for output, path in written.items() if is_gguf(output)},
    )  # fmt: skip
    if MERGED_4BIT in written:
        found["notes"].append(f"{MERGED_4BIT} was not measured, only the 16 bits that it is made of")
    files.write_json(folder / "parity.json", found)
    for failure in found["failures"]:
        context.event("error", "parity_failed", failure)
    if not all(output["token_ids"].get("combining_marks_equal", True) for output in found["outputs"].values()):
        context.event(
            "warning", "combining_marks", "llama.cpp cuts scripts with combining marks (Hindi, Thai) otherwise than "
            "this tokenizer does: there, and only there, the GGUF files read other tokens than training did.",
        )  # fmt: skip
    return parity.summary(found)


def _entry(folder: Path, final: Path, output: str, path: Path) -> dict[str, Any]:
    """How the artifact lists an output: where it will be, its bytes, and for a file its digest."""
    entry = {"output": output, "path": str(final / path.relative_to(folder)), "bytes": files.size_bytes(path)}
    if path.is_file():
        with path.open("rb") as file:
            entry["sha256"] = hashlib.file_digest(file, "sha256").hexdigest()
    return entry
