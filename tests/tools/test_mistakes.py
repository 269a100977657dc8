"""A judge of usability that needs no language model: mistakes that agents make, and what each must be told.

Every refusal names its code, says with the value what failed, and gives a way on; the words here are what an agent
needs to find it.
"""

import json
import os
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tunewright.pipeline import processes, toy
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
    ("took a rival's name", "llamafactory_train", {}, ("unknown_tool", "About that: start_finetune")),
    ("named the deed", "run_training", {}, ("unknown_tool", "About that: start_finetune")),
    ("named its end", "stop_training", {}, ("unknown_tool", "About that: cancel_job")),
    ("asked for memory", "estimate_vram", {}, ("unknown_tool", "About that: plan_finetune")),
    ("called evaluation so", "evaluate_model", {}, ("unknown_tool", "validate_adapter")),
    # Arguments
    ("abbreviated", "start_finetune", {"dataset_id": "DATASET", "lr": 1e-4}, ("'lr'", "learning_rate")),
    ("used transformers' name", "start_finetune", {"dataset_id": "DATASET", "num_train_epochs": 3}, ("epochs",)),
    ("used peft's name", "start_finetune", {"dataset_id": "DATASET", "r": 16}, ("'r'", "is no argument")),
    ("misspelt", "start_finetune", {"dataset_id": "DATASET", "lora_rnak": 16}, ("lora_rank",)),
    ("forgot what is required", "start_finetune", {}, ("dataset_id", "required")),
    ("gave words for a number", "start_finetune", {"dataset_id": "DATASET", "epochs": "three"}, ("epochs='three'",)),
    ("gave a truth for a number", "start_finetune", {"dataset_id": "DATASET", "max_steps": True}, ("max_steps=True",)),
    ("spelt an argument otherwise", "inspect_dataset", {"dataset_id": "DATASET", "limit": 3}, ("It has: ", "rows")),
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
    ("compared a run with itself", "compare_runs", {"job_ids": ["JOB", "JOB"]}, ("different",)),
    ("gave a verdict of their own", "submit_judgements", {"job_id": "JOB", "verdicts": {"p1": "C"}}, ("'C'", "tie")),
    ("resumed what runs", "resume_job", {"job_id": "job-running-0001"}, ("job_not_resumable", "running")),
    (
        "deleted what runs",
        "delete_artifact",
        {"artifact_id": "job-running-0001", "confirm": True},
        ("job_active", "cancel_job"),
    ),
    (
        "deleted what a job works on",
        "delete_artifact",
        {"artifact_id": "DATASET", "confirm": True},
        ("still_needed", "job-running-0001"),
    ),
    ("deleted everything", "delete_artifact", {"artifact_id": "*", "confirm": True}, ("'*'", "list_artifacts()")),
    # How values are written
    ("left a space behind an id", "get_status", {"job_id": "JOB "}, ("'JOB '", "JOB")),
    ("put quotes around an id", "inspect_dataset", {"dataset_id": "'DATASET'"}, ("DATASET",)),
    ("took a letter of another script", "get_status", {"job_id": "jоb-numbers"}, ("jоb-numbers", "JOB")),
    ("gave a resource's address", "inspect_dataset", {"dataset_id": "tw://datasets/DATASET"}, ("Nearest: DATASET",)),
    ("gave a number for an id", "get_status", {"job_id": 5}, ("job_id=5", "string")),
    ("wrote yes for true", "delete_artifact", {"artifact_id": "EXPORT", "confirm": "yes, do"}, ("confirm", "boolean")),
    ("gave a text for a list", "merge_and_export", {"adapter_id": "ADAPTER", "outputs": "lora"}, ("outputs='lora'",)),
    (
        "put two outputs into one",
        "merge_and_export",
        {"adapter_id": "ADAPTER", "outputs": ["merged_16bit,gguf:q8_0"]},
        ("'merged_16bit,gguf:q8_0' is no output",),
    ),
    ("gave NaN", "start_finetune", {"dataset_id": "DATASET", "learning_rate": "NaN"}, ("learning_rate='NaN'",)),
    ("gave a half rank", "start_finetune", {"dataset_id": "DATASET", "lora_rank": "16.5"}, ("'16.5'", "1 to 512")),
    ("gave percent", "prepare_dataset", {"source": "FOLDER/numbers.jsonl", "eval_fraction": 5}, ("0.5",)),
    ("took a suffix for a format", "prepare_dataset", {"source": "DATASET", "format": "jsonl"}, ("alpaca", "auto")),
    ("put arguments into one", "start_finetune", {"arguments": {"dataset_id": "DATASET"}}, ("'dataset_id' is req",)),
    ("asked for a page far off", "list_artifacts", {"page": 10**9}, ("page=1000000000", "100000")),
    ("asked for rows far off", "inspect_dataset", {"dataset_id": "DATASET", "offset": 10**9}, ("0 to 17",)),
    ("asked thousands of prompts", "validate_adapter", {"adapter_id": "ADAPTER", "prompts": ["x"] * 5000}, ("1000",)),
    ("asked with nothing", "validate_adapter", {"adapter_id": "ADAPTER", "prompts": ["Hi", "  "]}, ("blank",)),
    ("said nothing", "chat_with_adapter", {"adapter_id": "ADAPTER", "prompt": "  \n"}, ("blank_prompt",)),
    (
        "said nothing in the last message",
        "chat_with_adapter",
        {"model": "toy", "messages": [{"role": "user", "content": ""}]},
        ("blank_prompt",),
    ),
    (
        "wrote ShareGPT's role",
        "chat_with_adapter",
        {"model": "toy", "messages": [{"role": "human", "content": "Hi"}]},
        ("'human'", "'user'"),
    ),
    # One thing for another
    ("gave a file for a dataset", "start_finetune", {"dataset_id": "FOLDER/numbers.jsonl"}, ("Nearest: DATASET",)),
    ("gave a Hub id for a dataset", "start_finetune", {"dataset_id": "tatsu-lab/alpaca"}, ("Nearest: DATASET",)),
    ("gave an adapter for a base", "plan_finetune", {"dataset_id": "DATASET", "model": "ADAPTER"}, ("continue_from",)),
    ("chatted with an adapter as model", "chat_with_adapter", {"model": "ADAPTER", "prompt": "Hi"}, ("adapter_id",)),
    ("gave a base for an adapter", "validate_adapter", {"adapter_id": "toy"}, ("Nearest: ADAPTER",)),
    ("gave an address of a file", "prepare_dataset", {"source": "file:///d/a.jsonl"}, ('source="/d/a.jsonl"',)),
    ("gave an address to read", "read_documents", {"source": "https://example.org/a.pdf"}, ("download it first",)),
    ("gave a path of Windows", "plan_finetune", {"dataset_id": "DATASET", "model": "C:\\qwen"}, ("model_not_found",)),
    (
        "gave a file of their home",
        "prepare_dataset",
        {"source": "~/no-such.jsonl"},
        ("path_not_allowed", "--allow-dir"),
    ),
    (
        "gave a file for a benchmark",
        "benchmark_adapter",
        {"adapter_id": "ADAPTER", "task_dir": "FOLDER/numbers.jsonl"},
        ("numbers.jsonl is a file", "dev/"),
    ),
    (
        "spelt a benchmark otherwise",
        "benchmark_adapter",
        {"adapter_id": "ADAPTER", "task": "C-Eval"},
        ("unknown_task", 'task="ceval"'),
    ),
    (
        "gave a page for a repository",
        "publish_to_hub",
        {"artifact_id": "ADAPTER", "repo_id": "https://huggingface.co/me/m", "dry_run": True},
        ("owner/name",),
    ),
    (
        "misspelt a parameter",
        "publish_to_ollama",
        {"export_id": "EXPORT", "model_name": "m", "parameters": {"temprature": 0.1}, "dry_run": True},
        ("Nearest: temperature",),
    ),
    (
        "named a provider",
        "generate_examples",
        {"source": "FOLDER", "endpoint": "openai", "model": "x"},
        ("https://api",),
    ),
    ("took OpenAI's name", "create_fine_tuning_job", {"training_file": "x"}, ("unknown_tool", "start_finetune")),
    ("took the Hub's name", "push_to_hub", {}, ("unknown_tool", "publish_to_hub")),
    ("took the host's name", "mcp__tunewright__get_status", {}, ("unknown_tool", "Nearest: get_status")),
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
    _running(workspace, dataset_id)
    return {
        "DATASET": dataset_id, "ADAPTER": adapter["id"], "EXPORT": export["id"], "FOLDER": str(folder),
        "JOB": ended_job("finetune", "succeeded", {"adapter_id": adapter["id"]}), "EMPTY": str(tmp_path / "empty"),
    }  # fmt: skip


def _running(workspace: Workspace, dataset_id: str) -> None:
    """A job on the dataset that runs as long as this process."""
    pid = os.getpid()
    workspace.store.execute(
        "INSERT INTO jobs(id, kind, state, needs_device, spec, created_at, pid, pid_started) "
        "VALUES ('job-running-0001','finetune','running',1,?,1,?,?)",
        json.dumps({"dataset_id": dataset_id}), pid, processes.start_time(pid),
    )  # fmt: skip


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


def test_the_judge_knows_ninety_mistakes_and_more() -> None:
    assert len(MISTAKES) >= 90
    assert len({mistake for mistake, *_ in MISTAKES}) == len(MISTAKES)
