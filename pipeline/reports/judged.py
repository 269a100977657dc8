"""How an adapter was judged, in the form that the page and the model card show: metrics, benchmarks, exports.

Numbers come from the jobs' results alone. Says "better" or "worse" only where a difference's interval leaves out zero.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tunewright.pipeline.benchmarking.exams import BENCHMARKS, CHANCE
from tunewright.pipeline.reports import words
from tunewright.pipeline.store import Row
from tunewright.pipeline.validation.summary import METRICS

Interval = Mapping[str, float]
Verdict = Literal["better", "worse", "same"]
# As benchmark jobs call the models, in the order in which they are shown.
MODELS = ("tuned", "base", "export")
# Which metric tells the best that an answer came nearer to its reference: the first that there is.
NEARNESS = ("chrf", "rouge_l", "token_f1", "exact_match")
SHOWN_GAINS = SHOWN_LOSSES = 3
SHOWN_SAMPLES = 8


@dataclass(frozen=True)
class Metric:
    """One metric of a validation. `span` is where a difference's interval lies on a track with zero in its middle, as
    shares of its width (from, to, value).
    """

    label: str
    better: str
    tuned: Interval | None
    base: Interval | None
    difference: Interval | None
    verdict: Verdict | None
    span: tuple[float, float, float] | None


@dataclass(frozen=True)
class Score:
    """The accuracies of a group of questions, by model."""

    group: str
    models: dict[str, Interval]


def metrics(result: Mapping[str, Any]) -> list[Metric]:
    """The metrics of a validate job's result, those with a difference first."""
    found = [
        Metric(
            label(name), entry.get("better", "higher"), entry.get("tuned"), entry.get("base"), entry.get("difference"),
            _verdict(entry.get("difference"), entry.get("better", "higher")), _span(entry.get("difference")),
        )
        for name, entry in (result.get("metrics") or {}).items()
    ]  # fmt: skip
    return sorted(found, key=lambda metric: metric.difference is None)


def label(metric: str) -> str:
    """A metric by the name that the field gives it."""
    return METRICS[metric].label if metric in METRICS else words.words(metric)


def _verdict(difference: Interval | None, better: str) -> Verdict | None:
    if difference is None:
        return None
    if difference["low"] <= 0 <= difference["high"]:
        return "same"
    return "better" if (difference["low"] > 0) == (better == "higher") else "worse"


def _span(difference: Interval | None) -> tuple[float, float, float] | None:
    if difference is None:
        return None
    reach = 1.1 * max(abs(difference[key]) for key in ("low", "high", "value")) or 1.0
    low, high, value = (0.5 + 0.5 * difference[key] / reach for key in ("low", "high", "value"))
    return low, high, value


def task(result: Mapping[str, Any]) -> str:
    """`C-Eval, 5-shot, as a chat`."""
    name = result["task"]
    parts = [BENCHMARKS[name].title if name in BENCHMARKS else name]
    if result.get("n_shot") is not None:
        parts.append(f"{result['n_shot']}-shot")
    return ", ".join([*parts, *(["as a chat"] if result.get("chat_prompt") else [])])


def chance(result: Mapping[str, Any]) -> float | None:
    """The accuracy of guessing, where it is known."""
    return CHANCE if result["task"] in BENCHMARKS else None


def scores(result: Mapping[str, Any]) -> list[Score]:
    """Over all questions of a benchmark, then by group."""
    models: dict[str, Any] = {name: result["models"][name] for name in MODELS if result["models"].get(name)}
    groups = dict.fromkeys(group for found in models.values() for group in found.get("groups") or {})
    overall = Score("All questions", {name: found["accuracy"] for name, found in models.items()})
    return [
        overall,
        *(
            Score(group, {name: found["groups"][group] for name, found in models.items() if group in found["groups"]})
            for group in groups
        ),
    ]


def subject_average(result: Mapping[str, Any]) -> str:
    """The mean over the subjects, which leaderboards give; "" where there is but one subject."""
    models = {name: result["models"][name] for name in MODELS if result["models"].get(name)}
    if len(models["tuned"].get("subjects", ())) == 1:
        return ""
    told = (f"{name} {100 * found['subject_average']:.1f}%" for name, found in models.items())
    return f"Mean over the subjects, as leaderboards give it: {', '.join(told)}."


def subjects(result: Mapping[str, Any]) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """The models, and of each subject what they got right: `12 of 19`."""
    models = [name for name in MODELS if (result["models"].get(name) or {}).get("subjects")]
    names = dict.fromkeys(subject for name in models for subject in result["models"][name]["subjects"])
    rows = [
        (subject, [_right(result["models"][name]["subjects"].get(subject)) for name in models]) for subject in names
    ]
    return models, rows


def _right(subject: Mapping[str, Any] | None) -> str:
    # Some tasks give a part of a point.
    return f"{words.figure(subject['correct'])} of {subject['of']}" if subject else "–"


def shown_samples(samples: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], str]:
    """The samples worth a reader's time, by their index, and by what rule they were taken.

    Those that gained most and those that lost most, the rest spread evenly: no gallery of successes.
    """
    if len(samples) <= SHOWN_SAMPLES:
        return list(samples), ""
    by = next((name for name in NEARNESS if any(_gain(sample, name) is not None for sample in samples)), None)
    if by is None:
        return _spread(samples, SHOWN_SAMPLES), f"{SHOWN_SAMPLES} of {len(samples)}, spread evenly."
    ordered = sorted(samples, key=lambda sample: _gain(sample, by) or 0.0)
    ends = [*ordered[:SHOWN_LOSSES], *ordered[-SHOWN_GAINS:]]
    between = _spread(ordered[SHOWN_LOSSES:-SHOWN_GAINS], SHOWN_SAMPLES - len(ends))
    shown = sorted([*ends, *between], key=lambda sample: sample["index"])
    rule = (
        f"{len(shown)} of {len(samples)}: the {SHOWN_GAINS} that gained most on {label(by)}, the {SHOWN_LOSSES} "
        f"that lost most or gained least, {len(between)} from between."
    )
    return shown, rule


def _gain(sample: Mapping[str, Any], metric: str) -> float | None:
    tuned, base = (sample[side]["metrics"].get(metric) for side in ("tuned", "base"))
    return None if tuned is None or base is None else tuned - base


def _spread(samples: Sequence[dict[str, Any]], many: int) -> list[dict[str, Any]]:
    return [samples[round((place + 0.5) * len(samples) / many - 0.5)] for place in range(min(many, len(samples)))]


def export_rows(export: Row) -> list[dict[str, Any]]:
    """The outputs of an export with their sizes and what their parity was measured to be."""
    parity: dict[str, Any] = export["document"].get("parity") or {}
    measured: dict[str, Any] = parity.get("outputs") or {}
    advised = (parity.get("recommendation") or {}).get("output")
    return [
        {
            **measured.get(entry["output"], {}), "output": entry["output"], "bytes": entry["bytes"],
            "is_recommended": entry["output"] == advised,
        }
        for entry in export["document"].get("files", [])
    ]  # fmt: skip
