"""Storing what was trained: an adapter's weights or a whole model, the tokenizer it was trained with, and its origin.

Guarantees: `adapters/ID/` appears whole, and its row after it. A LoRA (the document's form "lora") is a PEFT folder. A
full or freeze run's (form "full") is a whole model in the width that was trained, and its path a `model` to every tool.
"""

import hashlib
import shutil
from fnmatch import fnmatch
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tunewright.pipeline import files, models
from tunewright.pipeline.chat_template import ChatTemplate
from tunewright.pipeline.context import JobContext
from tunewright.pipeline.exporting import weights
from tunewright.pipeline.ids import free_id
from tunewright.pipeline.rerun import VERSIONS_OF
from tunewright.pipeline.training import trainable
from tunewright.pipeline.training.run import Run

SHARD_SIZE = "5GB"
# In the job's folder, with the checkpoints until the end.
BUFFERS = "buffers"


def made_before(context: JobContext) -> dict[str, Any] | None:
    """The result of this job where it was killed after its adapter was stored and before it could say so."""
    for row in context.workspace.store.artifacts("adapter"):
        if row["job_id"] == context.job_id:
            _remove_leftovers(context)
            return {"adapter_id": row["id"], **row["document"]["metrics"]}
    return None


def save(run: Run, model: Any, figures: dict[str, Any]) -> dict[str, Any]:
    """Writes `adapters/ID/` and its row, then removes the job's checkpoints. Returns the job's result.

    `model` is what `loading.load` gave, trained. Raises NoSpace before anything is written.
    """
    context, spec = run.context, run.context.spec
    context.progress("saving the adapter")
    store = context.workspace.store
    dataset = store.artifact(spec["dataset_id"], "dataset")
    adapter_id = free_id("adapter", spec["name"], context.workspace.home.adapters)
    final = context.workspace.home.adapters / adapter_id
    written = model.parameters() if not run.is_lora else (p for p in model.parameters() if p.requires_grad)
    needed_bytes = sum(parameter.numel() * parameter.element_size() for parameter in written)
    files.require_space(context.workspace.home.adapters, needed_bytes, "Saving what was trained")
    with files.new_folder(final) as folder:
        if run.is_lora:
            _save_lora(run, model, folder)
        else:
            model.save_pretrained(str(folder), max_shard_size=SHARD_SIZE)
        _copy_small_files(run.template, folder)
        files.write_json(folder / "provenance.json", _provenance(run, dataset, figures))
    document = {
        "path": str(final),
        "form": "lora" if run.is_lora else "full",
        "base_model": run.base.name,
        "base_path": str(run.base.folder) if run.base.folder else None,
        "dataset_id": dataset["id"],
        "method": run.method,
        # As they were in the end: what memory forced down is how the model must be loaded again.
        "training": run.arguments,
        "max_seq_length": run.arguments["max_seq_length"],
        "enable_thinking": run.template.enable_thinking,
        "metrics": figures,
        "bytes": files.size_bytes(final),
    }
    parents = [dataset["id"], *([spec["continue_from"]] if spec["continue_from"] else [])]
    store.add_artifact(adapter_id, "adapter", spec["name"], document, parents=parents, job_id=context.job_id)
    _remove_leftovers(context)
    return {"adapter_id": adapter_id, **figures}


def _remove_leftovers(context: JobContext) -> None:
    """What the job needed only to go on."""
    for name in ("checkpoints", BUFFERS):
        shutil.rmtree(context.folder / name, ignore_errors=True)


def _save_lora(run: Run, model: Any, folder: Path) -> None:
    # Embeddings are saved where they were trained; peft's own guess asks the Hub for the base's vocabulary.
    model.save_pretrained(str(folder), safe_serialization=True, save_embedding_layers=False)
    # PEFT's own card is an empty form with a path of this machine; publishing writes a real one.
    (folder / "README.md").unlink(missing_ok=True)
    config = files.read_json(folder / "adapter_config.json")
    config["base_model_name_or_path"] = run.base.name if run.base.kind == "hub" else run.base.loadable
    if config["modules_to_save"]:
        # peft strikes a tied head off its list, and without it does not tie them again when it loads.
        config["modules_to_save"] = trainable.embedding_names(model)[0]
    files.write_json(folder / "adapter_config.json", config)


def _provenance(run: Run, dataset: dict[str, Any], figures: dict[str, Any]) -> dict[str, Any]:
    base = run.base
    return {
        "base_model": base.name,
        # A cached snapshot's folder is named by its commit.
        "base_revision": base.folder.name if base.kind == "hub" and base.folder else None,
        # A merge must find the very weights again: other models have layers of the same shapes.
        "base_fingerprint": weights.fingerprint(base.folder) if base.folder and _has_weights(base.folder) else None,
        "dataset": {"name": dataset["name"], "sha256": dataset["document"]["sha256"]},
        "method": run.method,
        "arguments": run.arguments,
        "continue_from": run.context.spec["continue_from"],
        "enable_thinking": run.template.enable_thinking,
        "chat_template_sha256": hashlib.sha256(run.template.source.encode()).hexdigest(),
        "versions": {name: version(name) for name in VERSIONS_OF},
        "metrics": figures,
    }


def _has_weights(folder: Path) -> bool:
    """Not so where they are *.bin, which nothing here reads."""
    return any(folder.glob("*.safetensors"))


def _copy_small_files(template: ChatTemplate, folder: Path) -> None:
    """Tokenizer, template and generation settings as the base has them: a saved-again tokenizer can differ."""
    wanted = [pattern for pattern in models.SMALL_FILES if pattern != "config.json"]
    for file in template.folder.iterdir():
        if file.is_file() and any(fnmatch(file.name, pattern) for pattern in wanted):
            shutil.copyfile(file, folder / file.name)
