"""Which weights, checkpointing and batch are fastest within the memory: every sensible combination is estimated.

Guarantees that more memory never gives a slower choice between the same weights: the candidates do not depend on it.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tunewright.pipeline.planning import memory, speed
from tunewright.pipeline.planning.architecture import Architecture
from tunewright.pipeline.planning.machine import Machine
from tunewright.pipeline.planning.memory import Memory
from tunewright.pipeline.planning.packing import Lengths
from tunewright.pipeline.planning.recipe import Draft
from tunewright.pipeline.training.ladder import SMALLEST_BATCH

Arguments = dict[str, Any]

# Measured: 8,192 tokens a micro-batch reach 97 % of the speed of 16,384; beyond there is nothing to gain.
MICRO_BATCH_TOKENS = 16384
# Without packing the shorter rows of a batch are padded to the longest, so on a CPU long rows go one by one:
# 4,700 instead of 1,000 tokens/s on Alpaca's lengths with the toy.
CPU_MICRO_BATCH_TOKENS = 512
MAX_ROWS = 1024
GRPO_PROMPTS = 4
# Of the free host memory that offloaded hidden states may take.
OFFLOAD_SHARE = 0.5


@dataclass(frozen=True)
class Problem:
    """What is to be fitted: all of `draft` but weights, checkpointing, batch and accumulation is chosen."""

    model: Architecture
    method: str
    machine: Machine
    lengths: Lengths
    draft: Draft
    step_tokens: float
    most_step_tokens: float


@dataclass(frozen=True)
class Candidate:
    arguments: Arguments
    memory: Memory
    step_s: float
    step_tokens: float

    @property
    def s_per_token(self) -> float:
        return self.step_s / self.step_tokens


def fastest(problem: Problem, bits: int | None = None) -> Candidate | None:
    """The fastest that fits, among equals the smallest; None where nothing fits."""
    fitting = [c for c in candidates(problem, bits) if fits(problem, c)]
    return min(fitting, key=lambda c: (c.s_per_token, c.memory.peak), default=None)


def smallest(problem: Problem, bits: int | None = None) -> Candidate:
    """The one that needs least memory, whether it fits or not."""
    return min(candidates(problem, bits), key=lambda c: (c.memory.peak, c.s_per_token))


def fits(problem: Problem, candidate: Candidate) -> bool:
    if candidate.memory.needed > problem.machine.limit_gib:
        return False
    if candidate.arguments["gradient_checkpointing"] != "unsloth" or not problem.machine.is_gpu:
        return True
    return _offloaded_gib(problem, candidate) <= OFFLOAD_SHARE * problem.machine.host_free_gib


def candidates(problem: Problem, bits: int | None = None) -> Iterator[Candidate]:
    for width in [bits] if bits else weights(problem):
        for checkpointing in _checkpointing(problem):
            for batch, accumulation in _batches(problem):
                yield evaluate(
                    problem, problem.draft.arguments | {
                        "load_in_4bit": width == 4, "load_in_8bit": width == 8, "gradient_checkpointing": checkpointing,
                        "batch_size": batch, "gradient_accumulation": accumulation,
                    },
                )  # fmt: skip


def evaluate(problem: Problem, arguments: Arguments) -> Candidate:
    """What complete `arguments` take."""
    lengths, limit, there = problem.lengths, arguments["max_seq_length"], _as_filled(problem, arguments)
    batch = there["batch_size"]
    rows = batch * memory.SEQUENCES_PER_ROW.get(problem.method, 1)
    if problem.method == "grpo":
        real = computed = rows * (lengths.mean(limit) + arguments["max_completion_length"])
    elif arguments["packing"]:
        real, computed = batch * limit * lengths.packed(limit).fill, float(batch * limit)
    else:
        real, computed = rows * lengths.mean(limit), rows * lengths.padded(limit, batch)
    work = speed.Work(computed, lengths.pairs(limit))
    step_s = speed.step_s(problem.model, there, problem.method, problem.machine, work)
    estimate = memory.estimate(problem.model, there, problem.method, lengths.longest, on_gpu=problem.machine.is_gpu)
    return Candidate(arguments, estimate, step_s, real * there["gradient_accumulation"])


def _as_filled(problem: Problem, arguments: Arguments) -> Arguments:
    """The same with the batch and accumulation that so many rows fill: a step never goes over the end of an epoch."""
    if problem.method == "grpo":
        return arguments
    limit = arguments["max_seq_length"]
    rows = problem.lengths.packed(limit).rows if arguments["packing"] else problem.lengths.rows
    batch = min(arguments["batch_size"], rows)
    accumulation = min(arguments["gradient_accumulation"], math.ceil(rows / batch))
    return arguments | {"batch_size": batch, "gradient_accumulation": accumulation}


def weights(problem: Problem) -> list[int]:
    """Bits of the base's weights that may be considered, small first."""
    draft = problem.draft
    if problem.model.quantized_bits:
        return [problem.model.quantized_bits]
    if draft.arguments["load_in_8bit"]:
        return [8]
    if not problem.machine.is_gpu or draft.arguments["finetuning_type"] != "lora":
        return [16]
    if draft.is_given("load_in_4bit"):
        return [4 if draft.arguments["load_in_4bit"] else 16]
    return [4, 16]


def _checkpointing(problem: Problem) -> list[str]:
    if problem.draft.is_given("gradient_checkpointing"):
        return [problem.draft.arguments["gradient_checkpointing"]]
    # Host memory is what a CPU computes in: there is nothing to offload to.
    return ["none", "plain", "unsloth"] if problem.machine.is_gpu else ["none", "plain"]


def _batches(problem: Problem) -> list[tuple[int, int]]:
    """Pairs of batch and accumulation whose product is about the wanted step."""
    draft, arguments = problem.draft, problem.draft.arguments
    if problem.method == "grpo":
        return _grpo_batches(draft)
    row = _tokens_per_row(problem)
    wanted = max(1.0, problem.step_tokens / row)
    if draft.is_given("batch_size"):
        sizes = [arguments["batch_size"]]
    else:
        most = min(_most_rows(problem), max(1, int(problem.most_step_tokens / row)), MAX_ROWS)
        if draft.is_given("gradient_accumulation"):
            most = min(most, max(1, round(wanted / arguments["gradient_accumulation"])))
        least = SMALLEST_BATCH.get(problem.method, 1)
        sizes = [2**i for i in range(most.bit_length()) if least <= 2**i <= most] or [least]
    if draft.is_given("gradient_accumulation"):
        return [(size, arguments["gradient_accumulation"]) for size in sizes]
    return [(size, min(MAX_ROWS, max(1, round(wanted / size)))) for size in sizes]


def _tokens_per_row(problem: Problem) -> float:
    limit = problem.draft.arguments["max_seq_length"]
    if problem.draft.arguments["packing"]:
        return limit * problem.lengths.packed(limit).fill
    return problem.lengths.mean(limit)


def _most_rows(problem: Problem) -> int:
    limit = problem.draft.arguments["max_seq_length"]
    if not problem.machine.is_gpu:
        p90 = problem.lengths.sample[len(problem.lengths.sample) * 9 // 10]
        return max(1, CPU_MICRO_BATCH_TOKENS // p90)
    row = limit if problem.draft.arguments["packing"] else min(limit, problem.lengths.longest)
    return max(1, MICRO_BATCH_TOKENS // (row * memory.SEQUENCES_PER_ROW.get(problem.method, 1)))


def _grpo_batches(draft: Draft) -> list[tuple[int, int]]:
    """Of answers; TRL asks for whole groups of them in a step."""
    arguments = draft.arguments
    total = GRPO_PROMPTS * arguments["num_generations"]
    if draft.is_given("batch_size"):
        size = arguments["batch_size"]
        return [(size, arguments["gradient_accumulation"] or max(1, total // size))]
    if draft.is_given("gradient_accumulation"):
        accumulation = arguments["gradient_accumulation"]
        return [(arguments["num_generations"], accumulation)]
    return [(size, total // size) for size in range(1, total + 1) if total % size == 0]


def _offloaded_gib(problem: Problem, candidate: Candidate) -> float:
    """Hidden states of all layers, at 16 bits, in pinned host memory."""
    arguments = candidate.arguments
    row = arguments["max_seq_length"]
    if not arguments["packing"]:
        row = min(row, problem.lengths.longest)
    return arguments["batch_size"] * row * problem.model.layers * 2 * problem.model.hidden / memory.GIB
