"""The stage of the job kind `validate`: base and tuned on the same samples, measured and compared. Heavy.

Guarantees that the same spec gives the same `evaluation.json` and `samples.jsonl`, byte for byte on one machine,
however often the job was killed in between; both are written whole, at the end. Greedy answers: what is compared is
what each model says first, not how it varies.
"""

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tunewright.pipeline import domains, files
from tunewright.pipeline.chat_template import ChatTemplate
from tunewright.pipeline.context import JobContext
from tunewright.pipeline.data import splits
from tunewright.pipeline.domains import Pack
from tunewright.pipeline.inference import answers, subject
from tunewright.pipeline.inference.subject import Subject
from tunewright.pipeline.validation import answering, familiar, findings, samples, scores, summary
from tunewright.pipeline.validation.answering import SIDES, Measured, Side
from tunewright.pipeline.validation.findings import Answer, Finding
from tunewright.pipeline.validation.samples import Drawn, Sample

SAMPLES, EVALUATION = "samples.jsonl", "evaluation.json"
# Of the numbers in the job's result; evaluation.json has all.
DIGITS = 5


@dataclass(frozen=True)
class Judged:
    """One answer and all that was seen of it; `answer` is None of a text, which is only scored."""

    answer: Answer | None
    loss: tuple[float, int] | None
    metrics: dict[str, float]
    findings: list[Finding]
    domain: list[domains.Finding]


Sides = dict[Side, list[Judged]]


def run(context: JobContext) -> dict[str, Any]:
    """Measures, compares, writes. Spec: see `request.check`; returns the job's result.

    Raises NotFound where the adapter or the dataset is gone, Cancelled, and what loading a model raises.
    """
    spec, workspace = context.spec, context.workspace
    adapter = workspace.store.artifact(spec["adapter_id"], "adapter")
    model = subject.resolve(workspace, adapter_id=adapter["id"])
    template = ChatTemplate(Path(model.tokenizer_folder), enable_thinking=model.enable_thinking)
    pack = domains.load(spec["domain"]) if spec["domain"] else None
    context.progress("drawing the samples")
    drawn = _draw(context, model, template)
    own = spec["dataset_id"] in {dataset["id"] for dataset in familiar.trained_on(workspace, adapter)}
    held_out_of = spec["dataset_id"] if spec["split"] == splits.EVAL else None
    trained_on = own and held_out_of is None
    met = 0 if trained_on else familiar.count(workspace, adapter, drawn.samples, held_out_of, context.check_cancelled)
    measured = answering.measure(context, model, template, drawn.samples, spec["max_new_tokens"])
    context.progress("comparing")
    judged: Sides = {
        side: [judge(template, sample, one, pack) for sample, one in zip(drawn.samples, measured[side], strict=True)]
        for side in SIDES
    }
    files.write_text(context.folder / SAMPLES, _lines(drawn.samples, judged))
    evaluation = _evaluation(spec, drawn.samples, judged, pack, trained_on=trained_on)
    cut = samples.cut_references(template, drawn.samples, spec["max_new_tokens"])
    evaluation |= {
        "base_model": adapter["document"]["base_model"],
        "notes": _notes(spec, drawn, judged, met, cut, trained_on=trained_on, thinks=model.enable_thinking),
    }
    files.write_json(context.folder / EVALUATION, evaluation)
    return _result(context, evaluation)


def _draw(context: JobContext, model: Subject, template: ChatTemplate) -> Drawn:
    spec = context.spec
    room = samples.Room(model.context_tokens, spec["max_new_tokens"])
    if spec["prompts"] is not None:
        return samples.from_prompts(spec["prompts"], template, room)
    dataset = context.workspace.store.artifact(spec["dataset_id"], "dataset")
    file = splits.split_file(Path(dataset["document"]["path"]), spec["split"])
    return samples.from_split(file, template, room, spec["max_samples"])


def judge(template: ChatTemplate, sample: Sample, measured: Measured, pack: Pack | None) -> Judged:
    """Scores and findings of one answer."""
    metrics: dict[str, float] = {}
    loss = measured.loss if measured.loss and measured.loss[1] else None
    if loss and math.isfinite(loss[0]):
        metrics["loss"] = loss[0] / loss[1]
    if measured.ids is None:
        return Judged(None, loss, metrics, [], [])
    ids = measured.ids[:-1] if measured.stopped else measured.ids
    text, thinking = answers.split(template, ids)
    answer = Answer(ids, measured.stopped, text, thinking, loss[0] / loss[1] if loss else None)
    if sample.reference:
        metrics |= scores.against_reference(text, sample.reference)
    found = findings.find(template, sample, answer)
    if findings.as_json(sample.reference or "") is not None:
        metrics["valid_json"] = 100.0 * all(finding.kind != "invalid_json" for finding in found)
    metrics |= {"stopped": 100.0 * measured.stopped, "repetition": scores.repetition(ids)}
    checked = domains.check(pack, answer=text, reference=sample.reference, question=sample.question) if pack else []
    return Judged(answer, loss, metrics, found, checked)


def _lines(drawn: Sequence[Sample], judged: Sides) -> str:
    """`samples.jsonl`: a line for each sample, both sides on it."""
    lines = (
        {
            "index": sample.index,
            "messages": sample.messages,
            "reference": sample.reference,
            **{side: _side(judged[side][number]) for side in SIDES},
        }
        for number, sample in enumerate(drawn)
    )
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def _side(judged: Judged) -> dict[str, Any]:
    answer = judged.answer
    said = {} if answer is None else {
        "text": answer.text, "thinking": answer.thinking, "tokens": len(answer.ids),
        "ended": "stop" if answer.stopped else "length",
    }  # fmt: skip
    found = [asdict(finding) for finding in judged.findings]
    domain = {"domain": [asdict(finding) for finding in judged.domain]} if judged.domain else {}
    return said | {"metrics": judged.metrics, "findings": found} | domain


def _evaluation(
    spec: dict[str, Any], drawn: Sequence[Sample], judged: Sides, pack: Pack | None, *,
    trained_on: bool,
) -> dict[str, Any]:  # fmt: skip
    losses = [
        (ours.loss, theirs.loss)
        for ours, theirs in zip(judged["tuned"], judged["base"], strict=True)
        if ours.loss and theirs.loss and math.isfinite(ours.loss[0]) and math.isfinite(theirs.loss[0])
    ]
    tuned, base = ([one.metrics for one in judged[side]] for side in SIDES)
    found = summary.compare(tuned, base, losses)
    return {
        "adapter_id": spec["adapter_id"],
        "dataset_id": spec["dataset_id"],
        "split": spec["split"],
        "samples": len(drawn),
        "max_new_tokens": spec["max_new_tokens"],
        "metrics": {name: compared.as_data(name) for name, compared in found.items()},
        "sentence": summary.sentence(found, len(drawn), trained_on=trained_on),
        "tokens": _tokens(drawn, judged),
        "findings": {side: dict(Counter(f.kind for one in judged[side] for f in one.findings)) for side in SIDES},
        "domain": _domain(pack, judged) if pack else None,
        "pairs": min(spec["pairs"], sum(one.answer is not None for one in judged["tuned"])),
    }


def _tokens(drawn: Sequence[Sample], judged: Sides) -> dict[str, float | None]:
    """Mean length of the answers and the references."""
    lengths: dict[str, list[int]] = {
        side: [len(one.answer.ids) for one in judged[side] if one.answer] for side in SIDES
    }
    lengths["reference"] = [tokens for sample in drawn if (tokens := sample.reference_tokens)]
    return {name: sum(held) / len(held) if held else None for name, held in lengths.items()}


def _domain(pack: Pack, judged: Sides) -> dict[str, Any]:
    counted = {side: domains.summary(pack, [one.domain for one in judged[side] if one.answer]) for side in SIDES}
    about_both = ("pack", "note")
    counts = {side: {key: n for key, n in counted[side].items() if key not in about_both} for side in SIDES}
    return {"pack": pack.name, "note": domains.NOTE, **counts}


def _notes(
    spec: dict[str, Any], drawn: Drawn, judged: Sides, met: int, cut: int, *, trained_on: bool, thinks: bool
) -> list[str]:
    """What a reader must know to read the numbers right, the gravest first."""
    of, notes = len(drawn.samples), list[str]()
    if trained_on:
        notes.append(
            f"NOT HELD OUT: the adapter was trained on these rows, as {spec['dataset_id']} has no eval rows. Prepare a "
            "dataset with eval_fraction to learn what the model can do."
        )
    if met:
        notes.append(f"{met} of {of} samples ask, word for word, what the adapter was trained on.")
    if cut:
        notes.append(
            f"max_new_tokens={spec['max_new_tokens']} is less than the references of {cut} of {of} samples have: "
            "answers as long are cut off, so how many end, and how like they are, says little."
        )
    broken = {side: sum(any(f.kind == "not_finite" for f in one.findings) for one in judged[side]) for side in SIDES}
    for side, count in broken.items():
        if count:
            notes.append(f"The {side} model's loss is no number on {count} of {of} samples; they are left out of it.")
    if spec["prompts"] is None and of < spec["max_samples"]:
        notes.append(f"{of} samples instead of {spec['max_samples']}: the split has no more that can be used.")
    if drawn.left_out:
        notes.append(f"Rows left out: {drawn.reasons}.")
    if thinks:
        notes.append("Answers are greedy; of models that think this is known to make some loop.")
    notes.append("Each interval holds 95 % for itself: among several metrics one may differ by chance.")
    return notes


def _result(context: JobContext, evaluation: dict[str, Any]) -> dict[str, Any]:
    """What the store keeps: rounded, and where the rest lies."""
    paths = {"samples": context.folder / SAMPLES, "evaluation": context.folder / EVALUATION}
    return _rounded(evaluation) | {"files": {name: str(path) for name, path in paths.items()}}


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(held) for key, held in value.items()}  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, list):
        return [_rounded(held) for held in value]  # pyright: ignore[reportUnknownVariableType]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value
