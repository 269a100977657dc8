"""The plan of a fine-tune: every argument chosen around those that the caller gave, with its memory, time and reasons.

Guarantees: what the caller gave stays; the estimated peak stays within the machine's limit unless what the caller gave
rules that out (then a warning says so, and the run itself lowers what it must); otherwise choosing is refused.
"""

import math
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from tunewright.pipeline import models
from tunewright.pipeline.errors import InvalidInput
from tunewright.pipeline.planning import architecture, fitting, packing, recipe, refusals, sequence, speed
from tunewright.pipeline.planning.fitting import Candidate, Problem
from tunewright.pipeline.planning.machine import Machine
from tunewright.pipeline.planning.recipe import Draft, recommended_method
from tunewright.pipeline.store import Row
from tunewright.pipeline.training.arguments import Goal, TrainingArguments

__all__ = ["Plan", "alternatives", "choose", "recommended_method"]

# 16-bit weights cost nothing where they take no more than this share of the limit beyond 4-bit ones.
NEGLIGIBLE_SHARE = 0.05
EVALUATIONS = 10  # an evaluation each tenth of the run
FORWARD_SHARE = 1 / 3
SLOW_S = 24 * 3600
# An alternative is worth showing if it saves this much.
WORTH = 0.85
TRIAL_STEPS = 50
# Below it the start, which the time leaves out, is worth a word.
SHORT_S = 600


@dataclass(frozen=True)
class Plan:
    """`arguments` are complete. Times are of training and its evaluations, without loading; tokens are real ones."""

    arguments: dict[str, Any]
    vram_gib: dict[str, float]
    peak_gib: float
    limit_gib: float
    steps: int
    tokens_per_step: int
    train_tokens: int
    tokens_per_s: float
    time_s: float
    reasons: dict[str, str]
    warnings: list[str]


def choose(
    base: models.Model, dataset: Row, method: str, given: TrainingArguments, machine: Machine, goal: Goal
) -> Plan:
    """For arguments that go together (`training/request.py` sees to that). Raises InvalidInput, also `does_not_fit`."""
    model, document = architecture.of(base), dataset["document"]
    refusals.check(base, model, given, machine)
    draft = Draft.of(given)
    rows = int(document.get("train_rows") or document["tokens"].get("counted_rows") or 1)
    eval_rows = int(document.get("eval_rows") or 0)
    recipe.device(draft, machine)
    recipe.learn(draft, model, rows, eval_rows, method, goal)
    sequence.pack(draft, model, method, machine)
    lengths = packing.lengths(document["tokens"], rows)
    wanted = recipe.step_tokens(draft, rows, lengths.mean(model.context), machine, goal)
    problem = Problem(model, method, machine, lengths, draft, *wanted)
    problem, candidate = _fit(base, dataset, problem, goal)
    _explain(problem, candidate, goal)
    return _plan(problem, candidate, eval_rows)


def _fit(base: models.Model, dataset: Row, problem: Problem, goal: Goal) -> tuple[Problem, Candidate]:
    """The longest sequence of those that the data asks for with which something fits, and the fastest way to run it;
    the problem is then that of rows of this length.
    """
    draft, lengths = problem.draft, problem.lengths
    options = sequence.options(draft, problem.model, problem.method, lengths, problem.step_tokens)
    answers = sequence.answer_tokens(draft, problem.method)
    enough = max(options[-1], min(options[0], sequence.needed(problem.model, lengths, answers)))
    for length in options:
        draft.arguments["max_seq_length"] = length
        if problem.method == "cpt":
            problem = replace(problem, lengths=lengths.divided(length))
        candidate = _best(problem, goal)
        if candidate is None and length <= enough and refusals.can_lower(problem):
            # Rather lower what was asked for, when memory runs out, than cut the data.
            candidate = fitting.smallest(problem)
            draft.warnings.append(
                f"As asked it needs about {candidate.memory.needed:.1f} GiB of {problem.machine.limit_gib:g}: when "
                "memory runs out the run lowers the micro-batch at the same effective batch, then checkpoints and "
                "offloads, then loads in 4 bits."
            )
        if candidate:
            sequence.explain(draft, problem.method, lengths, length, options)
            return problem, candidate
    raise refusals.does_not_fit(base, dataset, problem)


def _best(problem: Problem, goal: Goal) -> Candidate | None:
    """4-bit or 16-bit weights by the goal, then the fastest."""
    small = fitting.fastest(problem)
    if small is None or len(fitting.weights(problem)) == 1:
        return small
    quantized, exact = fitting.fastest(problem, 4), fitting.fastest(problem, 16)
    if exact is None or quantized is None:
        return exact or quantized
    if goal == "quality":
        return exact
    saved = exact.memory.weights - quantized.memory.weights
    is_negligible = goal == "fast" or saved <= NEGLIGIBLE_SHARE * problem.machine.limit_gib
    return exact if is_negligible and exact.s_per_token <= quantized.s_per_token else quantized


def _explain(problem: Problem, candidate: Candidate, goal: Goal) -> None:
    draft, chosen, machine = problem.draft, candidate.arguments, problem.machine
    if draft.arguments["finetuning_type"] == "lora" and not draft.is_given("load_in_4bit"):
        draft.reasons["load_in_4bit"] = _why_weights(problem, candidate, goal)
    peak = f"{candidate.memory.peak:.1f} GiB at the peak of {machine.limit_gib:g}"
    if not draft.is_given("gradient_checkpointing"):
        draft.reasons["gradient_checkpointing"] = {
            "none": f"activations fit ({peak}), and computing nothing twice is about 1.3 × as fast",
            "plain": f"without it activations would not fit ({peak}); one state of each layer does",
            "unsloth": f"hidden states go to host memory, or they would not fit ({peak})",
        }[chosen["gradient_checkpointing"]]  # fmt: skip
    if not draft.is_given("batch_size"):
        draft.reasons["batch_size"] = (
            f"{chosen['batch_size']} × {chosen['max_seq_length']:,} tokens a micro-batch; beyond "
            f"{fitting.MICRO_BATCH_TOKENS:,} nothing is gained" if machine.is_gpu and chosen["packing"]
            else f"{chosen['batch_size']} at a time: padding to the longest costs a CPU more than small batches do"
            if not machine.is_gpu
            else f"{chosen['batch_size']} rows a micro-batch"
        )  # fmt: skip


def _why_weights(problem: Problem, candidate: Candidate, goal: Goal) -> str:
    if not problem.machine.is_gpu:
        return "16-bit LoRA: 4-bit weights need a GPU"
    if problem.model.quantized_bits:
        return f"the model's files hold {problem.model.quantized_bits}-bit weights"
    weights = candidate.memory.weights
    if not candidate.arguments["load_in_4bit"]:
        extra = {
            "quality": "the base stays exact", "fast": "nothing to dequantize at each pass",
            "balanced": "so small a model costs next to nothing more",
        }[goal]  # fmt: skip
        return f"16-bit LoRA: the weights take {weights:.1f} GiB, which is there, and {extra}"
    exact = fitting.fastest(problem, 16)
    if exact is None:
        return f"QLoRA: 4-bit weights take {weights:.1f} GiB; 16-bit ones would not fit"
    return (
        f"QLoRA: 4-bit weights take {weights:.1f} GiB instead of {exact.memory.weights:.1f}; "
        "16-bit LoRA fits too and is a little more exact (goal quality)"
    )


def _plan(problem: Problem, candidate: Candidate, eval_rows: int) -> Plan:
    draft, machine, lengths = problem.draft, problem.machine, problem.lengths
    chosen = candidate.arguments
    limit, effective = chosen["max_seq_length"], chosen["batch_size"] * chosen["gradient_accumulation"]
    rows = lengths.packed(limit).rows if chosen["packing"] else lengths.rows
    if problem.method == "grpo":
        rows *= chosen["num_generations"]
    steps = chosen["max_steps"] or max(1, math.ceil(math.ceil(rows / effective) * chosen["epochs"]))
    recipe.warm_up(draft, steps)
    chosen = chosen | {"warmup_ratio": draft.arguments["warmup_ratio"]}
    training_s = steps * candidate.step_s
    evaluation_s = EVALUATIONS * eval_rows * lengths.mean(limit) * candidate.s_per_token * FORWARD_SHARE
    if machine.is_gpu and not speed.card(machine)[2]:
        draft.warnings.append(f"{machine.name} is not in the table of cards: the time is a rough guess.")
    if training_s > SLOW_S:
        draft.warnings.append(f"About {training_s / 3600:.0f} hours: take a smaller model, fewer rows or max_steps.")
    if training_s + evaluation_s < SHORT_S:
        draft.reasons["time_s"] = "training and evaluating; starting and loading the model take 20 to 60 s more"
    return Plan(
        arguments=TrainingArguments(**chosen).model_dump(),
        vram_gib=candidate.memory.by_part(),
        peak_gib=round(candidate.memory.peak, 2),
        limit_gib=machine.limit_gib,
        steps=steps,
        tokens_per_step=round(candidate.step_tokens),
        train_tokens=round(steps * candidate.step_tokens),
        tokens_per_s=round(1 / candidate.s_per_token, 1),
        time_s=round(training_s + evaluation_s, 1),
        reasons=draft.reasons,
        warnings=draft.warnings,
    )


def alternatives(
    base: models.Model, dataset: Row, method: str, given: TrainingArguments, machine: Machine, goal: Goal, chosen: Plan
) -> list[tuple[str, Plan]]:
    """Two other plans, each with a sentence that says what it gives and costs beside `chosen`."""
    found: list[tuple[str, Plan]] = []

    def consider(goal: Goal = goal, machine: Machine = machine, **changes: Any) -> Plan | None:
        with suppress(InvalidInput):
            plan = choose(base, dataset, method, _changed(given, changes), machine, goal)
            known = [chosen.arguments, *(other.arguments for _, other in found)]
            is_new = len(found) < 2 and plan.arguments not in known
            return plan if is_new and plan.peak_gib <= max(plan.limit_gib, chosen.peak_gib) else None
        return None

    is_quantized = chosen.arguments["load_in_4bit"]
    if goal != "fast" and (plan := consider("fast")) and plan.time_s < WORTH * chosen.time_s:
        found.append((f"Faster: {_beside(plan, chosen)}, with fewer passes or larger steps.", plan))
    if is_quantized and given.load_in_4bit is None and (plan := consider(load_in_4bit=False)):
        found.append((f"More exact: 16-bit LoRA; {_beside(plan, chosen)}.", plan))
    if goal != "quality" and (plan := consider("quality")):
        found.append((f"More thorough: {_beside(plan, chosen)}, with a higher rank and a gentler rate.", plan))
    tight = replace(machine, limit_gib=round(WORTH * chosen.peak_gib, 2))
    if (plan := consider(machine=tight)) and plan.peak_gib < WORTH * chosen.peak_gib:
        found.append((f"Smaller: {_beside(plan, chosen)}.", replace(plan, limit_gib=machine.limit_gib)))
    # These two always differ.
    steps = TRIAL_STEPS if chosen.steps > TRIAL_STEPS else max(1, chosen.steps // 2) if chosen.steps > 1 else 2
    # With steps as large as planned: where few rows made them small, a trial would else take longer than the run.
    same = {name: chosen.arguments[name] for name in ("batch_size", "gradient_accumulation", "max_seq_length")}
    if plan := consider(max_steps=steps, **same):
        found.append((f"A trial of {steps} steps, to see the loss fall: {_beside(plan, chosen)}.", plan))
    if plan := consider(learning_rate=chosen.arguments["learning_rate"] / 2):
        found.append(
            (f"Gentler: half the learning rate, for data that is learnt by heart; {_beside(plan, chosen)}.", plan)
        )
    return found[:2]


def _changed(given: TrainingArguments, changes: dict[str, Any]) -> TrainingArguments:
    return TrainingArguments(**(given.model_dump(exclude_unset=True) | changes))


def _beside(plan: Plan, chosen: Plan) -> str:
    memory = f"{plan.peak_gib:g} instead of {chosen.peak_gib:g} GiB"
    if plan.peak_gib == chosen.peak_gib:
        memory = "in as much memory"
    return f"about {duration(plan.time_s)} instead of {duration(chosen.time_s)}, {memory}"


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3.4 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
