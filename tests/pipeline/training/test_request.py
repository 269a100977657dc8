from collections import namedtuple
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError

from tunewright.pipeline import files, gpu
from tunewright.pipeline.errors import InvalidInput, NoSpace, NotFound, Unavailable
from tunewright.pipeline.planning import machine
from tunewright.pipeline.training import request
from tunewright.pipeline.training.arguments import METHODS, TARGET_MODULES, Goal, TrainingArguments
from tunewright.pipeline.workspace import Workspace

Usage = namedtuple("Usage", "total used free")
Check = Callable[..., dict[str, Any]]
DATASET, ADAPTER = "ds-identity-0001", "ad-identity-0001"
HISTOGRAM = [
    {"from": 32, "to": 48, "rows": 40},
    {"from": 48, "to": 64, "rows": 50},
    {"from": 96, "to": 128, "rows": 10},
]
TOKENS = {
    "p50": 50, "p90": 60, "p95": 100, "p99": 100, "max": 100, "mean": 52.0, "total": 5200, "counted_rows": 100,
    "histogram": HISTOGRAM, "estimated": False, "sampled": False,
}  # fmt: skip
DOCUMENT = {"tokens": TOKENS, "train_rows": 100, "eval_rows": 0, "format": "alpaca"}
GOALS: tuple[Goal, Goal] = ("fast", "quality")


def add_dataset(workspace: Workspace) -> None:
    folder = workspace.home.datasets / DATASET
    folder.mkdir()
    (folder / "train.parquet").touch()
    document = {**DOCUMENT, "path": str(folder), "source": "identity.json"}
    workspace.store.add_artifact(DATASET, "dataset", "identity", document, parents=[])


@pytest.fixture
def check(workspace: Workspace) -> Check:
    """`check(**arguments)`: the spec of a fine-tune of the toy on a dataset whose longest row has 100 tokens."""
    add_dataset(workspace)

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
    assert (arguments["precision"], arguments["optimizer"]) == ("fp32", "adamw_torch")
    assert arguments["lora_alpha"] == 2 * arguments["lora_rank"]
    assert arguments["target_modules"] == TARGET_MODULES
    assert set(spec["plan"]) == {"peak_gib", "tokens_per_s", "time_s", "steps"}
    assert all(value > 0 for value in spec["plan"].values())


def test_a_dataset_whose_files_are_gone_is_refused(check: Check, workspace: Workspace) -> None:
    (workspace.home.datasets / DATASET / "train.parquet").unlink()
    with pytest.raises(NotFound, match="dataset_files_missing"):
        check()


def test_a_gpu_trains_packed_with_an_eight_bit_optimizer(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    card = gpu.Gpu(0, "NVIDIA L4", 22.0, 22.0, (8, 9), "580")
    monkeypatch.setattr(gpu, "find", lambda: [card])
    monkeypatch.setattr(machine, "_held_by_tunewright", lambda: {})
    arguments = check()["arguments"]
    assert arguments["packing"] is True
    assert (arguments["precision"], arguments["optimizer"]) == ("bf16", "adamw_8bit")
    arguments = check(load_in_4bit=False, packing=False, batch_size=3)["arguments"]
    assert arguments["load_in_4bit"] is False and arguments["packing"] is False
    assert arguments["batch_size"] == 3


def test_what_is_asked_for_is_not_changed(check: Check) -> None:
    asked = {
        "lora_rank": 8, "lora_alpha": 8, "target_modules": ["q_proj"], "batch_size": 1, "gradient_accumulation": 3,
        "max_seq_length": 96, "learning_rate": 1e-5, "max_steps": 7, "seed": 0, "name": "mine",
    }  # fmt: skip
    spec = check(**asked)
    assert {key: spec["arguments"][key] for key in asked} == asked
    assert spec["name"] == "mine"


def test_four_bits_without_a_gpu_are_refused(check: Check) -> None:
    with pytest.raises(InvalidInput, match=r"four_bit_needs_gpu: load_in_4bit=true, .*16-bit LoRA"):
        check(load_in_4bit=True)


def test_packing_without_a_gpu_is_refused(check: Check) -> None:
    with pytest.raises(InvalidInput, match="packing_needs_gpu: packing=true"):
        check(packing=True)


def test_a_sequence_beyond_the_models_context_is_refused_with_the_bound(check: Check) -> None:
    assert check(max_seq_length=2048)["arguments"]["max_seq_length"] == 2048
    with pytest.raises(InvalidInput, match=r"sequence_too_long: max_seq_length=2049, .*32 to 2048\."):
        check(max_seq_length=2049)


def test_an_unknown_method_names_the_known_ones(check: Check) -> None:
    with pytest.raises(InvalidInput, match=r"unknown_method: method='ppo'.*Supported: sft, cpt, dpo.*method=\"sft\""):
        check(method="ppo")


@pytest.mark.parametrize(
    ("kind", "fitting"),
    [("sft", {"sft", "grpo"}), ("text", {"cpt"}), ("preference", {"dpo", "orpo"}), ("kto", {"kto"})],
)
def test_each_kind_of_data_is_for_its_methods(workspace: Workspace, check: Check, kind: str, fitting: set[str]) -> None:
    workspace.store.execute(f"UPDATE artifacts SET document=json_set(document, '$.kind', '{kind}')")
    for method in METHODS:
        rewards = {"rewards": [{"kind": "exact_match"}]} if method == "grpo" else {}
        if method in fitting:
            assert check(method=method, **rewards)["method"] == method
        else:
            with pytest.raises(InvalidInput, match=rf"dataset_of_another_kind: .*{kind} data") as caught:
                check(method=method, **rewards, max_steps=20, temperature=0.5)
            assert "max_steps=20" in caught.value.next and "temperature" not in caught.value.next
            assert any(f'method="{name}"' in caught.value.next for name in fitting)


@pytest.mark.parametrize(
    ("method", "arguments", "says"),
    [
        ("sft", {"rewards": [{"kind": "exact_match"}]}, "rewards has no effect with method='sft'"),
        ("sft", {"beta": 0.2}, "beta has no effect with method='sft', but is for dpo, kto, orpo, grpo"),
        ("sft", {"num_generations": 4}, "num_generations has no effect"),
        ("sft", {"max_completion_length": 64}, "max_completion_length has no effect"),
        ("sft", {"temperature": 0.5}, "temperature has no effect"),
        ("grpo", {"rewards": [{"kind": "exact_match"}], "neftune_alpha": 5}, "the noise of neftune_alpha"),
        ("grpo", {"rewards": [{"kind": "exact_match"}], "packing": True}, "packing has no effect"),
        ("sft", {"finetuning_type": "freeze", "lora_rank": 8, "lora_dropout": 0.1}, "lora_rank, lora_dropout is of"),
        ("sft", {"finetuning_type": "full", "target_modules": ["q_proj"]}, "target_modules is of LoRA"),
        ("grpo", {}, "needs rewards"),
        ("grpo", {"rewards": [{"kind": "exact_match"}], "train_on": "all"}, "train_on"),
        ("sft", {"finetuning_type": "full", "use_dora": True}, "use_dora is of LoRA"),
        ("sft", {"trainable_layers": 2}, "trainable_layers is for"),
        ("sft", {"use_loftq": True}, "use_loftq"),
    ],
)
def test_arguments_that_do_not_go_together_are_refused(
    check: Check, method: str, arguments: dict[str, Any], says: str
) -> None:
    with pytest.raises(InvalidInput, match=f"arguments_contradict: .*{says}"):
        check(method=method, **arguments)


def test_the_thinking_switch_has_no_effect_on_raw_text(workspace: Workspace, check: Check) -> None:
    workspace.store.execute("UPDATE artifacts SET document=json_set(document, '$.kind', 'text')")
    with pytest.raises(InvalidInput, match="arguments_contradict: enable_thinking has no effect with method='cpt'"):
        check(method="cpt", enable_thinking=True)


def test_what_nobody_reads_is_not_chosen_either(check: Check) -> None:
    assert check()["arguments"]["beta"] is None
    full = check(finetuning_type="full")["arguments"]
    assert (full["lora_rank"], full["lora_alpha"], full["target_modules"]) == (None, None, None)


@pytest.mark.parametrize("asked", [{"eval_steps": 5}, {"early_stopping_patience": 2}])
def test_evaluations_without_rows_to_evaluate_on_are_refused(
    workspace: Workspace, check: Check, asked: dict[str, int]
) -> None:
    with pytest.raises(InvalidInput, match=r"no_eval_rows: .*ds-identity-0001 holds out no rows.*eval_fraction=0\.1"):
        check(**asked)
    workspace.store.execute("UPDATE artifacts SET document=json_set(document, '$.eval_rows', 10)")
    check(**asked)


@pytest.mark.parametrize("asked", [{"max_completion_length": 2048}, {"max_seq_length": 256}])
def test_answers_that_leave_no_room_for_a_prompt_are_refused(check: Check, asked: dict[str, int]) -> None:
    with pytest.raises(InvalidInput, match=r"no_room_for_prompts: max_completion_length=\d+ of at most \d+ tokens"):
        check(method="grpo", rewards=[{"kind": "exact_match"}], **asked)


def test_what_the_model_does_not_have_is_refused_before_it_is_loaded(check: Check) -> None:
    with pytest.raises(InvalidInput, match=r"too_many_layers: trainable_layers=99, but toy has \d+\. 1 to \d+"):
        check(finetuning_type="freeze", trainable_layers=99)
    with pytest.raises(InvalidInput, match=r"unknown_target_modules: .*'', 'qproj'.*q_proj, k_proj.*all-linear"):
        check(target_modules=["q_proj", "qproj", ""])


def test_a_tracker_that_is_not_installed_is_refused_with_how_to_install_it(
    check: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request, "find_spec", lambda name: None)
    with pytest.raises(Unavailable, match=r"tracker_not_installed: report_to names wandb.*pip install wandb"):
        check(report_to=["wandb"])


def test_rows_that_a_short_sequence_cuts_are_warned_of(check: Check) -> None:
    assert any("max_seq_length=48 cuts" in warning for warning in check(max_seq_length=48)["warnings"])
    assert not any("cuts" in warning for warning in check(max_seq_length=256)["warnings"])


def test_the_goal_changes_the_plan(workspace: Workspace) -> None:
    add_dataset(workspace)
    fast, quality = (request.check(workspace, DATASET, "toy", "sft", TrainingArguments(), None, goal) for goal in GOALS)
    assert fast["arguments"]["epochs"] < quality["arguments"]["epochs"]


def test_an_unknown_dataset_is_refused(workspace: Workspace) -> None:
    with pytest.raises(NotFound, match="artifact_not_found"):
        request.check(workspace, "ds-none", "toy", "sft", TrainingArguments(), None)


def add_adapter(workspace: Workspace, base_model: str, **more: Any) -> None:
    training = {"lora_rank": 4, "lora_alpha": 5, "target_modules": ["v_proj"], "learning_rate": 0.01} | more
    document = {"base_model": base_model, "training": training}
    workspace.store.add_artifact(ADAPTER, "adapter", "identity", document, parents=[DATASET])


def test_an_adapter_goes_on_in_its_own_shape(workspace: Workspace, check: Check) -> None:
    add_adapter(workspace, "toy")
    spec = check(continue_from="ad-id", lora_rank=4, learning_rate=0.001)
    assert spec["continue_from"] == ADAPTER
    shape = [spec["arguments"][key] for key in ("lora_rank", "lora_alpha", "target_modules", "learning_rate")]
    assert shape == [4, 5, ["v_proj"], 0.001]


@pytest.mark.parametrize(
    ("trained", "asked", "says"),
    [
        ({}, {"lora_rank": 64}, "lora_rank=64, but ad-identity-0001 has 4"),
        ({"finetuning_type": "lora"}, {"finetuning_type": "full"}, "finetuning_type='full', but"),
        ({"use_dora": False}, {"use_dora": True}, "use_dora=True, but"),
        ({"embedding_learning_rate": None}, {"embedding_learning_rate": 1e-5}, "embedding_learning_rate=1e-05, but"),
        ({"use_loftq": True}, {"load_in_4bit": False}, "load_in_4bit=False, but"),
    ],
)
def test_another_shape_than_the_adapters_is_refused(
    workspace: Workspace, check: Check, trained: dict[str, Any], asked: dict[str, Any], says: str
) -> None:
    add_adapter(workspace, "toy", **trained)
    with pytest.raises(InvalidInput, match=rf"arguments_contradict: {says}.*goes on in its own shape"):
        check(continue_from=ADAPTER, **asked)


def test_trained_embeddings_go_on_at_a_rate_of_ones_own(workspace: Workspace, check: Check) -> None:
    add_adapter(workspace, "toy", embedding_learning_rate=1e-5)
    assert check(continue_from=ADAPTER)["arguments"]["embedding_learning_rate"] == 1e-5
    spec = check(continue_from=ADAPTER, embedding_learning_rate=2e-6)
    assert spec["arguments"]["embedding_learning_rate"] == 2e-6


def test_a_whole_model_goes_on_whole_or_with_its_last_layers(workspace: Workspace, check: Check) -> None:
    add_adapter(workspace, "toy", finetuning_type="full")
    assert check(continue_from=ADAPTER)["arguments"]["finetuning_type"] == "full"
    assert check(continue_from=ADAPTER, finetuning_type="freeze")["arguments"]["finetuning_type"] == "freeze"


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
