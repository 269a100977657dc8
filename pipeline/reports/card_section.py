"""An adapter's evaluation as Markdown for its model card: what was measured, with intervals, beside its base.

Guarantees that no row of the data, no answer and no path of this machine stands in it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tunewright.pipeline.benchmarking.exams import BENCHMARKS
from tunewright.pipeline.data import splits
from tunewright.pipeline.redact import public_text
from tunewright.pipeline.reports import evidence, judged, words
from tunewright.pipeline.reports.judged import MODELS
from tunewright.pipeline.workspace import Workspace


@dataclass(frozen=True)
class Score:
    """A whole benchmark of the Hub as the adapter passed it: for a card's `model-index`."""

    title: str
    hub_id: str
    split: str
    shots: int
    accuracy: float


def markdown(workspace: Workspace, adapter_id: str) -> str:
    """The section `## Evaluation` from the newest evaluations of an adapter; "" where there is none."""
    known = evidence.of_adapter(workspace, adapter_id)
    parts = list(_validation(known.validation["result"])) if known.validation else []
    tally = evidence.judgements(workspace, known.validation) if known.validation else None
    if tally and tally.win_rate:
        parts.append(f"Judged blind, answer beside answer. {tally.sentence}")
    for job in known.benchmarks:
        parts += _benchmark(evidence.evaluation(workspace, job))
    if not parts:
        return ""
    head = (
        "Measured with the adapter in place on its base, greedy answers; brackets hold 95 % confidence intervals. What "
        "quantization changes on top is not in these numbers."
    )
    return "\n\n".join(["## Evaluation", head, *(public_text(workspace, part) for part in parts)])


def _validation(result: dict[str, Any]) -> Iterator[str]:
    what = "held-out samples" if result.get("split") == splits.EVAL else "samples"
    yield f"### On the task\n\n{result['samples']} {what}."
    if result.get("sentence"):
        yield result["sentence"]
    found = judged.metrics(result)
    if found:
        rows = [
            f"| {metric.label} {'↑' if metric.better == 'higher' else '↓'} | {words.interval(metric.base)} "
            f"| {words.interval(metric.tuned)} | {words.interval(metric.difference, signed=True)} |"
            for metric in found
        ]
        yield "\n".join(["| | base | tuned | difference |", "|---|---|---|---|", *rows])
    yield from _notes(result)


def _benchmark(result: dict[str, Any]) -> Iterator[str]:
    yield f"### {judged.task(result)}\n\n{result['questions']} questions."
    if result.get("sentence"):
        yield result["sentence"]
    found = judged.scores(result)
    models = [name for name in MODELS if name in found[0].models]
    rows = [f"| {_cells(score, models)} |" for score in found]
    yield "\n".join([f"| | {' | '.join(models)} |", f"|{'---|' * (len(models) + 1)}", *rows])
    if average := judged.subject_average(result):
        yield average
    yield from _notes(result)


def _cells(score: judged.Score, models: list[str]) -> str:
    return " | ".join([score.group, *(words.accuracy(score.models.get(name)) for name in models)])


def _notes(result: dict[str, Any]) -> Iterator[str]:
    if result.get("notes"):
        yield "\n".join(f"- {note}" for note in result["notes"])


def scores(workspace: Workspace, adapter_id: str) -> list[Score]:
    """The scores that others may compare: of benchmarks that came from the Hub and were asked whole."""
    found: list[Score] = []
    for job in evidence.of_adapter(workspace, adapter_id).benchmarks:
        spec, benchmark = job["spec"], BENCHMARKS.get(job["result"]["task"])
        if benchmark is None or spec["task_dir"] is not None or spec["limit"] is not None:
            continue
        if len(spec["subjects"]) == len(benchmark.subjects):
            accuracy = job["result"]["models"]["tuned"]["accuracy"]["value"]
            found.append(Score(benchmark.title, benchmark.hub_id, benchmark.split, spec["n_shot"], accuracy))
    return found
