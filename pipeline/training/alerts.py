"""What is wrong with a run, read off its metrics: pure functions, the same for the trainer and for who looks. Light.

Guarantees: the same rows give the same alerts, wherever they are asked for; a cause hides its symptoms (where every
label is masked, a gradient of zero is no second alert). Looks at the first `HEAD` and the last `LAST` rows only, so a
run of any length costs the same at each step. Does not guarantee that a run without alerts is a good one.

Rows are the store's: `step` and `numbers` by the names of reporting.py. `facts` are the numbers of a run that do not
change: max_steps, truncated_share (of the training rows), limit_gib (of the device), host_total_gib.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, takewhile
from statistics import fmean, median, variance
from typing import Any

from tunewright.pipeline.store import Row

HEAD, TAIL = 100, 1000

# Training loss is a likelihood of text in nats per token; in DPO and KTO it is that of a judgement, in GRPO no measure.
LIKELIHOOD = ("sft", "cpt", "orpo")
PREFERENCE = ("dpo", "orpo", "kto")

# knowledge.md: below 0.2 a model recites its training data.
LOW_LOSS = 0.2
# The best evaluation is itself the luckiest of several; two later ones must both be worse by more than this share.
EVAL_RISE = 0.02
# A fall of less than a hundredth since the start is none, however little noise there is.
LEAST_FALL = 0.01
# The first tenth of a run holds the warm-up; judging its trend there would judge the schedule.
JUDGED_FROM = 0.1
JUDGED_ROWS = 20
# Rows over which a level is averaged: one batch alone says little.
LEVEL_ROWS = 10
# With a noise of a tenth the lowest mean of five rows lies 13 % below a level that never moved.
REBOUND_ROWS, REBOUND = 5, 0.15
# One batch can be easy, two in a row can be the end of an epoch; three without any gradient are the rule.
ZERO_ROWS = 3
ZERO_NORM = 1e-9
# Clipping hides a large norm from the weights; a norm this far above its usual size three times in a row is a blow-up.
NORM_FACTOR, NORM_ROWS = 20, 3
# A model whose loss is 4 nats above its best gives each token 1/55 of the probability it gave before. Where the best is
# small, three times it and one nat more is as far; k rows in a row, because single batches can be hard.
DIVERGED_NATS, DIVERGED_FACTOR, DIVERGED_MARGIN, DIVERGED_ROWS = 4.0, 3.0, 1.0, 5
# All that any rule here looks at of the end of a run.
LAST = TAIL + DIVERGED_ROWS
# fp16 begins with a loss scale of 2**16 and halves it at each overflow, skipping the step: so often that is no illness.
FP16_SKIPS = 16
# knowledge.md and the issue: a twentieth of the rows cut changes what is learned.
TRUNCATED_SHARE = 0.05
# The allocator needs room between its blocks: runs that reach this share fail at the next longer batch.
FULL_SHARE = 0.95
# The first steps compile and fill caches; after that a plan is right within 20 % or the machine is not what it was.
WARM_STEPS, SLOW_SHARE = 20, 0.6
# A checkpoint passes through host memory; below this the kernel kills.
HOST_FREE_SHARE = 0.05
# Near the highest reward there is nothing left to rise to.
SATURATED = 0.9

# These say something about now, not about the run: they end with it.
MOMENTARY = ("gpu_nearly_full", "host_memory_low")

Numbers = Mapping[str, float]


@dataclass(frozen=True)
class Alert:
    code: str
    message: str
    advice: str


@dataclass(frozen=True)
class Seen:
    """A run as far as it has come. `train` and `evaluation` by step; `plan` is empty where none was made."""

    method: str
    arguments: Mapping[str, Any]
    plan: Mapping[str, Any]
    facts: Numbers
    train: Sequence[Row]
    evaluation: Sequence[Row]

    @classmethod
    def of(cls, spec: Mapping[str, Any], train: Sequence[Row], evaluation: Sequence[Row], facts: Numbers) -> "Seen":
        arguments, plan = spec.get("arguments") or {}, spec.get("plan") or {}
        return cls(spec.get("method", "sft"), arguments, plan, facts, train, evaluation)

    @property
    def last(self) -> Numbers:
        return self.train[-1]["numbers"] if self.train else {}

    @property
    def is_past_start(self) -> bool:
        """Whether there is enough to judge a trend by."""
        return len(self.train) >= JUDGED_ROWS and self.train[-1]["step"] >= JUDGED_FROM * self.facts.get("max_steps", 0)

    @property
    def fp16_skips(self) -> int:
        return FP16_SKIPS if self.arguments.get("precision") == "fp16" else 0

    def trend(self, name: str) -> "Trend | None":
        """Of `name` from the first rows to the last; None while it is too early to say."""
        width = min(HEAD, max(5, len(self.train) // 4))
        first, last = _values(self.train[:width], name), _values(self.train[-width:], name)
        if not self.is_past_start or len(first) < 5 or len(last) < 5:
            return None
        error = (variance(first) / len(first) + variance(last) / len(last)) ** 0.5
        return Trend(fmean(first), fmean(last), error)


@dataclass(frozen=True)
class Trend:
    """Means of the first and the last rows, and the standard error of their difference."""

    first: float
    last: float
    error: float


def _values(rows: Sequence[Row], name: str) -> list[float]:
    return [row["numbers"][name] for row in rows if name in row["numbers"]]


def find(seen: Seen) -> list[Alert]:
    """The alerts that hold now. Of each group of CHECKS the first: the others would be its symptoms."""
    first = (next((alert for check in group if (alert := check(seen))), None) for group in CHECKS)
    return [alert for alert in first if alert]


def divergence(seen: Seen) -> str | None:
    """Why the run must stop now, a sentence without its full stop, or None. By the constants above:

    A loss that is not finite stops at once (with fp16 once the loss scale has had its chances), a gradient norm that is
    not the second time in a row, a loss far above the best after DIVERGED_ROWS rows in a row.
    """
    not_finite = _trailing_not_finite(seen.train)
    if not_finite > seen.fp16_skips and "loss" not in seen.last:
        return f"The loss is not a finite number at step {seen.train[-1]['step']}"
    if not_finite > seen.fp16_skips + 1:
        return f"The gradient norm was not a finite number {not_finite} times in a row"
    limit = _loss_limit(seen, before=DIVERGED_ROWS)
    losses = _values(seen.train[-DIVERGED_ROWS:], "loss")
    if limit is not None and len(losses) == DIVERGED_ROWS and min(losses) > limit:
        return (
            f"The loss stayed above {limit:.2f} for {DIVERGED_ROWS} logged steps and is {losses[-1]:.2f}: far above "
            "the best it had reached"
        )
    return None


def _trailing_not_finite(rows: Sequence[Row]) -> int:
    return sum(1 for _ in takewhile(lambda row: row["numbers"].get("not_finite"), reversed(rows[-TAIL:])))


def _loss_limit(seen: Seen, before: int) -> float | None:
    """The loss above which a run has lost what it had learned: from the best mean of LEVEL_ROWS rows in a row among the
    last TAIL, without the newest `before`. None where the loss is no measure, or too early.
    """
    losses = _values(seen.train[-TAIL - before : -before], "loss")
    if seen.method == "grpo" or len(losses) < LEVEL_ROWS:
        return None
    best = _best_level(losses, LEVEL_ROWS)
    return best + min(DIVERGED_NATS, (DIVERGED_FACTOR - 1) * best + DIVERGED_MARGIN)


def _best_level(losses: Sequence[float], rows: int) -> float:
    """The lowest mean of so many losses in a row."""
    sums = [0.0, *accumulate(losses)]
    return min(later - earlier for earlier, later in zip(sums, sums[rows:], strict=False)) / rows


def _lower_rate(seen: Seen) -> str:
    rate = seen.arguments.get("learning_rate")
    return f"lower learning_rate (from {rate:g} to {rate / 4:g})" if rate else "lower learning_rate"


def divergence_advice(seen: Seen) -> str:
    """What to do about a run that stopped itself."""
    return (
        f"Start again and {_lower_rate(seen)}, or raise warmup_ratio to 0.1; max_grad_norm=0.3 bounds single batches. "
        "If it happens at the same step, look at the rows there."
    )


# The checks, each None where all is well


def _all_labels_masked(seen: Seen) -> Alert | None:
    shares = _values(seen.train[-ZERO_ROWS:], "loss_share")
    if not shares or max(shares) > 0:
        return None
    return Alert(
        "all_labels_masked", "No token carries loss: nothing is learned.",
        'Cancel the job. Look at the mask with inspect_dataset(view="mask"); raise max_seq_length if answers are cut '
        'off, or take train_on="all".',
    )  # fmt: skip


def _not_finite(seen: Seen) -> Alert | None:
    if _trailing_not_finite(seen.train) <= seen.fp16_skips:
        return None
    return Alert(
        "not_finite", f"Loss or gradient norm is not a finite number at step {seen.train[-1]['step']}.",
        divergence_advice(seen),
    )  # fmt: skip


def _exploding(seen: Seen) -> Alert | None:
    limit, loss = _loss_limit(seen, before=1), seen.last.get("loss")
    if limit is not None and loss is not None and loss > limit:
        return Alert("exploding", f"The loss is {loss:.2f}, far above the best so far.", divergence_advice(seen))
    norms = _values(seen.train[-TAIL:], "grad_norm")
    usual, latest = norms[:-NORM_ROWS], norms[-NORM_ROWS:]
    if len(usual) >= LEVEL_ROWS and min(latest) > NORM_FACTOR * max(median(usual), ZERO_NORM):
        return Alert(
            "exploding", f"The gradient norm is {latest[-1]:.3g}, usually {median(usual):.3g}.", divergence_advice(seen)
        )
    return None


def _no_gradient(seen: Seen) -> Alert | None:
    norms = _values(seen.train[-ZERO_ROWS:], "grad_norm")
    if len(norms) < ZERO_ROWS or max(norms) > ZERO_NORM:
        return None
    advice = "Cancel the job: nothing trainable is reached. Look at target_modules and finetuning_type."
    if seen.method == "grpo":
        advice = (
            "All answers to a prompt earn the same reward, so none is preferred: raise temperature or num_generations, "
            "or take rewards that tell answers apart."
        )
    return Alert("no_gradient", f"The gradient norm was zero at the last {ZERO_ROWS} logged steps.", advice)


def _loss_low(seen: Seen) -> Alert | None:
    losses = _values(seen.train[-LEVEL_ROWS:], "loss")
    if seen.method not in LIKELIHOOD or len(losses) < LEVEL_ROWS or fmean(losses) >= LOW_LOSS:
        return None
    return Alert(
        "loss_low", f"The loss is {fmean(losses):.3f}, below {LOW_LOSS}: the model recites its training data.",
        "Wanted for a persona or fixed facts. Otherwise it overfits: fewer epochs, a lower learning_rate, "
        "lora_dropout=0.1, more weight_decay or more data; at export adapter_scale=0.5.",
    )  # fmt: skip


def _loss_not_falling(seen: Seen) -> Alert | None:
    trend = seen.trend("loss") if seen.method in LIKELIHOOD else None
    if trend is None or trend.first - trend.last > max(trend.error, LEAST_FALL * trend.first):
        return None
    best = _best_level(_values(seen.train[-TAIL:], "loss"), REBOUND_ROWS)
    if trend.last - best > REBOUND * trend.last:
        return Alert(
            "loss_not_falling", f"The loss fell to {best:.3f} and rose again to {trend.last:.3f}.",
            f"The rate is too high: {_lower_rate(seen)}, or raise warmup_ratio to 0.1.",
        )  # fmt: skip
    return Alert(
        "loss_not_falling", f"The loss has not fallen: {trend.first:.3f} at first, {trend.last:.3f} now.",
        "Raise learning_rate, lora_rank with lora_alpha, or epochs; look at the rows and their template with "
        "inspect_dataset. On text that the base model knows already a flat loss is to be expected.",
    )  # fmt: skip


def _margin_not_rising(seen: Seen) -> Alert | None:
    trend = seen.trend("margin") if seen.method in PREFERENCE else None
    if trend is None or trend.last - trend.first > trend.error:
        return None
    return Alert(
        "margin_not_rising",
        f"Chosen answers are not told from rejected ones: margin {trend.first:.3g} at first, {trend.last:.3g} now.",
        "Raise learning_rate or epochs; look whether chosen and rejected differ enough, or are swapped.",
    )


def _reward_not_rising(seen: Seen) -> Alert | None:
    trend = seen.trend("reward") if seen.method == "grpo" else None
    highest = sum(reward.get("weight", 1.0) for reward in seen.arguments.get("rewards") or [])
    if trend is None or trend.last - trend.first > trend.error or (highest and trend.last >= SATURATED * highest):
        return None
    return Alert(
        "reward_not_rising", f"The reward has not risen: {trend.first:.3g} at first, {trend.last:.3g} now.",
        "Look at reward_std: near zero, all answers earn alike, so raise num_generations or temperature or reward "
        "partial success. Otherwise raise learning_rate, or begin with an SFT adapter (continue_from).",
    )  # fmt: skip


def _eval_rising(seen: Seen) -> Alert | None:
    losses = [(row["numbers"]["loss"], row["step"]) for row in seen.evaluation if "loss" in row["numbers"]]
    if seen.method == "grpo" or len(losses) < 3:
        return None
    best, best_step = min(losses)
    if min(loss for loss, _ in losses[-2:]) <= best + EVAL_RISE * abs(best):
        return None
    return Alert(
        "eval_rising",
        f"Eval loss rises: {losses[-1][0]:.3f}, best {best:.3f} at step {best_step}. The model overfits.",
        f"Stop here: the best checkpoint is kept. Next time fewer epochs, {_lower_rate(seen)}, lora_dropout=0.1, more "
        "data, or early_stopping_patience.",
    )


def _truncation(seen: Seen) -> Alert | None:
    share = seen.facts.get("truncated_share", 0.0)
    if share <= TRUNCATED_SHARE:
        return None
    return Alert(
        "truncation", f"{share:.0%} of the training rows are longer than max_seq_length and were cut.",
        f"Raise max_seq_length (it is {seen.arguments.get('max_seq_length')}), or split the long rows.",
    )  # fmt: skip


def _gpu_nearly_full(seen: Seen) -> Alert | None:
    peak, limit = seen.last.get("peak_gib", 0.0), seen.facts.get("limit_gib", 0.0)
    if not limit or peak < FULL_SHARE * limit:
        return None
    return Alert(
        "gpu_nearly_full", f"Peak VRAM is {peak:.1f} of {limit:.1f} GiB.",
        "A longer batch may not fit; the job would then go on with a smaller one. Next time lower batch_size (and "
        'raise gradient_accumulation alike) or take gradient_checkpointing="unsloth".',
    )  # fmt: skip


def _slow(seen: Seen) -> Alert | None:
    planned, real = seen.plan.get("tokens_per_s"), _values(seen.train[-5:], "tokens_per_s")
    if not planned or not real or seen.train[-1]["step"] < WARM_STEPS or fmean(real) >= SLOW_SHARE * planned:
        return None
    return Alert(
        "slow", f"{fmean(real):,.0f} tokens/s, {fmean(real) / planned:.0%} of the {planned:,.0f} that were planned.",
        "Look whether something else uses the device or the processor (check_environment), or whether heat throttles "
        "it. The result is not affected.",
    )  # fmt: skip


def _host_memory_low(seen: Seen) -> Alert | None:
    free, total = seen.last.get("host_free_gib"), seen.facts.get("host_total_gib", 0.0)
    if free is None or free >= HOST_FREE_SHARE * total:
        return None
    return Alert(
        "host_memory_low", f"{free:.1f} of {total:.1f} GiB of host memory are free.",
        "End other programs on this machine. If the job is killed it goes on from its last checkpoint.",
    )  # fmt: skip


Check = Callable[[Seen], Alert | None]
# In a group the first that holds is the cause of those after it.
CHECKS: tuple[tuple[Check, ...], ...] = (
    (_all_labels_masked, _not_finite, _exploding, _no_gradient, _loss_low, _loss_not_falling, _margin_not_rising,
     _reward_not_rising),
    (_eval_rising,),
    (_truncation,),
    (_gpu_nearly_full,),
    (_slow,),
    (_host_memory_low,),
)  # fmt: skip
