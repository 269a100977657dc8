"""From the scores of single samples to what can be said of both models. Light.

Guarantees that a difference is only told with its interval (bootstrapped; of shares Newcombe's), from MIN_PAIRS pairs
on, and that the loss is that of all the references' tokens together. Each interval holds 95 % for itself: among several
metrics one may differ by chance.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from tunewright.pipeline.evaluation import sentences, statistics
from tunewright.pipeline.evaluation.statistics import Interval

Loss = tuple[float, int]
Scores = Mapping[str, float]
# Below, a bootstrap of the pairs says little: eight that all point one way are chance at p = 0.008.
MIN_PAIRS = 8
# Of all tokens together, not of samples.
LOSSES = ("loss", "perplexity")
# exp of more leaves a float's range.
MAX_LOSS = 700.0


@dataclass(frozen=True)
class Metric:
    """`share`: of each sample either 0 or 100."""

    label: str
    better: Literal["higher", "lower"]
    share: bool = False


METRICS = {
    "loss": Metric("loss", "lower"),
    "perplexity": Metric("perplexity", "lower"),
    "exact_match": Metric("exact match", "higher", share=True),
    "token_f1": Metric("token F1", "higher"),
    "chrf": Metric("chrF", "higher"),
    "rouge_l": Metric("ROUGE-L", "higher"),
    "valid_json": Metric("valid JSON", "higher", share=True),
    "stopped": Metric("answers that end", "higher", share=True),
    "repetition": Metric("repeated 4-grams", "lower"),
}


@dataclass(frozen=True)
class Compared:
    """One metric over the samples that have it on both sides. `difference` is tuned minus base, paired; None from fewer
    than MIN_PAIRS, and for the perplexity, of which the loss says the same.
    """

    tuned: Interval
    base: Interval
    difference: Interval | None
    samples: int

    def as_data(self, name: str) -> dict[str, Any]:
        return asdict(self) | {"better": METRICS[name].better}


def compare(
    tuned: Sequence[Scores], base: Sequence[Scores], losses: Sequence[tuple[Loss, Loss]]
) -> dict[str, Compared]:
    """Each metric that at least one sample has. `losses` are pairs (tuned, base) of finite summed losses."""
    found = _losses(losses) if losses else {}
    both = list(zip(tuned, base, strict=True))
    for name, metric in METRICS.items():
        pairs = [(one[name], other[name]) for one, other in both if name in one and name in other]
        if pairs and name not in LOSSES:
            ours, theirs = ([pair[i] for pair in pairs] for i in (0, 1))
            found[name] = _shares(ours, theirs) if metric.share else _scores(ours, theirs)
    return {name: found[name] for name in METRICS if name in found}


def _scores(tuned: Sequence[float], base: Sequence[float]) -> Compared:
    return Compared(statistics.mean(tuned), statistics.mean(base), _difference(tuned, base), len(tuned))


def _difference(tuned: Sequence[float], base: Sequence[float]) -> Interval | None:
    return statistics.paired(tuned, base) if len(tuned) >= MIN_PAIRS else None


def _shares(tuned: Sequence[float], base: Sequence[float]) -> Compared:
    """Of scores that are 0 or 100."""
    pairs = [(one > 0, other > 0) for one, other in zip(tuned, base, strict=True)]
    ours, theirs = (statistics.proportion(sum(pair[i] for pair in pairs), len(pairs)) for i in (0, 1))
    difference = _share_difference(pairs, ours, theirs) if len(pairs) >= MIN_PAIRS else None
    return Compared(_percent(ours), _percent(theirs), _percent(difference) if difference else None, len(pairs))


def _share_difference(pairs: Sequence[tuple[bool, bool]], ours: Interval, theirs: Interval) -> Interval:
    """Newcombe's interval for paired shares (1998, Statistics in Medicine 17:2635, method 10).

    A bootstrap of pairs that all fell alike, as where no answer of the base ends and each of the tuned does, would have
    no width at all.
    """
    both, only_ours, only_theirs, neither = (
        pairs.count(case) for case in ((True, True), (True, False), (False, True), (False, False))
    )
    product = (both + only_ours) * (only_theirs + neither) * (both + only_theirs) * (only_ours + neither)
    surplus = both * neither - only_ours * only_theirs
    surplus = max(surplus - len(pairs) / 2, 0.0) if surplus > 0 else surplus
    correlation = surplus / math.sqrt(product) if product else 0.0

    def reach(one: float, other: float) -> float:
        return math.sqrt(max(0.0, one * one - 2 * correlation * one * other + other * other))

    value = ours.value - theirs.value
    low = value - reach(ours.value - ours.low, theirs.high - theirs.value)
    high = value + reach(ours.high - ours.value, theirs.value - theirs.low)
    return Interval(value, max(-1.0, low), min(1.0, high))


def _percent(share: Interval) -> Interval:
    return Interval(100 * share.value, 100 * share.low, 100 * share.high)


def _losses(losses: Sequence[tuple[Loss, Loss]]) -> dict[str, Compared]:
    tuned, base = (_pooled([pair[i] for pair in losses]) for i in (0, 1))
    loss = Compared(statistics.mean(tuned), statistics.mean(base), _difference(tuned, base), len(losses))
    if max(loss.tuned.high, loss.base.high) > MAX_LOSS:
        return {"loss": loss}
    perplexity = Compared(_exponential(loss.tuned), _exponential(loss.base), None, len(losses))
    return {"loss": loss, "perplexity": perplexity}


def _pooled(losses: Sequence[Loss]) -> list[float]:
    """A value for each sample, whose mean is the loss per token of all samples together, and whose spread is that of
    this ratio: its linearisation (Cochran 1977, Sampling Techniques, chapter 6).
    """
    tokens = sum(count for _, count in losses)
    ratio = math.fsum(nats for nats, _ in losses) / tokens
    average = tokens / len(losses)
    return [ratio + (nats - ratio * count) / average for nats, count in losses]


def _exponential(loss: Interval) -> Interval:
    return Interval(math.exp(loss.value), math.exp(loss.low), math.exp(loss.high))


def sentence(found: Mapping[str, Compared], samples: int, *, trained_on: bool) -> str:
    """What the comparison says, in words; where the samples were trained on, that too."""
    differences = {name: compared.difference for name, compared in found.items() if compared.difference}
    if differences:
        said = sentences.comparison(
            differences,
            better={name: METRICS[name].better for name in differences},
            labels={name: METRICS[name].label for name in differences},
        )
    elif samples < MIN_PAIRS:
        said = f"{samples} samples are too few for a verdict: it takes {MIN_PAIRS} or more."
    else:
        said = "Nothing was compared."
    learnt = "These rows were trained on: they show what was learnt by heart, not what the model can do."
    return f"{said} {learnt}" if trained_on else said
