"""The model card: what a stranger needs to know of an adapter or an export, as Markdown with the Hub's front matter.

Guarantees that no path of this machine and no training row stands in it. Says only what the store and the files say:
a licence that the base does not state is left out, not guessed.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunewright.pipeline import catalog
from tunewright.pipeline.publishing import lineage
from tunewright.pipeline.publishing.redact import public
from tunewright.pipeline.store import Row
from tunewright.pipeline.workspace import Workspace


def build(workspace: Workspace, artifact: Row, repo_id: str) -> str:
    """The card of an adapter or an export that will lie at `repo_id`. Raises NotFound where its adapter is gone."""
    adapter = lineage.adapter_of(workspace, artifact)
    sections = [
        f"# {repo_id.rpartition('/')[2]}",
        _summary(artifact, adapter),
        _usage(artifact, adapter, repo_id),
        _data(lineage.dataset_of(workspace, artifact)),
        _table("Training", public(workspace, {"method": adapter["document"].get("method"), **_training(adapter)})),
        _table("Results", public(workspace, adapter["document"].get("metrics", {}))),
        _files(artifact),
        _provenance(artifact, adapter),
    ]
    front = _front_matter(adapter, artifact)
    return f"---\n{front}\n---\n\n" + "\n\n".join(section for section in sections if section) + "\n"


def hub_id(name: str) -> str | None:
    """`name` where it is a Hub id, which others can load; None for a local folder and the built-in toy."""
    is_hub_id = name.count("/") == 1 and not name.startswith(("/", ".", "~")) and not Path(name).exists()
    return name if is_hub_id else None


def outputs(artifact: Row) -> list[str]:
    """The outputs of an export (`merged_16bit`, `gguf:q8_0`, …); none for an adapter."""
    return [file["output"] for file in artifact["document"].get("files", [])]


def _training(adapter: Row) -> dict[str, Any]:
    return adapter["document"].get("training", {})


def _base(adapter: Row) -> str:
    """The base as it may be named in public: a Hub id, or the last part of a local path."""
    name = adapter["document"]["base_model"]
    return hub_id(name) or Path(name).name


def _ggufs(artifact: Row) -> list[str]:
    return [Path(file["path"]).name for file in artifact["document"].get("files", []) if "gguf" in file["output"]]


def _is_whole(artifact: Row) -> bool:
    """Whether it is a whole model, trained full or frozen in part, that is kept among the adapters."""
    return artifact["document"].get("form") == "full"


def _front_matter(adapter: Row, artifact: Row) -> str:
    from huggingface_hub import ModelCardData

    base = hub_id(adapter["document"]["base_model"])
    if _is_whole(artifact):
        library, relation = "transformers", "finetune"
    elif artifact["kind"] == "adapter":
        library, relation = "peft", "adapter"
    else:
        library, relation = "transformers", "finetune" if "merged_16bit" in outputs(artifact) else "quantized"
    method = adapter["document"].get("method", "sft")
    form = adapter["document"].get("training", {}).get("finetuning_type", "lora")
    tags = ["tunewright", "unsloth", form, method, *(["gguf"] if _ggufs(artifact) else [])]
    return ModelCardData(
        base_model=base,
        base_model_relation=relation if base else None,
        library_name=library,
        pipeline_tag="text-generation",
        license=_licence(adapter),
        tags=tags,
        ignore_metadata_errors=False,
    ).to_yaml()


def _licence(adapter: Row) -> str | None:
    """The base's licence as its own card states it, else as the catalogue of known models does."""
    from huggingface_hub.repocard import metadata_load

    document = adapter["document"]
    readme = Path(document["base_path"]) / "README.md" if document.get("base_path") else None
    if readme is not None and readme.is_file():
        stated = (metadata_load(readme) or {}).get("license")
        if isinstance(stated, str):
            return stated
    known = (model.licence for model in catalog.KNOWN_MODELS if model.hub_id == document["base_model"])
    return next(known, None)


def _summary(artifact: Row, adapter: Row) -> str:
    base, link = _base(adapter), hub_id(adapter["document"]["base_model"])
    name = f"[{base}](https://huggingface.co/{link})" if link else f"`{base}`"
    if _is_whole(artifact):
        what = f"{name}, its own weights trained further."
    elif artifact["kind"] == "adapter":
        what = f"A LoRA adapter for {name}: it holds what was learned, not the base model."
    elif "merged_16bit" in outputs(artifact):
        what = f"{name} with a LoRA adapter merged into its 16-bit weights."
    else:
        what = f"{name} with a LoRA adapter merged in, for llama.cpp and Ollama."
    thinking = "on" if adapter["document"].get("enable_thinking") else "off"
    return f"{what} Fine-tuned with Tunewright on Unsloth; trained with thinking {thinking} where the template has it."


def _usage(artifact: Row, adapter: Row, repo_id: str) -> str:
    parts: list[str] = []
    thinking = bool(adapter["document"].get("enable_thinking"))
    if _is_whole(artifact):
        parts.append(_python(repo_id, None, None, thinking))
    elif artifact["kind"] == "adapter":
        parts.append(_python(repo_id, hub_id(adapter["document"]["base_model"]), _base(adapter), thinking))
        parts.append(
            "For Ollama or llama.cpp, merge the adapter into its base and convert the result to GGUF "
            "(Tunewright: `merge_and_export`, then `publish_to_ollama`)."
        )
    if "merged_16bit" in outputs(artifact):
        parts.append(_python(repo_id, None, None, thinking))
    if ggufs := _ggufs(artifact):
        commands = f"ollama run hf.co/{repo_id}\nllama-server -hf {repo_id}\nllama-cli -m {ggufs[0]} -cnv"
        parts.append(f"Ollama and llama.cpp (the chat template lies in the GGUF):\n\n```sh\n{commands}\n```")
    return "## How to use\n\n" + "\n\n".join(parts) if parts else ""


def _python(repo_id: str, base_id: str | None, base: str | None, thinking: bool) -> str:
    """A snippet that loads and asks the model; with a base, through PEFT."""
    if base is None:
        head = "Transformers:"
        load = f'model = AutoModelForCausalLM.from_pretrained("{repo_id}", dtype="auto", device_map="auto")'
        imports = "from transformers import AutoModelForCausalLM, AutoTokenizer"
    else:
        head = "Transformers and PEFT:" if base_id else f"Transformers and PEFT, with your own copy of `{base}`:"
        load = (
            f'base = AutoModelForCausalLM.from_pretrained("{base_id or base}", dtype="auto", device_map="auto")\n'
            f'model = PeftModel.from_pretrained(base, "{repo_id}")'
        )
        imports = "from peft import PeftModel\nfrom transformers import AutoModelForCausalLM, AutoTokenizer"
    ask = (
        f'tokenizer = AutoTokenizer.from_pretrained("{repo_id}")\n'
        'messages = [{"role": "user", "content": "Hello"}]\n'
        "prompt = tokenizer.apply_chat_template(\n"
        f'    messages, add_generation_prompt=True, enable_thinking={thinking}, return_tensors="pt", return_dict=True\n'
        ").to(model.device)\n"
        "answer = model.generate(**prompt, max_new_tokens=256)\n"
        'print(tokenizer.decode(answer[0, prompt["input_ids"].shape[1]:], skip_special_tokens=True))'
    )
    return f"{head}\n\n```python\n{imports}\n\n{load}\n{ask}\n```"


def _data(dataset: Row | None) -> str:
    if dataset is None:
        return "## Data\n\nThe dataset is no longer on the machine that trained this model; it was never uploaded."
    document = dataset["document"]
    facts = [f"Dataset `{dataset['name']}`", f"{document['train_rows']} rows for training"]
    facts.append(f"{document.get('eval_rows', 0)} held out for evaluation")
    facts.append(f"read as {document.get('format', 'conversations')}")
    digest = f" SHA-256 of its files: `{document['sha256']}`." if isinstance(document.get("sha256"), str) else ""
    return f"## Data\n\n{', '.join(facts)}. The rows themselves are not published.{digest}"


def _cell(value: Any) -> str:
    text = (
        f"{value:.4g}" if isinstance(value, float) else ", ".join(map(str, value)) if isinstance(value, list) else value
    )
    return str(text).replace("|", "\\|").replace("\n", " ")


def _table(title: str, values: Mapping[str, Any]) -> str:
    rows = [f"| {key} | {_cell(value)} |" for key, value in values.items() if value is not None]
    return "\n".join([f"## {title}", "", "| | |", "|---|---|", *rows]) if rows else ""


def _files(artifact: Row) -> str:
    sizes = {file["output"]: f"{file['bytes'] / 1e6:,.1f} MB" for file in artifact["document"].get("files", [])}
    return _table("Files", sizes)


def _provenance(artifact: Row, adapter: Row) -> str:
    ids = {"adapter": adapter["id"], "export": artifact["id"] if artifact["kind"] == "export" else None}
    ids["job"] = adapter["job_id"]
    facts = _table("Provenance", ids)
    return f"{facts}\n\nVersions, seed, every argument and the template's hash stand in `provenance.json`."
