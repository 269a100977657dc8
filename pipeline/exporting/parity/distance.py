"""How far two models' distributions of the next token lie apart, at the same positions of the same tokens. Needs numpy.

KL is the Kullback-Leibler divergence KL(reference ‖ other) in nats. Where the other distribution is known for its
likeliest tokens only, all the rest counts as one token: by the log sum inequality the number is then a lower bound.
A target among the rest is taken to have the share of it that the reference gives it, so that two equal models have
equal losses. Both are exact where every token is given.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# ln of the smallest positive float32: what underflowed to a probability of 0 was at most that likely.
LEAST_LOGPROB = -103.28
# Probability left for what was not listed; below it is float32's rounding of the sum.
LEAST_REST = 1e-6
CONFIDENT = 0.5

# Of one position (vocabulary,) or of several (positions, vocabulary).
Logprobs = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Distance:
    """Means over the positions. `top1` is how often the likeliest token is the same, `top1_confident` among those where
    the reference gives it more than half (None where it never does); `margin` the largest change of the difference in
    log-probability between the reference's two likeliest tokens; `loss` the other's mean loss on the targets.
    """

    kl: float
    top1: float
    top1_confident: float | None
    margin: float
    loss: float


@dataclass(frozen=True)
class _Position:
    kl: float
    same_top: bool
    is_confident: bool
    margin: float
    loss: float


def between(
    reference: Logprobs, listed: Iterable[tuple[Sequence[int], Sequence[float] | Logprobs]], targets: Sequence[int]
) -> Distance:
    """Compares the rows of `reference` (positions, vocabulary) with the tokens listed at each: ids, log-probabilities.

    Anything not finite makes the numbers NaN.
    """
    positions = [
        _at(row.astype(np.float64), np.asarray(ids, np.int64), np.asarray(logprobs, np.float64), target)
        for row, (ids, logprobs), target in zip(reference, listed, targets, strict=True)
    ]
    confident = [position.same_top for position in positions if position.is_confident]
    return Distance(
        # Of equal models rounding alone may make it less than nothing. NaN stays NaN.
        kl=max(_mean([position.kl for position in positions]), 0.0),
        top1=_mean([position.same_top for position in positions]),
        top1_confident=_mean(confident) if confident else None,
        margin=float(np.max([position.margin for position in positions])),
        loss=_mean([position.loss for position in positions]),
    )


def of_whole(reference: Logprobs, other: Logprobs, targets: Sequence[int]) -> Distance:
    """Compares two arrays (positions, vocabulary) of log-probabilities."""
    ids = range(reference.shape[1])
    return between(reference, ((ids, row) for row in other), targets)


def loss(logprobs: Logprobs, targets: Sequence[int]) -> float:
    """The mean loss, in nats, of the targets in rows of log-probabilities (positions, vocabulary)."""
    return -_mean([float(row[target]) for row, target in zip(logprobs, targets, strict=True)])


def _mean(values: Sequence[float]) -> float:
    return float(sum(values) / len(values))


def _at(reference: Logprobs, ids: NDArray[np.integer[Any]], logprobs: Logprobs, target: int) -> _Position:
    listed = np.maximum(logprobs, LEAST_LOGPROB)
    p = np.exp(reference)
    other = np.full_like(reference, listed.min())
    other[ids] = listed
    kl = float(np.sum(p[ids] * (reference[ids] - listed)))
    target_logprob = float(other[target])
    if len(ids) < len(reference):
        p_rest, q_rest = float(1 - p[ids].sum()), max(float(1 - np.exp(listed).sum()), LEAST_REST)
        if p_rest > LEAST_REST:
            change = float(np.log(q_rest / p_rest))
            kl -= p_rest * change
            if target not in ids:
                # No likelier than the least likely token of the list.
                target_logprob = min(float(reference[target]) + change, float(listed.min()))
    two = np.argpartition(reference, -2)[-2:]
    second, first = two[np.argsort(reference[two])]
    margin = abs((reference[first] - reference[second]) - (other[first] - other[second]))
    same_top = int(np.argmax(other)) == first
    return _Position(kl, same_top, bool(p[first] > CONFIDENT), float(margin), -target_logprob)
