"""A judge of usability that needs no language model: mistakes that agents make, and what each must be told.

Every refusal names its code, says with the value what failed, and gives a way on; the words here are what an agent
needs to find it.
"""

import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tunewright.pipeline import toy
from tunewright.pipeline.store import Row
from tunewright.pipeline.workspace import Workspace

pytestmark = pytest.mark.anyio

Refused = Callable[..., Awaitable[str]]
Arguments = dict[str, Any]

# What the agent did; the tool; the arguments (names in capitals stand for real ids); words that must be in the answer.
MISTAKES: list[tuple[str, str, Arguments, tuple[str, ...]]] = [
    # Tools that are not there
    ("guessed a tool's name", "train_model", {}, ("unknown_tool", "start_finetune")),
    ("wrote it in camel case", "startFinetune", {}, ("unknown_tool", "start_finetune")),
    ("wrote a plural", "list_artifact", {}, ("unknown_tool", "list_artifacts")),
    ("took another server's name", "export_model", {}, ("unknown_tool", "merge_and_export")),
    ("called evaluation so", "evaluate_model", {}, ("unknown_tool", "validate_adapter")),
    # Arguments
    ("abbreviated", "start_finetune", {"dataset_id": "DATASET", "lr": 1e-4}, ("'lr'", "learning_rate")),
    ("used transformers' name", "start_finetune", {"dataset_id": "DATASET", "num_train_epochs": 3}, ("epochs",)),
    ("used peft's name", "start_finetune", {"dataset_id": "DATASET", "r": 16}, ("'r'", "is no argument")),
    ("misspelt", "start_finetune", {"dataset_id": "DATASET", "lora_rnak": 16}, ("lora_rank",)),
    ("forgot what is required", "start_finetune", {}, ("dataset_id", "required")),
    ("gave words for a number", "start_finetune", {"dataset_id": "DATASET", "epochs": "three"}, ("epochs='three'",)),
    (
        "gave a number out of bounds",
        "start_finetune",
        {"dataset_id": "DATASET", "lora_dropout": 1.5},
        ("lora_dropout",),
    ),
    ("gave a negative rate", "start_finetune", {"dataset_id": "DATASET", "learning_rate": -1}, ("learning_rate=-1",)),
    ("gave a method that is none", "start_finetune", {"dataset_id": "DATASET", "method": "ppo"}, ("grpo",)),
    ("gave a list for one", "get_status", {"job_id": ["JOB"]}, ("job_id",)),
    ("gave null for a text", "chat_with_adapter", {"adapter_id": "ADAPTER", "prompt": ""}, ("prompt",)),
    ("asked for too much waiting", "get_status", {"job_id": "JOB", "wait_s": 3600}, ("wait_s", "50")),
    (
        "asked for huge answers",
        "chat_with_adapter",
        {"model": "toy", "prompt": "Hi", "max_new_tokens": 1_000_000},
        ("max_new_tokens", "8192"),
    ),
    ("asked for thousands of rows", "inspect_dataset", {"dataset_id": "DATASET", "rows": 5000}, ("rows",)),
    (
        "gave both of two",
        "chat_with_adapter",
        {"adapter_id": "ADAPTER", "model": "toy", "prompt": "Hi"},
        ("adapter_or_model",),
    ),
    (
        "gave a conversation that ends with an answer",
        "chat_with_adapter",
        {"adapter_id": "ADAPTER", "messages": [{"role": "assistant", "content": "Hi"}]},
        ("last_message_not_user",),
    ),
    # Ids
    ("made an id up", "get_status", {"job_id": "job-12345"}, ("job_not_found", "get_status()")),
    ("used a name for an id", "inspect_dataset", {"dataset_id": "numbers"}, ("not_found", "DATASET")),
    ("mixed kinds up", "start_finetune", {"dataset_id": "ADAPTER"}, ("ADAPTER", "dataset")),
    ("used the job's id for the adapter's", "merge_and_export", {"adapter_id": "JOB"}, ("adapter",)),
    (
        "used the adapter's id for the export's",
        "publish_to_ollama",
        {"export_id": "ADAPTER", "model_name": "m", "dry_run": True},
        ("export",),
    ),
    ("left an id empty", "cancel_job", {"job_id": ""}, ("job_id",)),
    (
        "deleted what was never there",
        "delete_artifact",
        {"artifact_id": "ds-none-0000", "confirm": True},
        ("not_found",),
    ),
    ("gave half an id of two", "get_status", {"job_id": "job-"}, ("ambiguous_id", "They are")),
    # Paths and models
    ("named a file that is not there", "prepare_dataset", {"source": "/no/such/file.jsonl"}, ("/no/such/file.jsonl",)),
    ("misspelt a file", "prepare_dataset", {"source": "FOLDER/number.jsonl"}, ("numbers.jsonl",)),
    ("gave a folder without data", "prepare_dataset", {"source": "EMPTY"}, ("EMPTY",)),
    ("gave a picture", "prepare_dataset", {"source": "FOLDER/cat.png"}, ("cat.png",)),
    (
        "trained what Ollama serves",
        "start_finetune",
        {"dataset_id": "DATASET", "model": "qwen3:8b"},
        ("model_not_trainable", "unsloth/Qwen3-8B"),
    ),
    ("trained a GGUF", "start_finetune", {"dataset_id": "DATASET", "model": "FOLDER/model.gguf"}, ("model",)),
    (
        "misremembered a model",
        "start_finetune",
        {"dataset_id": "DATASET", "model": "unsloth/Qwen3-8BB"},
        ("unsloth/Qwen3-8BB",),
    ),
    ("gave an unknown output", "merge_and_export", {"adapter_id": "ADAPTER", "outputs": ["q4_k_m"]}, ("gguf:q4_k_m",)),
    ("gave a wrong GGUF type", "merge_and_export", {"adapter_id": "ADAPTER", "outputs": ["gguf:q9_0"]}, ("q8_0",)),
    (
        "gave a repository without owner",
        "publish_to_hub",
        {"artifact_id": "ADAPTER", "repo_id": "m", "dry_run": True},
        ("owner",),
    ),
    # Order
    (
        "exported before there was an adapter",
        "merge_and_export",
        {"adapter_id": "ad-soon"},
        ("artifact_not_found", "ADAPTER"),
    ),
    ("resumed what had succeeded", "resume_job", {"job_id": "JOB"}, ("job_not_resumable", "succeeded")),
    ("cancelled what had ended", "cancel_job", {"job_id": "JOB"}, ("job_ended",)),
    ("deleted without asking", "delete_artifact", {"artifact_id": "EXPORT"}, ("not_confirmed", "confirm=true")),
    (
        "deleted what is needed",
        "delete_artifact",
        {"artifact_id": "ADAPTER", "confirm": True},
        ("still_needed", "EXPORT"),
    ),
    ("validated what is no adapter", "validate_adapter", {"adapter_id": "EXPORT"}, ("adapter",)),
    (
        "gave prompts and a dataset",
        "validate_adapter",
        {"adapter_id": "ADAPTER", "dataset_id": "DATASET", "prompts": ["Hi"]},
        ("prompts",),
    ),
    (
        "named a domain that is none",
        "validate_adapter",
        {"adapter_id": "ADAPTER", "dataset_id": "DATASET", "domain": "medecine"},
        ("medicine",),
    ),
    (
        "benchmarked without the questions",
        "benchmark_adapter",
        {"adapter_id": "ADAPTER", "task_dir": "EMPTY"},
        ("EMPTY",),
    ),
    ("judged a job that is no validation", "submit_judgements", {"job_id": "JOB"}, ("validations",)),
    ("compared one run", "compare_runs", {"job_ids": ["JOB"]}, ("job_ids",)),
]


@pytest.fixture
def places(
    workspace: Workspace,
    dataset_id: str,
    adapter: Row,
    export: Row,
    ended_job: Callable[..., str],
    toy_folder: Path,
    tmp_path: Path,
) -> dict[str, str]:
    """What the names in capitals stand for."""
    (tmp_path / "empty").mkdir()
    base = Path(shutil.copytree(toy_folder, toy.folder(workspace.home)))
    (base / "model.safetensors").write_bytes(bytes(100))
    folder = tmp_path / "data"
    (folder / "cat.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(200))
    (folder / "model.gguf").write_bytes(b"GGUF" + bytes(200))
    ended_job("export", "succeeded", {"export_id": "ex-gone-0000"})
    return {
        "DATASET": dataset_id, "ADAPTER": adapter["id"], "EXPORT": export["id"], "FOLDER": str(folder),
        "JOB": ended_job("finetune", "succeeded", {"adapter_id": adapter["id"]}), "EMPTY": str(tmp_path / "empty"),
    }  # fmt: skip


def _put(places: dict[str, str], value: Any) -> Any:
    if isinstance(value, list):
        return [_put(places, each) for each in value]
    if isinstance(value, str):
        for name, place in places.items():
            value = value.replace(name, place)
    return value


async def test_a_mistake_is_told_with_its_cause_and_a_way_on_and_changes_nothing(
    refused: Refused, places: dict[str, str], workspace: Workspace, subtests: pytest.Subtests
) -> None:
    before = _everything(workspace)
    for mistake, tool, arguments, words in MISTAKES:
        with subtests.test(mistake):
            told = await refused(tool, **{name: _put(places, value) for name, value in arguments.items()})
            for word in words:
                assert _put(places, word) in told, told
            assert "Next: " in told or "Nothing was" in told, told
            assert len(told) < 1500
    assert _everything(workspace) == before


def _everything(workspace: Workspace) -> list[Row]:
    return [row for table in ("artifacts", "jobs", "events") for row in workspace.store.rows(f"SELECT * FROM {table}")]


def test_the_judge_knows_forty_mistakes_and_more() -> None:
    assert len(MISTAKES) >= 40
