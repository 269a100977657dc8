"""The estimate of VRAM beside measured peaks, and that every part follows what it is made of."""

from typing import Any

import pytest

from tunewright.pipeline.planning import architecture, memory
from tunewright.pipeline.planning.memory import Memory

# torch.cuda.max_memory_allocated in GiB of a step with Unsloth 2026.10.9 on one H200, r 16 on all seven layers, AdamW
# 8-bit: benchmarks/RESULTS.md, "VRAM of one training step", 2026-11-21 (raw runs).
MEASURED = [
    # model, bits, checkpointing, rows, sequence, peak GiB
    ("0.6b", 4, "unsloth", 1, 512, 1.000), ("0.6b", 4, "unsloth", 8, 2048, 1.877),
    ("0.6b", 4, "unsloth", 1, 4096, 1.133),
    ("0.6b", 4, "plain", 1, 2048, 1.098), ("0.6b", 4, "plain", 16, 2048, 4.580), ("0.6b", 4, "none", 1, 8192, 10.300),
    ("0.6b", 4, "none", 8, 2048, 19.890), ("0.6b", 16, "unsloth", 16, 2048, 3.688),
    ("0.6b", 16, "unsloth", 1, 8192, 1.911),
    ("4b", 4, "unsloth", 2, 2048, 3.634), ("4b", 4, "unsloth", 2, 8192, 5.946), ("4b", 4, "plain", 4, 2048, 5.660),
    ("4b", 4, "plain", 16, 1024, 8.481), ("4b", 4, "none", 1, 2048, 10.068), ("4b", 4, "none", 2, 4096, 30.750),
    ("4b", 16, "unsloth", 1, 512, 8.200), ("4b", 16, "unsloth", 16, 2048, 14.085), ("8b", 4, "unsloth", 2, 2048, 7.141),
    ("8b", 4, "unsloth", 16, 2048, 14.130), ("8b", 4, "plain", 1, 8192, 10.132), ("8b", 4, "plain", 8, 2048, 14.136),
    ("8b", 4, "none", 1, 2048, 14.936), ("8b", 4, "none", 4, 2048, 40.578), ("8b", 4, "none", 2, 8192, 74.483),
    ("8b", 16, "unsloth", 1, 2048, 16.242), ("8b", 16, "unsloth", 2, 8192, 19.722),
]  # fmt: skip
# The same of whole jobs over packed rows, which Unsloth does not compile: "The plan against the run", 2026-11-21.
PACKED = [
    # model, bits, checkpointing, rows, sequence, rank, peak GiB
    ("8b", 4, "none", 4, 3072, 16, 56.91), ("8b", 4, "unsloth", 4, 3072, 16, 8.28),
    ("8b", 16, "plain", 2, 4096, 16, 19.25), ("4b", 16, "none", 4, 3072, 16, 49.27),
    ("4b", 4, "unsloth", 8, 1024, 16, 4.00), ("0.6b", 16, "none", 4, 3072, 16, 15.68),
    ("0.6b", 4, "none", 16, 1024, 64, 20.31),
]  # fmt: skip
ARGUMENTS: dict[str, Any] = {
    "max_seq_length": 2048, "batch_size": 4, "gradient_accumulation": 1, "packing": True, "load_in_4bit": True,
    "load_in_8bit": False, "finetuning_type": "lora", "precision": "bf16", "lora_rank": 16,
    "target_modules": "all-linear", "use_dora": False, "lora_dropout": 0.0, "embedding_learning_rate": None,
    "optimizer": "adamw_8bit", "gradient_checkpointing": "unsloth", "trainable_layers": None,
    "max_completion_length": 256,
}  # fmt: skip


@pytest.fixture
def estimate(model_of: Any) -> Any:
    """`estimate(size, method, longest=…, **arguments)`."""

    def estimated(size: str = "8b", method: str = "sft", longest: int = 8192, **arguments: Any) -> Memory:
        return memory.estimate(architecture.of(model_of(size)), ARGUMENTS | arguments, method, longest)

    return estimated


@pytest.mark.parametrize(("size", "bits", "checkpointing", "rows", "sequence", "peak_gib"), MEASURED)
def test_the_peak_is_within_a_tenth_of_the_measured_one(
    estimate: Any, size: str, bits: int, checkpointing: str, rows: int, sequence: int, peak_gib: float
) -> None:
    found = estimate(
        size, load_in_4bit=bits == 4, gradient_checkpointing=checkpointing, batch_size=rows, max_seq_length=sequence,
        packing=False,
    )  # fmt: skip
    assert found.peak == pytest.approx(peak_gib, rel=0.1)


@pytest.mark.parametrize(("size", "bits", "checkpointing", "rows", "sequence", "rank", "peak_gib"), PACKED)
def test_over_packed_rows_the_peak_is_within_a_twentieth(
    estimate: Any, size: str, bits: int, checkpointing: str, rows: int, sequence: int, rank: int, peak_gib: float
) -> None:
    found = estimate(
        size, load_in_4bit=bits == 4, gradient_checkpointing=checkpointing, batch_size=rows, max_seq_length=sequence,
        lora_rank=rank,
    )  # fmt: skip
    assert found.peak == pytest.approx(peak_gib, rel=0.05)


def test_what_unsloth_does_not_run_takes_no_less_over_packed_rows(estimate: Any) -> None:
    for more in ({"use_dora": True}, {"lora_dropout": 0.1}):
        assert estimate(packing=True, **more).peak == estimate(packing=False, **more).peak
    assert estimate(packing=True).peak < estimate(packing=False).peak


def test_over_all_measured_runs_the_mean_error_is_below_three_percent(estimate: Any) -> None:
    errors = [
        estimate(
            size, load_in_4bit=bits == 4, gradient_checkpointing=kind, batch_size=rows, max_seq_length=length,
            packing=False,
        ).peak / peak - 1
        for size, bits, kind, rows, length, peak in MEASURED
    ]  # fmt: skip
    assert sum(map(abs, errors)) / len(errors) < 0.03


def test_the_parts_add_up_to_the_peak(estimate: Any) -> None:
    found = estimate()
    assert sum(vars(found).values()) == pytest.approx(found.peak)
    assert sum(found.by_part().values()) == pytest.approx(found.peak, abs=0.04)
    assert found.needed > found.peak > found.resident > found.weights


def test_8_bit_weights_lie_between_4_and_16(estimate: Any) -> None:
    four, eight, sixteen = (
        estimate(load_in_4bit=False, load_in_8bit=True) if bits == 8 else estimate(load_in_4bit=bits == 4)
        for bits in (4, 8, 16)
    )
    assert four.weights < eight.weights < sixteen.weights
    assert eight.weights == pytest.approx(8.79, abs=0.1)  # 6.95e9 × 1 byte + 1.24e9 × 2 bytes


def test_unpacked_rows_are_no_longer_than_the_longest(estimate: Any) -> None:
    assert estimate(packing=False, longest=100).activations < 0.1 * estimate(packing=False, longest=2048).activations
    assert estimate(packing=True, longest=100).activations == estimate(packing=True, longest=2048).activations


def test_a_full_fine_tune_holds_gradients_and_moments_of_every_weight(estimate: Any) -> None:
    full = estimate(finetuning_type="full", load_in_4bit=False)
    parameters = 8.19e9
    assert full.weights == pytest.approx(2 * parameters / 2**30, rel=0.01)
    # bf16 gradients and two 8-bit moments; the embeddings' moments stay at 32 bits.
    assert full.optimizer == pytest.approx((4 * parameters + 6 * 151936 * 4096) / 2**30, rel=0.01)
    freeze = estimate(finetuning_type="freeze", load_in_4bit=False, trainable_layers=2)
    assert freeze.optimizer < 0.1 * full.optimizer
    assert freeze.activations < estimate(load_in_4bit=False, gradient_checkpointing="none").activations


def test_an_fp16_card_needs_wide_weights_for_a_full_fine_tune(estimate: Any) -> None:
    narrow = estimate("0.6b", finetuning_type="full", load_in_4bit=False)
    wide = estimate("0.6b", finetuning_type="full", load_in_4bit=False, precision="fp16")
    assert wide.weights == pytest.approx(2 * narrow.weights)


def test_trained_embeddings_are_a_copy_with_gradient_and_moments(estimate: Any) -> None:
    added = estimate(embedding_learning_rate=1e-5).resident - estimate().resident
    assert added == pytest.approx(2 * 151936 * 4096 * (4 + 4 + 8) / 2**30, rel=0.01)


@pytest.mark.parametrize("method", ["dpo", "orpo", "kto"])
def test_preferences_hold_two_answers_and_their_logits(estimate: Any, method: str) -> None:
    pairs, single = estimate(method=method, packing=False), estimate(packing=False)
    assert pairs.activations == pytest.approx(2 * single.activations)
    assert pairs.logits > 8 * single.logits


def test_grpo_holds_the_keys_and_values_of_what_it_generates(estimate: Any) -> None:
    short = estimate(method="grpo", packing=False, max_completion_length=32)
    long = estimate(method="grpo", packing=False, max_completion_length=4128)
    per_token = 36 * 2 * 2 * 8 * 128
    assert long.peak - short.peak == pytest.approx(4 * 4096 * per_token / 2**30, rel=0.01)


@pytest.mark.parametrize(
    ("more", "part"),
    [
        ({"lora_rank": 64}, "adapter"), ({"use_dora": True}, "activations"), ({"lora_dropout": 0.1}, "activations"),
        ({"optimizer": "adamw_torch"}, "optimizer"), ({"batch_size": 8}, "activations"),
        ({"gradient_checkpointing": "plain"}, "activations"), ({"gradient_checkpointing": "none"}, "activations"),
    ],
)  # fmt: skip
def test_what_costs_more_shows_where(estimate: Any, more: dict[str, Any], part: str) -> None:
    assert getattr(estimate(**more), part) > getattr(estimate(), part)


def test_paged_optimizers_leave_the_moments_to_the_host(estimate: Any) -> None:
    paged = estimate(finetuning_type="full", load_in_4bit=False, optimizer="paged_adamw_32bit")
    assert paged.peak < estimate(finetuning_type="full", load_in_4bit=False).peak


def test_a_cpu_computes_in_four_bytes(model_of: Any) -> None:
    model = architecture.of(model_of("0.6b"))
    arguments = ARGUMENTS | {"load_in_4bit": False, "precision": "fp32", "optimizer": "adamw_torch"}
    on_cpu = memory.estimate(model, arguments, "sft", 2048, on_gpu=False)
    on_gpu = memory.estimate(model, arguments | {"precision": "bf16"}, "sft", 2048)
    assert on_cpu.weights == pytest.approx(2 * on_gpu.weights)
    assert on_cpu.activations == pytest.approx(2 * on_gpu.activations)


def test_a_gpu_that_is_asked_for_32_bits_takes_them(model_of: Any) -> None:
    model, arguments = architecture.of(model_of("0.6b")), ARGUMENTS | {"load_in_4bit": False}
    wide, narrow = (
        memory.estimate(model, arguments | {"precision": precision}, "sft", 2048) for precision in ("fp32", "fp16")
    )
    assert wide.weights == pytest.approx(2 * narrow.weights)
    assert wide.activations == pytest.approx(2 * narrow.activations)
