"""Storing a trained adapter: PEFT weights, the tokenizer it was trained with, and where it came from."""

import hashlib
import shutil
from fnmatch import fnmatch
from importlib.metadata import version
from typing import Any

from transformers import PreTrainedModel

from tunewright.pipeline import files, models
from tunewright.pipeline.chat_template import ChatTemplate
from tunewright.pipeline.context import JobContext
from tunewright.pipeline.ids import new_id

VERSIONS_OF = ("tunewright", "unsloth", "torch", "transformers", "peft", "trl", "bitsandbytes")


def made_before(context: JobContext) -> dict[str, Any] | None:
    """The result of this job where it was killed after its adapter was stored and before it could say so."""
    for row in context.workspace.store.artifacts("adapter"):
        if row["job_id"] == context.job_id:
            return {"adapter_id": row["id"], **row["document"]["metrics"]}
    return None


def save(
    context: JobContext, base: models.Model, template: ChatTemplate, model: PreTrainedModel, figures: dict[str, Any]
) -> dict[str, Any]:
    """Writes `adapters/ID/` and its row, then removes the job's checkpoints. Returns the job's result."""
    context.progress("saving the adapter")
    store, spec = context.workspace.store, context.spec
    dataset = store.artifact(spec["dataset_id"], "dataset")
    adapter_id = new_id("adapter", spec["name"])
    final = context.workspace.home.adapters / adapter_id
    with files.new_folder(final) as folder:
        model.save_pretrained(str(folder), safe_serialization=True)
        config = files.read_json(folder / "adapter_config.json")
        files.write_json(
            folder / "adapter_config.json",
            config | {"base_model_name_or_path": base.name if base.kind == "hub" else base.loadable},
        )
        _copy_small_files(template, folder)
        files.write_json(
            folder / "provenance.json",
            {
                "base_model": base.name,
                # A cached snapshot's folder is named by its commit.
                "base_revision": base.folder.name if base.kind == "hub" and base.folder else None,
                "dataset": {"name": dataset["name"], "sha256": dataset["document"]["sha256"]},
                "method": spec["method"],
                "arguments": spec["arguments"],
                "continue_from": spec["continue_from"],
                "enable_thinking": template.enable_thinking,
                "chat_template_sha256": hashlib.sha256(template.source.encode()).hexdigest(),
                "versions": {name: version(name) for name in VERSIONS_OF},
                "metrics": figures,
            },
        )
    document = {
        "path": str(final),
        "base_model": base.name,
        "base_path": str(base.folder) if base.folder else None,
        "dataset_id": dataset["id"],
        "method": spec["method"],
        "training": spec["arguments"],
        "max_seq_length": spec["arguments"]["max_seq_length"],
        "enable_thinking": template.enable_thinking,
        "metrics": figures,
        "bytes": files.size_bytes(final),
    }
    parents = [dataset["id"], *([spec["continue_from"]] if spec["continue_from"] else [])]
    store.add_artifact(adapter_id, "adapter", spec["name"], document, parents=parents, job_id=context.job_id)
    shutil.rmtree(context.folder / "checkpoints", ignore_errors=True)
    return {"adapter_id": adapter_id, **figures}


def _copy_small_files(template: ChatTemplate, folder: Any) -> None:
    """Tokenizer, template and generation settings as the base has them: a saved-again tokenizer can differ."""
    wanted = [pattern for pattern in models.SMALL_FILES if pattern != "config.json"]
    for file in template.folder.iterdir():
        if file.is_file() and any(fnmatch(file.name, pattern) for pattern in wanted):
            shutil.copyfile(file, folder / file.name)
