"""What the differences between a model and its forms mean: failures, and the form to recommend. Light.

Every bound stands here with its reason. "The table" is llama.cpp's own for Llama 3 8B against FP16, in its
tools/perplexity/README.md: mean KL 0.000025 for BF16, 0.0014 for Q8_0, 0.0055 for Q6_K, 0.011 for Q5_K_M, 0.031 for
Q4_K_M, 0.072 for Q4_0, 0.10 for Q3_K_M, 0.45 for Q2_K.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from tunewright.pipeline.data import splits
from tunewright.pipeline.exporting.outputs import DIRECT, gguf_type
from tunewright.pipeline.exporting.parity.cases import Cases
from tunewright.pipeline.exporting.parity.in_llama import Measured, quoted
from tunewright.pipeline.exporting.runtime import Reply
from tunewright.pipeline.store import Row

if TYPE_CHECKING:
    from tunewright.pipeline.exporting.parity.reference import Answer, Answers, Reference

# A bound on KL is so many times the noise floor of bfloat16, or the number, whichever is more: a model that is sure of
# everything has hardly any noise.
Bound = tuple[float, float]
# Rounding the merged weights to 16 bits moves the model less than computing in bfloat16, which rounds at every step:
# 0.2 to 0.7 of the noise floor on toys. A scale wrong by a twentieth moved a trained toy by 100 noise floors.
MERGE_BOUND: Bound = (4, 1e-4)
# These hold the 16-bit weights themselves, and llama.cpp computes with no fewer bits than bfloat16 has.
SAME_BOUND: Bound = (4, 1e-3)
# 8 bits with a scale for every 32 weights: a fifth of the second number in the table, 1 to 5 noise floors on toys.
Q8_BOUND: Bound = (10, 0.01)
BOUNDS = {"f16": SAME_BOUND, "bf16": SAME_BOUND, "q8_0": Q8_BOUND}
# What has fewer bits is described, not refused, unless it is another model: twice the KL of Q2_K in the table, or not
# even the tokens that the reference is sure of.
BROKEN_KL, BROKEN_TOP1 = 1.0, 0.5
# Where two greedy answers part, both tokens must have been about as likely to the reference: within so many times what
# the file moved the difference of the two likeliest at any scored position, and at least within so many nats.
MARGINS, LEAST_MARGIN = 4, 0.05
# Training measured all evaluation rows with its own kernels, here some are; an adapter on another base is several nats
# off. So many nats, and so many standard errors of the mean over the rows.
LOSS_ALLOWED, LOSS_ERRORS = 1.0, 4
# In the table Q4_K_M is within, Q4_0 is not; nats of evaluation loss are about the same share of perplexity.
RECOMMENDED_KL, RECOMMENDED_LOSS = 0.05, 0.05
# On fewer scored tokens a mean over them does not tell the smaller files apart.
ENOUGH_TOKENS = 100


@dataclass(frozen=True)
class Greedy:
    """How many of `of` answers are token for token the reference's; `failures` are differences without an excuse."""

    equal: int
    of: int
    failures: list[str]


def _exceeds(kl: float, bound: Bound, noise: float) -> bool:
    """True for NaN as well."""
    return not kl <= max(bound[0] * noise, bound[1])


def of_merge(reference: "Reference") -> list[str]:
    """What is wrong with the merged model itself, against its base with the adapter beside it."""
    if not math.isfinite(reference.loss):
        return ["the merged model gives no finite numbers"]
    if reference.merge is None:
        return []
    found, noise = reference.merge.distance.kl, reference.noise.kl
    if not _exceeds(found, MERGE_BOUND, noise):
        return []
    return [
        f"the merged model is not the base with its adapter: their mean KL is {found:.3g}, rounding explains "
        f"{max(MERGE_BOUND[0] * noise, MERGE_BOUND[1]):.3g}. The adapter was merged twice, with another scale, or into "
        "another base"
    ]


def of_loss(adapter: Row, cases: Cases, reference: "Reference", source: Path, adapter_scale: float) -> list[str]:
    """Whether the merged model has forgotten what training measured: an adapter on a base that it was not trained on.

    Says nothing where training measured something else: another method, all tokens, another scale, other rows.
    """
    document = adapter["document"]
    recorded = (document.get("metrics") or {}).get("eval_loss")
    comparable = (
        document.get("method") == "sft"
        and (document.get("training") or {}).get("train_on") != "all"
        and (adapter_scale, source, cases.split) == (1.0, Path(document["path"]), splits.EVAL)
    )
    if recorded is None or not comparable:
        return []
    losses = reference.losses
    error = stdev(losses) / math.sqrt(len(losses)) if len(losses) > 1 else 0.0
    if fmean(losses) <= recorded + LOSS_ALLOWED + LOSS_ERRORS * error:
        return []
    return [
        f"its loss on {len(losses)} evaluation rows is {fmean(losses):.2f}, training measured {recorded:.2f}: usually "
        "the base is not the one that the adapter was trained on"
    ]


def of_output(output: str, measured: Measured, reference: "Reference", cases: Cases) -> tuple[list[str], Greedy | None]:
    """All that is wrong with a GGUF, and its answers beside the reference's (None where there are none)."""
    failures = [*measured.failures, *_stops_elsewhere(measured.answers, cases)]
    if measured.distance is None:
        return failures, None
    failures += _too_far(gguf_type(output), measured, reference.noise.kl)
    given = reference.answers.given
    if given is None:
        return failures, None
    margin = measured.distance.margin
    greedy = _compare_answers(measured.answers, given, reference.answers, margin, cases)
    exact = gguf_type(output) in DIRECT
    return [*failures, *(greedy.failures if exact else ())], greedy


def _too_far(kind: str, measured: Measured, noise: float) -> Iterator[str]:
    found = measured.distance
    if found is None:
        return
    bound = BOUNDS.get(kind)
    if bound and _exceeds(found.kl, bound, noise):
        yield (
            f"its mean KL to the 16-bit model is {found.kl:.3g}, {kind} explains "
            f"{max(bound[0] * noise, bound[1]):.3g} (the noise floor of bfloat16 is {noise:.3g})"
        )
    elif not found.kl <= BROKEN_KL:
        yield f"it is broken: its mean KL to the 16-bit model is {found.kl:.3g}"
    elif found.top1_confident is not None and found.top1_confident < BROKEN_TOP1:
        yield f"it is broken: it shares {found.top1_confident:.0%} of the tokens that the 16-bit model is sure of"


def _stops_elsewhere(answers: Sequence[Reply], cases: Cases) -> Iterator[str]:
    for number, answer in enumerate(answers):
        last = answer["tokens"][-1:]
        if answer["finish_reason"] == "stop" and not {*cases.ends, *cases.template.special_ids}.intersection(last):
            said = cases.template.tokenizer.decode(last, skip_special_tokens=False)
            yield f"answer {number + 1} stops at {said!r} ({last}), which ends no answer in training"
            return


def _compare_answers(
    answers: Sequence[Reply], given: Sequence["Answer"], type_of: "Answers", margin: float, cases: Cases
) -> Greedy:
    allowed = max(LEAST_MARGIN, MARGINS * (margin + type_of.margin))
    equal, failures = 0, list[str]()
    for number, (answer, expected) in enumerate(zip(answers, given, strict=True)):
        if answer["tokens"] == expected.tokens:
            equal += 1
        elif (lead := _lead(answer["tokens"], expected, cases)) > allowed and not failures:
            failures.append(
                f"greedy answer {number + 1} is {quoted(answer['text'])}, the 16-bit model's {quoted(expected.text)}: "
                f"where they part, the latter's token leads by {lead:.2g} nats, its type explains {allowed:.2g}"
            )
    return Greedy(equal, len(given), failures)


def _lead(tokens: Sequence[int], expected: "Answer", cases: Cases) -> float:
    """By how many nats the reference preferred its own token where another answer takes the first other one.

    At least that many, where the other is not among the tokens kept. Without limit where one of the two goes on after
    the other has ended; but llama.cpp ends at every token whose name says so, and stopping there is no difference.
    """
    pairs = enumerate(zip(tokens, expected.tokens, strict=False))
    at = next((i for i, (other, own) in pairs if other != own), None)
    if at is None:
        ended_by_name = len(tokens) < len(expected.tokens) and tokens[-1] in cases.template.special_ids
        return 0.0 if ended_by_name else math.inf
    step = expected.steps[at]
    return step[expected.tokens[at]] - step.get(tokens[at], min(step.values()))


def recommend(outputs: Mapping[str, Mapping[str, Any]], eval_loss: float, scored_tokens: int) -> dict[str, str] | None:
    """The smallest file that passed and costs hardly any quality, with the reason; else the closest; None of none.

    On little data only among those of 8 and 16 bits, where there is one.
    """
    passed = sorted((name for name in outputs if outputs[name]["passed"]), key=lambda name: outputs[name]["bytes"])
    if not passed:
        return None
    exact = [name for name in passed if gguf_type(name) in DIRECT]
    if scored_tokens < ENOUGH_TOKENS and exact:
        why = f"The data has {scored_tokens} tokens to score, too few to judge files of fewer bits by: "
        return {"output": exact[0], "why": f"{why}{_figures(outputs[exact[0]], eval_loss)}."}
    bound = f"mean KL {RECOMMENDED_KL:g} and {RECOMMENDED_LOSS:g} nats of evaluation loss from the 16-bit model"
    for name in passed:
        found = outputs[name]
        if found["kl"] <= RECOMMENDED_KL and found["eval_loss"] - eval_loss <= RECOMMENDED_LOSS:
            return {"output": name, "why": f"The smallest file within {bound}: {_figures(found, eval_loss)}."}
    closest = min(passed, key=lambda name: outputs[name]["kl"])
    why = f"No file is within {bound}; this is the closest: {_figures(outputs[closest], eval_loss)}."
    return {"output": closest, "why": why}


def _figures(found: Mapping[str, Any], eval_loss: float) -> str:
    return (
        f"KL {found['kl']:.2g}, loss {found['eval_loss']:.3f} against {eval_loss:.3f}, {found['bytes'] / 1e6:,.1f} MB"
    )
