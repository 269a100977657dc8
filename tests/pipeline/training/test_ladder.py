import pytest

from tunewright.pipeline.training import ladder
from tunewright.pipeline.training.arguments import TrainingArguments
from tunewright.pipeline.training.ladder import Arguments, next_rung

START = TrainingArguments(
    batch_size=8, gradient_accumulation=2, gradient_checkpointing="none", load_in_4bit=False
).model_dump()  # fmt: skip


def descend(arguments: Arguments, method: str = "sft", *, on_gpu: bool = True) -> list[Arguments]:
    """The arguments of every rung below, to the bottom."""
    rungs: list[Arguments] = []
    while rung := next_rung(arguments, method, on_gpu=on_gpu):
        arguments = arguments | rung[0]
        rungs.append(arguments)
    return rungs


def test_the_way_down_is_smaller_batches_then_checkpoints_then_offload_then_four_bits() -> None:
    rungs = descend(START)
    assert [rung["batch_size"] for rung in rungs] == [4, 2, 1, 1, 1, 1]
    assert [rung["gradient_checkpointing"] for rung in rungs] == ["none"] * 3 + ["plain", "unsloth", "unsloth"]
    assert [rung["load_in_4bit"] for rung in rungs] == [False] * 5 + [True]


@pytest.mark.parametrize(("batch", "accumulation"), [(8, 2), (7, 3), (1, 1), (12, 1), (3, 5)])
def test_every_rung_keeps_the_effective_batch(batch: int, accumulation: int) -> None:
    for rung in descend(START | {"batch_size": batch, "gradient_accumulation": accumulation}):
        assert rung["batch_size"] * rung["gradient_accumulation"] == batch * accumulation


def test_a_cpu_has_neither_offload_nor_four_bits() -> None:
    last = descend(START, on_gpu=False)[-1]
    assert (last["gradient_checkpointing"], last["load_in_4bit"]) == ("plain", False)


def test_kto_keeps_two_answers_to_compare() -> None:
    assert min(rung["batch_size"] for rung in descend(START, "kto")) == 2


@pytest.mark.parametrize("form", [{"finetuning_type": "full"}, {"use_loftq": True}, {"load_in_4bit": True}])
def test_only_a_lora_on_sixteen_bits_can_go_to_four(form: Arguments) -> None:
    rungs = descend(START | form)
    assert rungs[-1]["gradient_checkpointing"] == "unsloth"
    assert all(rung["load_in_4bit"] == (START | form)["load_in_4bit"] for rung in rungs)


def test_eight_bits_become_four() -> None:
    last = descend(START | {"load_in_8bit": True})[-1]
    assert last["load_in_4bit"] and not last["load_in_8bit"]


def test_each_rung_says_in_words_what_changes() -> None:
    rung = ladder.next_rung(START, "sft", on_gpu=True)
    assert rung is not None
    assert rung[1] == "micro-batch 8 → 4, accumulation 2 → 4"
