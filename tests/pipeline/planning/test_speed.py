"""Arithmetic against the formulas of the field, and time against runs that were measured."""

from typing import Any

import pytest

from tunewright.pipeline.planning import architecture, speed
from tunewright.pipeline.planning.speed import Work

ARGUMENTS: dict[str, Any] = {
    "packing": True, "load_in_4bit": True, "load_in_8bit": False, "finetuning_type": "lora", "precision": "bf16",
    "lora_rank": 16, "target_modules": "all-linear", "use_dora": False, "lora_dropout": 0.0,
    "embedding_learning_rate": None, "gradient_checkpointing": "none", "gradient_accumulation": 1,
    "trainable_layers": None, "max_completion_length": 256, "batch_size": 8, "max_seq_length": 2048,
}  # fmt: skip
# Seconds of an optimizer step on H200s through the job's own trainer, Unsloth 2026.10.9, torch 2.11, log-normal lengths
# (mean 680 tokens): benchmarks/RESULTS.md, 2026-11-21. The first nine are what the constants were fitted to (the last
# two of them Unsloth's notebook defaults); the rest are other machines, to which nothing was fitted.
UNPACKED = {"packing": False, "gradient_checkpointing": "unsloth"}
PLAIN = {"load_in_4bit": False, "gradient_checkpointing": "plain"}
MEASURED = [
    # size, arguments, tokens of a micro-batch, seconds
    ("8b", {}, 12256, 0.838),
    ("8b", {"gradient_checkpointing": "unsloth"}, 12256, 1.172),
    ("4b", {"load_in_4bit": False}, 12256, 0.533),
    ("0.6b", {"load_in_4bit": False}, 12256, 0.190),
    ("4b", {"gradient_checkpointing": "unsloth"}, 8140, 0.525),
    ("0.6b", {"lora_rank": 64}, 16280, 0.254),
    ("0.6b", {"packing": False}, 13000, 0.246),
    ("8b", UNPACKED | {"gradient_accumulation": 4}, 1500, 1.367),
    ("8b", UNPACKED, 1500, 0.330),
    ("8b", {}, 12280, 0.807),
    ("8b", {"gradient_checkpointing": "unsloth"}, 12280, 1.129),
    ("4b", {"load_in_4bit": False}, 12280, 0.511),
    ("0.6b", {"load_in_4bit": False}, 12280, 0.161),
    ("4b", {"gradient_checkpointing": "unsloth"}, 8150, 0.452),
    ("0.6b", {"lora_rank": 64}, 16290, 0.191),
    ("0.6b", {"packing": False}, 13000, 0.208),
    ("4b", PLAIN | {"packing": False, "gradient_accumulation": 2}, 5000, 0.796),
    ("8b", PLAIN, 8180, 0.760),
    ("0.6b", {"packing": False}, 13000, 0.271),
    ("4b", {"gradient_checkpointing": "plain"}, 16340, 0.912),
    ("0.6b", {"load_in_4bit": False, "gradient_checkpointing": "unsloth", "lora_rank": 32}, 16290, 0.254),
]


@pytest.mark.parametrize(("size", "changes", "tokens", "measured_s"), MEASURED)
def test_a_step_takes_within_a_fifth_of_the_measured_time(
    model_of: Any,
    machine_of: Any,
    size: str,
    changes: dict[str, Any],
    tokens: float,
    measured_s: float,
) -> None:
    arguments = ARGUMENTS | changes
    seconds = speed.step_s(architecture.of(model_of(size)), arguments, "sft", machine_of(), Work(tokens, 560))
    assert seconds == pytest.approx(measured_s, rel=0.2)


def test_lora_takes_four_flops_a_weight_and_full_fine_tuning_six(model_of: Any) -> None:
    model = architecture.of(model_of("8b"))
    weights = 7.57e9
    lora = speed.flops_per_token(model, ARGUMENTS, "sft", 0)
    full = speed.flops_per_token(model, ARGUMENTS | {"finetuning_type": "full"}, "sft", 0)
    again = speed.flops_per_token(model, ARGUMENTS | {"gradient_checkpointing": "plain"}, "sft", 0)
    assert lora == pytest.approx(4 * weights, rel=0.001)
    assert full == pytest.approx(6 * weights, rel=0.001)
    assert again - lora == pytest.approx(2 * model.linear)


def test_longer_rows_add_attention(model_of: Any) -> None:
    model = architecture.of(model_of("8b"))
    added = speed.flops_per_token(model, ARGUMENTS, "sft", 1000) - speed.flops_per_token(model, ARGUMENTS, "sft", 0)
    assert added == 3 * 1000 * 4 * 36 * 32 * 128


def test_a_reference_and_frozen_layers_change_the_arithmetic(model_of: Any) -> None:
    model = architecture.of(model_of("8b"))
    sft = speed.flops_per_token(model, ARGUMENTS, "sft", 0)
    assert speed.flops_per_token(model, ARGUMENTS, "kto", 0) == pytest.approx(1.5 * sft)
    assert speed.flops_per_token(model, ARGUMENTS, "dpo", 0) == sft, "its reference has read the rows before"
    freeze = ARGUMENTS | {"finetuning_type": "freeze", "trainable_layers": 2}
    assert speed.flops_per_token(model, freeze, "sft", 0) < 0.65 * sft


def test_small_micro_batches_wait_for_the_host(model_of: Any, machine_of: Any) -> None:
    model, machine = architecture.of(model_of("0.6b")), machine_of()
    small = speed.micro_batch_s(model, ARGUMENTS, "sft", machine, Work(256, 100))
    assert speed.micro_batch_s(model, ARGUMENTS, "sft", machine, Work(512, 100)) == small


def test_a_faster_card_is_faster_and_an_unknown_one_is_said_to_be_unknown(model_of: Any, machine_of: Any) -> None:
    model, work = architecture.of(model_of("8b")), Work(8192, 500)
    names = ("Tesla T4", "NVIDIA GeForce RTX 4090", "NVIDIA A100-SXM4-80GB", "NVIDIA H200")
    times = [speed.micro_batch_s(model, ARGUMENTS, "sft", machine_of(name=name), work) for name in names]
    assert times == sorted(times, reverse=True) and len(set(times)) == 4
    assert all(speed.card(machine_of(name=name))[2] for name in names)
    flops, _, is_known = speed.card(machine_of(name="NVIDIA Z900", capability=(12, 0)))
    assert not is_known and flops > 0


@pytest.mark.parametrize(
    ("name", "listed"),
    [
        ("NVIDIA RTX A4000", "RTX A4000"), ("NVIDIA A10G", "A10G"), ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA GH200 480GB", "H200"), ("Tesla V100-SXM2-16GB", "V100"), ("NVIDIA L40S", "L40S"),
        ("NVIDIA GeForce GTX 1650", "GTX 1650"), ("NVIDIA T400 4GB", None), ("NVIDIA RTX A3000 Laptop GPU", None),
    ],
)  # fmt: skip
def test_a_card_is_known_by_its_whole_name(machine_of: Any, name: str, listed: str | None) -> None:
    flops, _, is_known = speed.card(machine_of(name=name, capability=(8, 6)))
    assert is_known is (listed is not None)
    assert not listed or flops == next(tflops for entry, tflops, _ in speed.CARDS if entry == listed) * 1e12


def test_grpo_takes_the_time_of_its_answers(model_of: Any, machine_of: Any) -> None:
    model, work = architecture.of(model_of("8b")), Work(8192, 500)
    short, long = (
        speed.step_s(model, ARGUMENTS | {"max_completion_length": tokens}, "grpo", machine_of(), work)
        for tokens in (64, 640)
    )
    assert long > short + 1


def test_a_cpu_is_slow(model_of: Any, a_cpu: Any) -> None:
    model = architecture.of(model_of("0.6b"))
    assert 2048 / speed.micro_batch_s(model, ARGUMENTS, "sft", a_cpu, Work(2048, 500)) < 100
