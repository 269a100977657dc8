"""The model card: what a stranger needs to know of an adapter or an export, as Markdown with the Hub's front matter.

Guarantees that no path of this machine and no training row stands in it. Says only what the store and the files say:
a licence that the base does not state is left out, not guessed.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from tunewright.pipeline import reports
from tunewright.pipeline.exporting.outputs import LORA, LORA_GGUF, MERGED, MERGED_4BIT, is_gguf
from tunewright.pipeline.publishing import licences, lineage, usage
from tunewright.pipeline.redact import public
from tunewright.pipeline.store import Row
from tunewright.pipeline.training import request
from tunewright.pipeline.workspace import Workspace

# A failure of the parity quotes what it compared, in quotation marks as Python sets them: it can be a row of the data.
QUOTED = re.compile(r"""(?<!\w)(['"])(?:\\.|(?!\1).)*\1(?!\w)""")


def build(
    workspace: Workspace, artifact: Row, repo_id: str, outputs: Sequence[str] = (), failures: Sequence[str] = ()
) -> str:
    """The card of an adapter, or of `outputs` of an export, that will lie at `repo_id`.

    `failures` of the parity that were overridden stand at its top. Raises NotFound where the adapter is gone.
    """
    adapters = lineage.adapters_of(workspace, artifact)
    adapter, licence = adapters[0], licences.of_base(adapters[0])
    sections = [
        f"# {repo_id.rpartition('/')[2]}",
        _forced(workspace, failures),
        _summary(artifact, adapters, outputs),
        usage.section(artifact, adapter, repo_id, outputs),
        _licence(adapter, licence),
        _data([lineage.dataset_of(workspace, each) for each in adapters]),
        _table("Training", public(workspace, {"method": adapter["document"].get("method"), **_training(adapter)})),
        _table("Results", public(workspace, adapter["document"].get("metrics", {}))),
        reports.markdown(workspace, adapter["id"]) if _is_as_evaluated(artifact) else "",
        _parity(workspace, artifact, outputs),
        _files(artifact, outputs),
        _provenance(artifact, adapter),
    ]
    front = _front_matter(workspace, artifact, adapter, licence, repo_id, outputs)
    return f"---\n{front}\n---\n\n" + "\n\n".join(section for section in sections if section) + "\n"


def _training(adapter: Row) -> dict[str, Any]:
    """The arguments as they were in the end, without those that its method does not read."""
    document = adapter["document"]
    others = {name for name, methods in request.READ_BY.items() if document.get("method", "sft") not in methods}
    return {name: value for name, value in document.get("training", {}).items() if name not in others}


def _is_as_evaluated(artifact: Row) -> bool:
    """Whether it holds the adapter that was evaluated, as strong as it was and alone."""
    document = artifact["document"]
    return document.get("adapter_scale", 1.0) == 1.0 and not document.get("combine_with")


def _front_matter(
    workspace: Workspace,
    artifact: Row,
    adapter: Row,
    licence: licences.Licence | None,
    repo_id: str,
    outputs: Sequence[str],
) -> str:
    from huggingface_hub import ModelCardData

    base = lineage.hub_id(adapter["document"]["base_model"])
    library, relation = _kind(artifact, outputs)
    method = adapter["document"].get("method", "sft")
    form = _training(adapter).get("finetuning_type", "lora")
    is_4bit = MERGED_4BIT in outputs and MERGED not in outputs
    tags = ["tunewright", "unsloth", form, method]
    tags += ["gguf"] if any(is_gguf(output) or output == LORA_GGUF for output in outputs) else []
    tags += ["bitsandbytes", "4-bit"] if is_4bit else []
    more: dict[str, Any] = {"quantized_by": repo_id.partition("/")[0]} if relation == "quantized" else {}
    # A quantized model was not the one that passed the benchmarks.
    if relation != "quantized" and _is_as_evaluated(artifact) and (results := _eval_results(workspace, adapter)):
        more |= {"model_name": repo_id.rpartition("/")[2], "eval_results": results}
    return ModelCardData(
        base_model=base,
        base_model_relation=relation if base else None,
        library_name=library,
        pipeline_tag="text-generation",
        license=licence.id if licence else None,
        license_name=licence.name if licence else None,
        license_link=licence.link if licence else None,
        tags=tags,
        ignore_metadata_errors=False,
        **more,
    ).to_yaml()


def _eval_results(workspace: Workspace, adapter: Row) -> list[Any]:
    """For the Hub's `model-index`: huggingface_hub's EvalResult of each benchmark that others can compare."""
    from huggingface_hub import EvalResult

    return [
        EvalResult(
            task_type="text-generation", dataset_type=score.hub_id, dataset_name=score.title,
            dataset_split=score.split, metric_type="accuracy", metric_value=round(score.accuracy, 4),
            metric_name=f"accuracy, {score.shots}-shot",
        )
        for score in reports.scores(workspace, adapter["id"])
    ]  # fmt: skip


def _kind(artifact: Row, outputs: Sequence[str]) -> tuple[str, str]:
    """The library and the relation to the base (huggingface.co/docs/hub/model-cards) of what lies at the root."""
    if lineage.is_whole(artifact) or MERGED in outputs:
        return "transformers", "finetune"
    if MERGED_4BIT in outputs:
        return "transformers", "quantized"
    if any(is_gguf(output) for output in outputs):
        return "gguf", "quantized"
    return ("gguf" if outputs and LORA not in outputs else "peft"), "adapter"


def _forced(workspace: Workspace, failures: Sequence[str]) -> str:
    if not failures:
        return ""
    lines = [f"> - {QUOTED.sub('…', public(workspace, failure))}" for failure in failures]
    head = "> [!WARNING]\n> Published although it is not shown to be the model that was trained:\n>"
    return "\n".join([head, *lines])


def _summary(artifact: Row, adapters: Sequence[Row], outputs: Sequence[str]) -> str:
    adapter = adapters[0]
    base, link = lineage.base_of(adapter), lineage.hub_id(adapter["document"]["base_model"])
    name = f"[{base}](https://huggingface.co/{link})" if link else f"`{base}`"
    added = f"{len(adapters)} LoRA adapters, combined and merged" if len(adapters) > 1 else "a LoRA adapter merged"
    if lineage.is_whole(adapter):
        what = f"{name}, its own weights trained further."
    elif MERGED in outputs:
        what = f"{name} with {added} into its 16-bit weights."
    elif MERGED_4BIT in outputs:
        what = f"{name} with {added} into its 16-bit weights, then quantized to 4 bits (NF4, bitsandbytes)."
    elif any(is_gguf(output) for output in outputs):
        what = f"{name} with {added} in, for llama.cpp and Ollama."
    else:
        what = f"A LoRA adapter for {name}: it holds what was learned, not the base model."
    thinking = "on" if adapter["document"].get("enable_thinking") else "off"
    return f"{what} Fine-tuned with Tunewright on Unsloth; trained with thinking {thinking} where the template has it."


def _licence(adapter: Row, licence: licences.Licence | None) -> str:
    if licence is None:
        return "## Licence\n\nThe base model states none."
    base = lineage.hub_id(adapter["document"]["base_model"])
    link = licence.link or (f"https://huggingface.co/{base}" if base else None)
    title = f"[{licence.title}]({link})" if link else licence.title
    restricts = f" It restricts: {licence.demand}" if licence.demand else ""
    credit = f"\n\n{licence.credit}" if licence.credit else ""
    return f"## Licence\n\nInherited from the base model: {title}.{restricts}{credit}"


def _data(datasets: Sequence[Row | None]) -> str:
    gone = "The dataset is no longer on the machine that trained this model; it was never uploaded."
    return "## Data\n\n" + "\n\n".join(dict.fromkeys(_dataset(each) if each else gone for each in datasets))


def _dataset(dataset: Row) -> str:
    document = dataset["document"]
    facts = [f"Dataset `{dataset['name']}`", f"{document['train_rows']} rows for training"]
    facts.append(f"{document.get('eval_rows', 0)} held out for evaluation")
    facts.append(f"read as {document.get('format', 'conversations')}")
    digest = f" SHA-256 of its files: `{document['sha256']}`." if isinstance(document.get("sha256"), str) else ""
    return f"{', '.join(facts)}. The rows themselves are not published.{digest}"


def _cell(value: Any) -> str:
    text = (
        f"{value:.4g}" if isinstance(value, float) else ", ".join(map(str, value)) if isinstance(value, list) else value
    )
    return str(text).replace("|", "\\|").replace("\n", " ")


def _table(title: str, values: Mapping[str, Any]) -> str:
    rows = [f"| {key} | {_cell(value)} |" for key, value in values.items() if value is not None]
    return "\n".join([f"## {title}", "", "| | |", "|---|---|", *rows]) if rows else ""


def _parity(workspace: Workspace, artifact: Row, outputs: Sequence[str]) -> str:
    """Per quantization, how far it is from the 16-bit model on held-out conversations; "" where none was measured."""
    parity = artifact["document"].get("parity") or {}
    measured = {output: row for output, row in parity.get("outputs", {}).items() if output in outputs}
    if not measured:
        return ""
    reference, noise, merge = (parity.get(key) or {} for key in ("reference", "noise_floor", "merge"))
    head = f"Compared with the merged model in {reference.get('dtype')} on {reference.get('scored_tokens')} tokens of "
    head += f"held-out answers (its loss: {_number(reference.get('eval_loss'))})."
    if merge:
        head += f" Against base and adapter unmerged, KL {_number(merge.get('kl'))}."
    rows = ["| | size | KL | top-1 | loss | greedy answers equal | |", "|---|---|---|---|---|---|---|"]
    if noise:
        rows.append(f"| noise floor of bf16 | | {_number(noise.get('kl'))} | {_number(noise.get('top1'))} | | | |")
    sizes = _sizes(artifact)
    for output, row in measured.items():
        greedy = f"{row['greedy_equal']} of {row['greedy_of']}" if row.get("greedy_of") else "–"
        numbers = " | ".join(_number(row.get(key)) for key in ("kl", "top1", "eval_loss"))
        verdict = "passed" if row["passed"] else "**failed**"
        rows.append(f"| {output} | {sizes[output]} | {numbers} | {greedy} | {verdict} |")
    advised = parity.get("recommendation") or {}
    tail = f"Recommended: `{advised['output']}`: {advised['why']}" if advised.get("output") in measured else ""
    return "\n\n".join(filter(None, ["## Parity", head, "\n".join(rows), public(workspace, tail)]))


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _sizes(artifact: Row) -> dict[str, str]:
    return {file["output"]: f"{file['bytes'] / 1e6:,.1f} MB" for file in artifact["document"].get("files", [])}


def _files(artifact: Row, outputs: Sequence[str]) -> str:
    return _table("Files", {output: size for output, size in _sizes(artifact).items() if output in outputs})


def _provenance(artifact: Row, adapter: Row) -> str:
    document = artifact["document"]
    combined = [f"{id} × {weight:g}" for id, weight in (document.get("combine_with") or {}).items()]
    facts = {
        "adapter": adapter["id"],
        "combined with": combined or None,
        "combination": document.get("combination") if combined else None,
        "adapter scale": document.get("adapter_scale"),
        "export": artifact["id"] if artifact["kind"] == "export" else None,
        "job": adapter["job_id"],
    }
    table = _table("Provenance", facts)
    return f"{table}\n\nVersions, seed, every argument and the template's hash stand in `provenance.json`."
