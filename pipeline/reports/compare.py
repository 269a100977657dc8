"""Several runs, or several evaluations, side by side: what was done differently, what came of it, what it cost.

Guarantees that a difference in the conditions that makes numbers incomparable is said first and loudly, that such
numbers get no best, and that a best within the others' noise is not called one. Does not average over seeds: two runs
that differ by their seed alone show how much chance there is.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tunewright.pipeline import jobs, status
from tunewright.pipeline.errors import InvalidInput, call
from tunewright.pipeline.reports import chart, evidence, judged
from tunewright.pipeline.store import Row
from tunewright.pipeline.workspace import Workspace

FEWEST, MOST = 2, 10
KINDS = ("finetune", "validate", "benchmark")
# Arguments of an evaluation that name what is compared, not how.
NAMING = ("adapter_id", "name", "subject", "base_model", "export", "prompts")
# So many metrics of evaluations, so that ten runs stay below 4,000 tokens.
SHOWN_METRICS = 8
LONGEST_VALUE = 60
LEGEND_ARGUMENTS = 2
HIGHER, LOWER = "higher", "lower"
COST = ("tokens_per_s", "peak_gib", "device_hours", "device")
CHEAPER = {"tokens_per_s": HIGHER, "peak_gib": LOWER, "device_hours": LOWER}
BETTER = {"final_eval_loss": LOWER, "best_eval_loss": LOWER, **dict.fromkeys(status.RISING, HIGHER), **CHEAPER}
# Arguments that change what a loss is the loss of.
MEASURED_BY = {
    "method": "another method has another loss", "train_on": "train_on decides which tokens count",
    "enable_thinking": "enable_thinking changes the prompts", "max_seq_length": "max_seq_length cuts the rows",
}  # fmt: skip

Column = list[Any]


def compare(workspace: Workspace, job_ids: Sequence[str]) -> dict[str, Any]:
    """Two to ten jobs of one kind. Every list in the result is in the order of `jobs`; None where there is nothing.

    `jobs` (id, state, name), `arguments` (those that differ), `metrics` (numbers, or [value, low, high]), `cost`
    (fine-tunes), `best` ({metric: {job_id, value, within_noise: ids whose interval overlaps}}), `notes`.
    Raises NotFound, and InvalidInput for jobs of several kinds, of another kind, too few, too many or named twice.
    """
    rows = _rows(workspace, job_ids)
    kind = rows[0]["kind"]
    made = _of_runs(workspace, rows) if kind == "finetune" else _of_evaluations(workspace, rows)
    names = [row["spec"].get("name") for row in rows]
    listed = [
        {"job_id": row["id"], "state": row["state"], **({"name": name} if name else {})}
        for row, name in zip(rows, names, strict=True)
    ]
    unfinished = [row["id"] for row in rows if row["state"] != jobs.State.SUCCEEDED]
    notes = [f"Not finished, so nowhere the best: {', '.join(unfinished)}."] if unfinished else []
    return {"kind": kind, "jobs": listed, **made, "notes": [*made["notes"], *notes]}


def _rows(workspace: Workspace, job_ids: Sequence[str]) -> list[Row]:
    rows = [workspace.store.job(job_id) for job_id in job_ids]
    ids, kinds = [row["id"] for row in rows], sorted({row["kind"] for row in rows})
    if not FEWEST <= len(set(ids)) == len(ids) <= MOST:
        raise InvalidInput(
            "job_count", f"job_ids={list(job_ids)!r} names {len(ids)} jobs, {len(set(ids))} different ones.",
            allowed=f"{FEWEST} to {MOST} different jobs.", next='list_artifacts(kind="job")',
        )  # fmt: skip
    if len(kinds) > 1 or kinds[0] not in KINDS:
        first = next((kind for kind in KINDS if kind in kinds), None)
        same = [row["id"] for row in rows if row["kind"] == first]
        named = ", ".join(f"{row['id']} ({row['kind']})" for row in rows)
        raise InvalidInput(
            "mixed_kinds" if len(kinds) > 1 else "not_comparable", f"These are {named}.",
            allowed=f"Jobs of one kind: {', '.join(KINDS)}. A fine-tune is compared with its adapter's evaluations.",
            next=call("compare_runs", job_ids=same) if len(same) > 1 else 'list_artifacts(kind="job")',
        )  # fmt: skip
    return rows


# Fine-tunes


def _of_runs(workspace: Workspace, rows: list[Row]) -> dict[str, Any]:
    known = [evidence.of_job(workspace, row) for row in rows]
    figures = [_figures(workspace, row) for row in rows]
    columns = {name: [figure[name] for figure in figures] for name in figures[0]}
    columns = {name: values for name, values in columns.items() if any(value is not None for value in values)}
    loud, comparable = _conditions(workspace, rows, known)
    best = _best(rows, columns, BETTER if comparable else CHEAPER)
    evaluated, best_of, notes = _evaluations(workspace, rows, known)
    return {
        "arguments": _differing([_asked(row) for row in rows]),
        "metrics": {name: values for name, values in columns.items() if name not in COST} | evaluated,
        "cost": {name: columns[name] for name in COST if name in columns},
        "best": best | best_of,
        "notes": [*loud, *notes],
    }


def _figures(workspace: Workspace, row: Row) -> dict[str, Any]:
    """A run's own numbers, None where it has none; energy is not measured."""
    told, result = status.describe(workspace, row, events=0), row["result"] or {}
    shapes: dict[str, dict[str, float]] = told["shape"]
    train, evaluation = shapes.get("loss", {}), shapes.get("eval_loss", {})
    held_s = evidence.device_s(workspace, row)
    return {
        "final_train_loss": train.get("last"),
        "final_eval_loss": evaluation.get("last"),
        "best_eval_loss": evaluation.get("best"),
        **{name: shapes.get(name, {}).get("last") for name in status.RISING},
        "steps": result.get("steps") or told["done"],
        "tokens_an_epoch": result.get("train_tokens"),
        "tokens_per_s": result.get("tokens_per_s") or told["tokens_per_s"],
        "peak_gib": result.get("peak_gib") or told["peak_gib"],
        "device_hours": None if held_s is None else round(held_s / 3600, 4),
        "device": evidence.conditions(workspace, row).get("device"),
    }


def _asked(row: Row) -> dict[str, Any]:
    spec = row["spec"]
    own = {name: spec.get(name) for name in ("dataset_id", "model", "method", "continue_from")}
    return own | {name: value for name, value in (spec.get("arguments") or {}).items() if name != "name"}


def _conditions(workspace: Workspace, rows: list[Row], known: list[evidence.Evidence]) -> tuple[list[str], bool]:
    """What makes the losses incomparable, in sentences, and whether the eval losses may be compared at all."""
    data = [_dataset_hash(workspace, row, one) for row, one in zip(rows, known, strict=True)]
    asked = [_asked(row) for row in rows]
    notes: list[str] = []
    if len(set(data)) > 1 or None in data:
        notes.append(
            "EVAL LOSSES ARE NOT COMPARABLE: the runs were evaluated on other rows (another dataset or split). "
            "Validate their adapters on one dataset instead."
        )
    differing = [why for name, why in MEASURED_BY.items() if len({str(one.get(name)) for one in asked}) > 1]
    if len({one.get("model") for one in asked}) > 1 and not _same_tokenizer(known):
        differing.append("the models may cut texts into other tokens (a loss is per token)")
    if differing:
        notes.append(f"LOSSES ARE NOT COMPARABLE: {'; '.join(differing)}.")
    comparable = not notes
    if len({evidence.conditions(workspace, row).get("device") for row in rows}) > 1:
        notes.append("Speed, memory and time are those of different devices.")
    if comparable:
        notes.append("Losses have no intervals: runs that differ by their seed alone show how much of this is chance.")
    return notes, comparable


def _dataset_hash(workspace: Workspace, row: Row, known: evidence.Evidence) -> str | None:
    """Of the content that the run saw: a dataset that was added to keeps its id."""
    then = evidence.conditions(workspace, row)
    if then:
        return then["dataset"]["sha256"]
    return known.dataset["document"].get("sha256") if known.dataset else None


def _same_tokenizer(known: list[evidence.Evidence]) -> bool:
    files = [Path(one.adapter["document"]["path"]) / "tokenizer.json" if one.adapter else None for one in known]
    if not all(file is not None and file.is_file() for file in files):
        return False
    return len({hashlib.sha256(file.read_bytes()).digest() for file in files if file}) == 1


def _evaluations(
    workspace: Workspace, rows: list[Row], known: list[evidence.Evidence]
) -> tuple[dict[str, Column], dict[str, Any], list[str]]:
    """What the newest evaluations of the runs' adapters found, where at least two have one."""
    columns: dict[str, Column] = {}
    best: dict[str, Any] = {}
    notes: list[str] = []
    validations = [one.validation for one in known]
    if sum(row is not None for row in validations) > 1:
        found = _validated(validations)
        notes += _unlike(workspace, [row for row in validations if row], "adapters were validated")
        better = found.pop("better")
        columns |= {f"validate: {name}": values for name, values in found.items()}
        if not notes:
            best |= {f"validate: {name}": one for name, one in _best(rows, found, better).items()}
    tasks = dict.fromkeys(judged.task(row["result"]) for one in known for row in one.benchmarks)
    for task in tasks:
        passed = [next((r for r in one.benchmarks if judged.task(r["result"]) == task), None) for one in known]
        scores = [_triple(row["result"]["models"]["tuned"]["accuracy"]) if row else None for row in passed]
        if sum(score is not None for score in scores) > 1:
            columns[f"accuracy: {task}"] = scores
            unlike = _unlike(workspace, [row for row in passed if row], f"{task} was asked")
            notes += unlike
            if not unlike:
                best |= _best(rows, {f"accuracy: {task}": scores}, {f"accuracy: {task}": HIGHER})
    return columns, best, notes


# Evaluations


def _of_evaluations(workspace: Workspace, rows: list[Row]) -> dict[str, Any]:
    arguments = [{name: value for name, value in row["spec"].items() if name not in NAMING} for row in rows]
    found: dict[str, Any]
    if rows[0]["kind"] == "validate":
        found = _validated(rows)
        better, what = found.pop("better"), "adapters were validated"
    else:
        found = _benchmarked(rows)
        better, what = dict.fromkeys(found, HIGHER), "benchmark was asked"
    notes = _unlike(workspace, [row for row in rows if row["result"]], what)
    return {
        "adapters": [row["spec"].get("adapter_id") for row in rows],
        "arguments": _differing(arguments),
        "metrics": found,
        "best": {} if notes else _best(rows, found, better),
        "notes": [*notes, "[value, low, high]: the tuned model's with a 95 % interval."],
    }


def _validated(rows: Sequence[Row | None]) -> dict[str, Any]:
    """The tuned models' metrics as [value, low, high] or None by row, and under `better` which way each is better."""
    results = [(row["result"] or {}).get("metrics", {}) if row else {} for row in rows]
    names = list(dict.fromkeys(name for metrics in results for name in metrics))[:SHOWN_METRICS]
    columns: dict[str, Any] = {
        judged.label(name): [_triple(metrics[name]["tuned"]) if name in metrics else None for metrics in results]
        for name in names
    }
    better = {judged.label(name): next(m[name]["better"] for m in results if name in m) for name in names}
    return columns | {"better": better}


def _benchmarked(rows: Sequence[Row]) -> dict[str, Column]:
    scored = [
        {score.group: _triple(score.models["tuned"]) for score in judged.scores(row["result"])} if row["result"] else {}
        for row in rows
    ]
    groups = dict.fromkeys(group for scores in scored for group in scores)
    return {group: [scores.get(group) for scores in scored] for group in groups}


def _unlike(workspace: Workspace, rows: Sequence[Row], what: str) -> list[str]:
    """A loud sentence where evaluations did not ask the same."""
    if len({_asked_of(workspace, row) for row in rows}) <= 1:
        return []
    return [f"NOT COMPARABLE: {what} on different samples, or in different ways."]


def _asked_of(workspace: Workspace, row: Row) -> str:
    """What an evaluation asked: two that asked the same have the same."""
    result = row["result"]
    if row["kind"] == "benchmark":
        return json.dumps([result.get(key) for key in ("task", "n_shot", "chat_prompt", "questions")])
    asked = [[message["content"] for message in one["messages"]] for one in evidence.samples(workspace, row)]
    return json.dumps(asked or [result.get(key) for key in ("dataset_id", "split", "samples")])


# Tables


def _triple(interval: Mapping[str, float]) -> list[float]:
    return [float(f"{interval[key]:.4g}") for key in ("value", "low", "high")]


def _differing(given: Sequence[Mapping[str, Any]]) -> dict[str, Column]:
    """The arguments whose values differ; long values cut short."""
    names = dict.fromkeys(name for one in given for name in one)
    columns = {name: [one.get(name) for one in given] for name in names}
    return {
        name: [_short(value) for value in values]
        for name, values in columns.items()
        if len({json.dumps(value, sort_keys=True) for value in values}) > 1
    }


def _short(value: Any) -> Any:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return value if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 1]}…"


def _best(rows: Sequence[Row], columns: Mapping[str, Column], better: Mapping[str, str]) -> dict[str, Any]:
    """Of each column in `better` the best finished job, and which others its interval does not tell apart from it.

    Without intervals, values that are the same share it. Overlapping intervals are a cautious test: where it matters,
    compare the samples themselves.
    """
    found: dict[str, Any] = {}
    for name, way in better.items():
        told = {
            row["id"]: value
            for row, value in zip(rows, columns.get(name, []), strict=False)
            if value is not None and row["state"] == jobs.State.SUCCEEDED
        }
        if len(told) < FEWEST:
            continue
        spans: dict[str, list[float]] = {
            job_id: value if isinstance(value, list) else [value] * 3 for job_id, value in told.items()
        }
        value, best = (max if way == HIGHER else min)((span[0], job_id) for job_id, span in spans.items())
        _, low, high = spans[best]
        near = [job_id for job_id, span in spans.items() if job_id != best and span[1] <= high and span[2] >= low]
        found[name] = {"job_id": best, "value": value, **({"within_noise": near} if near else {})}
    return found


def chart_png(workspace: Workspace, job_ids: Sequence[str]) -> bytes:
    """The loss curves of fine-tunes over each other, as a PNG; the legend names what differs.

    Raises as `compare`, InvalidInput for evaluations, which have no curves, and NotFound without any loss.
    """
    rows = _rows(workspace, job_ids)
    if rows[0]["kind"] != "finetune":
        raise InvalidInput(
            "no_curves", f"Jobs of kind {rows[0]['kind']} have no curves.", allowed="Only fine-tunes have.",
            next=call("compare_runs", job_ids=[row["id"] for row in rows]),
        )  # fmt: skip
    return chart.png(workspace, rows, labels(rows))


def labels(rows: Sequence[Row]) -> list[str]:
    """Of each fine-tune its id and the first arguments that differ."""
    differing = list(_differing([_asked(row) for row in rows]).items())[:LEGEND_ARGUMENTS]
    return [
        ", ".join([row["id"], *(f"{name}={values[place]}" for name, values in differing)])
        for place, row in enumerate(rows)
    ]
