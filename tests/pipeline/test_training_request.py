from collections import namedtuple
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError

from tunewright.pipeline import files, gpu
from tunewright.pipeline.errors import InvalidInput, NoSpace, NotFound
from tunewright.pipeline.training import request
from tunewright.pipeline.training.arguments import TARGET_MODULES, TrainingArguments
from tunewright.pipeline.workspace import Workspace

Usage = namedtuple("Usage", "total used free")
Check = Callable[..., dict[str, Any]]
DATASET, ADAPTER = "ds-identity-0001", "ad-identity-0001"


@pytest.fixture
def check(workspace: Workspace) -> Check:
    """`check(**arguments)`: the spec of a fine-tune of the toy on a dataset whose longest row has 100 tokens."""
    workspace.store.add_artifact(DATASET, "dataset", "identity", {"tokens": {"p90": 60, "max": 100}}, parents=[])

    def checked(
        model: str = "toy", method: str = "sft", continue_from: str | None = None, **arguments: Any
    ) -> dict[str, Any]:
        return request.check(workspace, "ds-id", model, method, TrainingArguments(**arguments), continue_from)

    return checked


def test_everything_is_chosen_for_a_cpu(check: Check) -> None:
    spec = check()
    assert (spec["dataset_id"], spec["model"], spec["name"]) == (DATASET, "toy", "identity")
    assert spec["continue_from"] is None
    arguments = spec["arguments"]
    assert arguments["load_in_4bit"] is False and arguments["packing"] is False
    assert (arguments["batch_size"], arguments["gradient_accumulation"]) == (8, 1)
    assert arguments["lora_alpha"] == 2 * arguments["lora_rank"] == 32
    assert arguments["target_modules"] == TARGET_MODULES
    assert arguments["max_seq_length"] == 256


@pytest.mark.parametrize(("p90", "batch_size"), [(20, 8), (128, 4), (300, 1), (4000, 1)])
def test_long_rows_go_through_a_cpu_in_small_batches(
    workspace: Workspace, check: Check, p90: int, batch_size: int
) -> None:
    workspace.store.execute(f"UPDATE artifacts SET document=json_set(document, '$.tokens.p90', {p90})")
    arguments = check()["arguments"]
    assert (arguments["batch_size"], arguments["gradient_accumulation"]) == (batch_size, 8 // batch_size)


def test_a_gpu_trains_in_four_bits_and_packed(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "indexes", lambda: [0])
    arguments = check()["arguments"]
    assert arguments["load_in_4bit"] is True and arguments["packing"] is True
    assert arguments["batch_size"] * arguments["gradient_accumulation"] == 8
    arguments = check(load_in_4bit=False, packing=False, batch_size=3)["arguments"]
    assert arguments["load_in_4bit"] is False and arguments["packing"] is False
    assert (arguments["batch_size"], arguments["gradient_accumulation"]) == (3, 2)


def test_what_is_asked_for_is_not_changed(check: Check) -> None:
    asked = {
        "lora_rank": 8, "lora_alpha": 8, "target_modules": ["q_proj"], "batch_size": 1, "gradient_accumulation": 3,
        "max_seq_length": 96, "learning_rate": 1e-5, "max_steps": 7, "seed": 0, "name": "mine",
    }  # fmt: skip
    spec = check(**asked)
    assert {key: spec["arguments"][key] for key in asked} == asked
    assert spec["name"] == "mine"


@pytest.mark.parametrize(
    ("longest", "chosen"), [(10, 256), (170, 256), (171, 320), (1000, 1536), (1500, 2048), (10**6, 2048)]
)
def test_the_sequence_length_is_the_data_and_a_half(
    workspace: Workspace, check: Check, longest: int, chosen: int
) -> None:
    workspace.store.execute(f"UPDATE artifacts SET document=json_set(document, '$.tokens.max', {longest})")
    assert check()["arguments"]["max_seq_length"] == chosen


def test_four_bits_without_a_gpu_are_refused(check: Check) -> None:
    with pytest.raises(InvalidInput, match=r"four_bit_needs_gpu: load_in_4bit=true, .*load_in_4bit=false"):
        check(load_in_4bit=True)


def test_packing_without_a_gpu_is_refused(check: Check) -> None:
    with pytest.raises(InvalidInput, match="packing_needs_gpu: packing=true"):
        check(packing=True)


def test_a_sequence_beyond_the_models_context_is_refused_with_the_bound(check: Check) -> None:
    assert check(max_seq_length=2048)["arguments"]["max_seq_length"] == 2048
    with pytest.raises(InvalidInput, match=r"sequence_too_long: max_seq_length=2049, .*32 to 2048\."):
        check(max_seq_length=2049)


def test_an_unknown_method_names_the_known_ones(check: Check) -> None:
    with pytest.raises(InvalidInput, match=r"unknown_method: method='dpo'.*Supported: sft\..*method=\"sft\""):
        check(method="dpo")


def test_an_unknown_dataset_is_refused(workspace: Workspace) -> None:
    with pytest.raises(NotFound, match="artifact_not_found"):
        request.check(workspace, "ds-none", "toy", "sft", TrainingArguments(), None)


def add_adapter(workspace: Workspace, base_model: str) -> None:
    training = {"lora_rank": 4, "lora_alpha": 5, "target_modules": ["v_proj"], "learning_rate": 0.01}
    document = {"base_model": base_model, "training": training}
    workspace.store.add_artifact(ADAPTER, "adapter", "identity", document, parents=[DATASET])


def test_an_adapter_goes_on_in_its_own_shape(workspace: Workspace, check: Check) -> None:
    add_adapter(workspace, "toy")
    spec = check(continue_from="ad-id", lora_rank=64, learning_rate=0.001)
    assert spec["continue_from"] == ADAPTER
    shape = [spec["arguments"][key] for key in ("lora_rank", "lora_alpha", "target_modules", "learning_rate")]
    assert shape == [4, 5, ["v_proj"], 0.001]


def test_an_adapter_of_another_base_is_refused_with_the_right_one(workspace: Workspace, check: Check) -> None:
    add_adapter(workspace, "unsloth/Qwen3-8B")
    with pytest.raises(InvalidInput) as caught:
        check(continue_from=ADAPTER)
    assert caught.value.code == "adapter_of_another_base"
    assert 'model="unsloth/Qwen3-8B"' in caught.value.next and f'continue_from="{ADAPTER}"' in caught.value.next


def test_a_dataset_is_no_adapter_to_go_on_from(check: Check) -> None:
    with pytest.raises(InvalidInput, match="wrong_kind"):
        check(continue_from=DATASET)


def test_a_disk_too_small_for_the_checkpoints_is_refused(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: Usage(10**12, 0, 150_000_000))
    check(lora_rank=4)
    with pytest.raises(NoSpace, match=r"Training's checkpoints needs? .* 0\.15 GB are free"):
        check(lora_rank=512)


@pytest.mark.parametrize(
    "arguments",
    [{"epochs": 0}, {"learning_rate": 1}, {"lora_rank": 0}, {"max_seq_length": 31}, {"lr": 1e-4}, {"warmup_ratio": 1}],
)
def test_arguments_out_of_bounds_or_unknown_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        TrainingArguments(**arguments)
