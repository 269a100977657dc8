"""From answers to the result of a benchmark: accuracies with their intervals, and who is better than whom. Light.

A model's answers are scores by (subject, number of the question): 1 for right, 0 for wrong; shares in between occur in
tasks of lm-eval. All models of one result must have answered the same questions.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from statistics import fmean
from typing import Any

from tunewright.pipeline import files
from tunewright.pipeline.benchmarking.subjects import Groups
from tunewright.pipeline.context import JobContext
from tunewright.pipeline.evaluation.sentences import amount
from tunewright.pipeline.evaluation.statistics import Interval, mcnemar, mean, paired, proportion

TUNED, BASE, EXPORT = "tuned", "base", "export"
NAMES = {TUNED: "the tuned model", BASE: "the base", EXPORT: "the export"}
SAMPLES, EVALUATION = "samples.jsonl", "evaluation.json"
SIGNIFICANT_P = 0.05
# A job's result is read by an agent; what is longer stands in evaluation.json alone.
RESULT_BYTES = 6000

Scores = Mapping[tuple[str, int], float]


def publish(
    context: JobContext, by_model: Mapping[str, Scores], *, title: str, groups_of: Callable[[str], Groups],
    notes: Sequence[str], seconds: Mapping[str, float], samples: str, chance: float | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Writes `samples.jsonl` and `evaluation.json` into the job's folder; returns the job's result.

    `chance` is the accuracy of guessing, where it is known.
    """
    spec = context.spec
    models = {name: summary(by_model[name], groups_of) for name in (TUNED, BASE, EXPORT) if name in by_model}
    compared = comparisons(by_model)
    questions = len(by_model[TUNED])
    head = f"{title}, {questions:,} questions, {spec['n_shot']}-shot{' in chat form' if spec['chat_prompt'] else ''}"
    document = {
        "adapter_id": spec["adapter_id"], "base_model": spec["base_model"], "task": spec["task"],
        "n_shot": spec["n_shot"], "chat_prompt": spec["chat_prompt"], "questions": questions, "models": models,
        "comparisons": compared, "sentence": headline(head, models, compared),
        "notes": [*notes, *(chance_notes(models, chance) if chance is not None else [])], "seconds": dict(seconds),
        "files": {"samples": str(context.folder / SAMPLES), "evaluation": str(context.folder / EVALUATION)},
    }  # fmt: skip
    files.write_text(context.folder / SAMPLES, samples)
    files.write_json(context.folder / EVALUATION, document)
    return compact(document)


def summary(scores: Scores, groups_of: Callable[[str], Groups]) -> dict[str, Any]:
    """One model's numbers: `accuracy` over questions with its interval, `subject_average` as leaderboards give it (the
    mean of the subjects' accuracies), both for each group too, and every subject's.
    """
    by_subject: dict[str, list[float]] = {}
    groups: dict[str, list[str]] = {}
    for (subject, _), score in scores.items():
        if subject not in by_subject:
            for group in groups_of(subject):
                groups.setdefault(group, []).append(subject)
        by_subject.setdefault(subject, []).append(score)

    def together(subjects: Sequence[str]) -> dict[str, Any]:
        values = [value for subject in subjects for value in by_subject[subject]]
        average = fmean(fmean(by_subject[subject]) for subject in subjects)
        return {**rounded(accuracy(values)), "of": len(values), "subject_average": round(average, 4)}

    total = together(list(by_subject))
    return {
        "accuracy": {key: total.pop(key) for key in ("value", "low", "high")},
        **total,
        "groups": {group: together(subjects) for group, subjects in groups.items()},
        "subjects": {
            subject: {"accuracy": round(fmean(values), 4), "correct": _whole(sum(values)), "of": len(values)}
            for subject, values in by_subject.items()
        },
    }


def _whole(total: float) -> float:
    """As an integer where it is one: so many questions."""
    return int(total) if total == int(total) else round(total, 4)


def accuracy(values: Sequence[float]) -> Interval:
    """Wilson's interval of right and wrong, the bootstrap's where there are shares in between."""
    if {*values} <= {0, 1}:
        return proportion(round(sum(values)), len(values))
    return mean(values)


def rounded(interval: Interval) -> dict[str, float]:
    return asdict(interval.rounded())


def comparisons(by_model: Mapping[str, Scores]) -> list[dict[str, Any]]:
    """Every pair: tuned against base, and the export against each."""
    ordered = [model for model in (BASE, TUNED, EXPORT) if model in by_model]
    return [compared(b, a, by_model) for a, b in combinations(ordered, 2)]


def compared(a: str, b: str, by_model: Mapping[str, Scores]) -> dict[str, Any]:
    """Model `a` against `b` on the same questions: the difference of their accuracies with its interval, and McNemar's
    exact p of right and wrong. Better or worse is said only where both agree that it is no chance.
    """
    pairs = [(by_model[a][question], by_model[b][question]) for question in by_model[b]]
    difference = paired([one for one, _ in pairs], [other for _, other in pairs])
    only_a, only_b = sum(one > other for one, other in pairs), sum(other > one for one, other in pairs)
    # Of shares in between it is the sign test.
    p = mcnemar(only_a, only_b)
    shown = difference.sign if p < SIGNIFICANT_P else 0
    points = Interval(*(100 * value for value in (difference.value, difference.low, difference.high)))
    if shown:
        word = "better" if shown > 0 else "worse"
        said = f"{NAMES[a].capitalize()} is {word} than {NAMES[b]} by {amount(points)} points"
    else:
        said = (
            f"No difference shown between {NAMES[a]} and {NAMES[b]}: {points.value:+.1f} points "
            f"[{points.low:.1f}, {points.high:.1f}]"
        )
    counts = f"p = {_p(p)}; {only_a} questions only {NAMES[a]} got right, {only_b} only {NAMES[b]}"
    return {
        "a": a, "b": b, "difference": rounded(difference), "only_a": only_a, "only_b": only_b,
        "p_mcnemar": float(f"{p:.3g}"), "sentence": f"{said} ({counts}).",
    }  # fmt: skip


def _p(p: float) -> str:
    return f"{p:.3f}" if p >= 0.001 else f"{p:.1g}"


def headline(title: str, models: Mapping[str, Mapping[str, Any]], pairs: Sequence[Mapping[str, Any]]) -> str:
    """The whole in a few sentences: each model's accuracy, and what the comparisons show."""
    told = [f"{name} {_percent(found['accuracy'])}" for name, found in models.items()]
    return " ".join([f"{title}: {', '.join(told)}.", *(pair["sentence"] for pair in pairs)])


def _percent(interval: Mapping[str, float]) -> str:
    return f"{100 * interval['value']:.1f} % [{100 * interval['low']:.1f}, {100 * interval['high']:.1f}]"


def chance_notes(models: Mapping[str, Mapping[str, Any]], chance: float) -> list[str]:
    """A note for each model that a guesser could be."""
    return [
        f"{name}: its interval holds {100 * chance:.0f} %, what guessing gives; it was not shown to know anything."
        for name, found in models.items()
        if found["accuracy"]["low"] <= chance <= found["accuracy"]["high"]
    ]


def compact(document: dict[str, Any]) -> dict[str, Any]:
    """The document as the job's result: without what it says of single subjects where that would be too long."""
    if len(json.dumps(document).encode()) <= RESULT_BYTES:
        return document
    models = {
        name: {key: value for key, value in found.items() if key != "subjects"}
        for name, found in document["models"].items()
    }
    note = f"The numbers of each subject stand in {document['files']['evaluation']}."
    return document | {"models": models, "notes": [*document["notes"], note]}
