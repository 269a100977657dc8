"""The stage of the job kind `export`: an adapter as LoRA, merged 16-bit weights and GGUF files, with their parity.

Guarantees: `exports/ID/` appears whole, verified where asked for, or not at all. Runs in a worker; uses the GPU for the
products if one is there. Does not import transformers or Unsloth here: llama.cpp's converter does, in its own process.
"""

import hashlib
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tunewright.pipeline import files
from tunewright.pipeline.chat_template import ChatTemplate
from tunewright.pipeline.context import JobContext
from tunewright.pipeline.exporting import base_weights, gguf, merge, toolchain, verify
from tunewright.pipeline.exporting.request import LORA, MERGED
from tunewright.pipeline.ids import new_id, slug
from tunewright.pipeline.store import Row

# A block of Q8_0 is 32 bytes and a 16-bit scale for 32 weights.
BYTES_PER_MERGED_BYTE = {"gguf:f16": 1.0, "gguf:bf16": 1.0, "gguf:q8_0": 34 / 64}


def run(context: JobContext) -> dict[str, Any]:
    """Exports `spec["adapter_id"]` as `spec["outputs"]` (see `request.check`); stores the artifact and returns its id.

    Raises TunewrightError (`parity_failed` where a GGUF is not the trained model), NoSpace and Cancelled; nothing of
    the export is left then.
    """
    store, spec = context.workspace.store, context.spec
    adapter = store.artifact(spec["adapter_id"], "adapter")
    converter, base = _prepare(context, adapter)
    export_id = new_id("export", spec["name"] or adapter["name"])
    final = context.workspace.home.exports / export_id
    with files.new_folder(final) as folder:
        written = _write(context, adapter, base, converter, folder)
        parity = _verify(context, adapter, folder, written)
        entries = [_entry(folder, final, output, path) for output, path in written.items()]
        context.check_cancelled()
    document = {
        "path": str(final),
        "adapter_id": adapter["id"],
        "base_model": adapter["document"]["base_model"],
        "files": entries,
        "parity": parity,
        "enable_thinking": adapter["document"].get("enable_thinking", False),
        "max_seq_length": adapter["document"].get("max_seq_length"),
        "adapter_scale": spec["adapter_scale"],
    }
    try:
        store.add_artifact(
            export_id,
            "export",
            spec["name"] or adapter["name"],
            document,
            parents=[adapter["id"]],
            job_id=context.job_id,
        )
    except BaseException:
        shutil.rmtree(final)
        raise
    return {"export_id": export_id, "files": entries, "parity": parity}


def _prepare(context: JobContext, adapter: Row) -> tuple[Path | None, Path | None]:
    """The converter and the base's folder, each None where the outputs do without. Checks the disk for all of it."""
    outputs: list[str] = context.spec["outputs"]
    ggufs = [output for output in outputs if output in BYTES_PER_MERGED_BYTE]
    converter = base = None
    if ggufs:
        context.progress("finding the converter")
        log = context.folder / "toolchain.log"
        converter = toolchain.provide(context.workspace, log, context.check_cancelled)
    needed = files.size_bytes(Path(adapter["document"]["path"])) if LORA in outputs else 0
    if ggufs or MERGED in outputs:
        context.progress("finding the base's weights")
        base = base_weights.locate(context.workspace, adapter)
        # The merged model is on the disk while the GGUF files are made, wanted or not.
        needed += round(merge.merged_bytes(base) * (1 + sum(BYTES_PER_MERGED_BYTE[output] for output in ggufs)))
    files.require_space(context.workspace.home.exports, needed, f"The export ({', '.join(outputs)})")
    context.check_cancelled()
    return converter, base


def _write(
    context: JobContext, adapter: Row, base: Path | None, converter: Path | None, folder: Path
) -> dict[str, Path]:
    """Fills the export's folder; returns the file or folder of each output."""
    spec, source = context.spec, Path(adapter["document"]["path"])
    written: dict[str, Path] = {}
    if LORA in spec["outputs"]:
        written[LORA] = folder / "lora"
        _copy_adapter(source, written[LORA], spec["adapter_scale"])
    if base is None:
        return written
    with TemporaryDirectory(dir=folder) as temporary:
        merged = folder / "merged" if MERGED in spec["outputs"] else Path(temporary) / "merged"
        merged.mkdir()
        merge.merge(context, base, source, merged, spec["adapter_scale"])
        if MERGED in spec["outputs"]:
            written[MERGED] = merged
        if converter is not None:
            written |= _convert(context, adapter, converter, merged, Path(temporary), folder)
    return written


def _convert(
    context: JobContext, adapter: Row, converter: Path, merged: Path, temporary: Path, folder: Path
) -> dict[str, Path]:
    name = context.spec["name"] or adapter["name"]
    outputs = [output for output in context.spec["outputs"] if output in BYTES_PER_MERGED_BYTE]
    layout = temporary / "layout"
    layout.mkdir()
    gguf.lay_out(merged, layout, enable_thinking=adapter["document"].get("enable_thinking", False))
    written: dict[str, Path] = {}
    for number, output in enumerate(outputs):
        context.check_cancelled()
        context.progress(f"converting to {output}", number, len(outputs))
        outtype = output.removeprefix("gguf:")
        written[output] = folder / f"{slug(name, 64)}-{outtype}.gguf"
        gguf.convert(
            converter, layout, written[output], outtype, name=name, log=context.folder / "converter.log",
            check_cancelled=context.check_cancelled,
        )  # fmt: skip
    return written


def _copy_adapter(source: Path, target: Path, adapter_scale: float) -> None:
    """The adapter as it is; a scale other than 1 goes into its alpha, where everyone who loads it reads it."""
    shutil.copytree(source, target)
    if adapter_scale != 1.0:
        config = files.read_json(target / "adapter_config.json")
        config["lora_alpha"] *= adapter_scale
        config["alpha_pattern"] = {k: v * adapter_scale for k, v in (config.get("alpha_pattern") or {}).items()}
        files.write_json(target / "adapter_config.json", config)


def _verify(context: JobContext, adapter: Row, folder: Path, written: dict[str, Path]) -> dict[str, Any]:
    """The parity of every GGUF by its output, written to `parity.json`; empty where there is none to be checked."""
    ggufs = {output: path for output, path in written.items() if output in BYTES_PER_MERGED_BYTE}
    if not ggufs or not context.spec["verify"]:
        return {}
    document = adapter["document"]
    template = ChatTemplate(Path(document["path"]), enable_thinking=document.get("enable_thinking", False))
    question = verify.question_for(context.workspace, adapter)
    parity: dict[str, Any] = {}
    for number, (output, path) in enumerate(ggufs.items()):
        context.check_cancelled()
        context.progress(f"verifying {output}", number, len(ggufs))
        parity[output] = verify.check(
            path, template, question, log=context.folder / "llama.log", check_cancelled=context.check_cancelled
        )
        if not parity[output]["token_ids"]["combining_marks_equal"]:
            context.event(
                "warning",
                "combining_marks",
                f"llama.cpp cuts scripts with combining marks (Hindi, Thai) otherwise: {path.name}.",
            )
        if not parity[output]["answer"]["clean"]:
            context.event("warning", "control_tokens", f"The first answer of {path.name} holds control tokens.")
    files.write_json(folder / "parity.json", parity)
    return parity


def _entry(folder: Path, final: Path, output: str, path: Path) -> dict[str, Any]:
    """How the artifact lists an output: where it will be, its bytes, and for a file its digest."""
    entry = {"output": output, "path": str(final / path.relative_to(folder)), "bytes": files.size_bytes(path)}
    if path.is_file():
        with path.open("rb") as file:
            entry["sha256"] = hashlib.file_digest(file, "sha256").hexdigest()
    return entry
