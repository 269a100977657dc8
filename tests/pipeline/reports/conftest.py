"""A home with a run and all that was made of it, its rows in the very forms in which the stages write them."""

import json
import math
import random
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from tunewright.pipeline import files
from tunewright.pipeline.benchmarking.exams import BENCHMARKS
from tunewright.pipeline.data import statistics
from tunewright.pipeline.data.rows import Record
from tunewright.pipeline.rerun import CONDITIONS
from tunewright.pipeline.store import Row
from tunewright.pipeline.training.arguments import TrainingArguments
from tunewright.pipeline.workspace import Workspace

BEGUN = 1_790_000_000.0
Numbers = dict[str, float]
AddJob = Callable[..., Row]


def interval(value: float, low: float, high: float) -> Numbers:
    return {"value": value, "low": low, "high": high}


def arguments(**given: Any) -> dict[str, Any]:
    """Complete ones, as the planner leaves them."""
    chosen: dict[str, Any] = {
        "load_in_4bit": True, "max_seq_length": 2048, "packing": True, "batch_size": 8, "gradient_accumulation": 2,
        "gradient_checkpointing": "none", "precision": "bf16", "learning_rate": 2e-4, "epochs": 3.0,
        "warmup_ratio": 0.05, "lr_scheduler": "cosine", "optimizer": "adamw_8bit", "lora_rank": 16, "lora_alpha": 32,
    }  # fmt: skip
    return TrainingArguments.model_validate({**chosen, **given}).model_dump()


@pytest.fixture
def add_job(workspace: Workspace) -> AddJob:
    """Stores a job with its folder and, unless told otherwise, as succeeded after ten minutes."""

    def added(kind: str, id: str, spec: dict[str, Any], result: dict[str, Any] | None = None, **columns: Any) -> Row:
        state = columns.pop("state", "succeeded")
        begun = columns.pop("begun", BEGUN)
        (workspace.home.jobs / id).mkdir()
        values = {
            "id": id, "kind": kind, "state": state, "needs_device": 1, "spec": json.dumps(spec), "created_at": begun,
            "started_at": begun + 5, "ended_at": begun + 605 if state != "running" else None,
            "result": json.dumps(result) if result else None, **columns,
        }  # fmt: skip
        names, marks = ", ".join(values), ", ".join("?" * len(values))
        with workspace.store.transaction() as db:
            db.execute(f"INSERT INTO jobs({names}) VALUES ({marks})", list(values.values()))
            for at, level, code, message in (
                (begun, "info", "submitted", f"{kind} submitted."), (begun + 5, "info", "started", "Running on gpu-0."),
                *([] if state == "running" else [(begun + 605, "info", state, f"Job {state}.")]),
            ):  # fmt: skip
                db.execute("INSERT INTO events(job_id, at, level, code, message) VALUES (?,?,?,?,?)",
                           (id, at, level, code, message))  # fmt: skip
        return workspace.store.job(id)

    return added


def write_metrics(workspace: Workspace, job_id: str, steps: int, *, level: float = 1.1, noise: float = 0.08) -> None:
    """A falling loss with noise, evaluations at each tenth, and the run's facts."""
    draw = random.Random(7)
    rows: list[tuple[str, int, Numbers]] = [
        ("run", 0, {"max_steps": steps, "truncated_share": 0.012, "limit_gib": 79.1, "host_total_gib": 128.0})
    ]
    for step in range(1, steps + 1):
        share = step / steps
        rows.append(("train", step, {
            "loss": max(0.02, level + 1.3 * math.exp(-5 * share) + draw.gauss(0, noise)),
            "grad_norm": 0.5 + draw.random(), "learning_rate": 1e-4 + 1e-4 * math.cos(math.pi * share),
            "epoch": round(3 * share, 4), "tokens_per_s": 9500 + draw.gauss(0, 180), "peak_gib": 6.9,
        }))  # fmt: skip
        if step % max(1, steps // 10) == 0:
            rows.append(("eval", step, {"loss": level + 0.1 + 1.2 * math.exp(-5 * share) + 0.05 * share * share}))
    with workspace.store.transaction() as db:
        db.executemany(
            "INSERT INTO metrics(job_id, split, step, at, numbers) VALUES (?,?,?,?,?)",
            [(job_id, split, step, BEGUN + 10 + 0.1 * step, json.dumps(numbers)) for split, step, numbers in rows],
        )


@pytest.fixture(name="write_metrics")
def write_metrics_fixture(workspace: Workspace) -> Callable[..., None]:
    """`write_metrics(job_id, steps)`: a run of that length."""
    return partial(write_metrics, workspace)


@pytest.fixture(name="arguments")
def arguments_fixture() -> Callable[..., dict[str, Any]]:
    return arguments


@pytest.fixture(name="sample")
def sample_fixture() -> Callable[[int], dict[str, Any]]:
    """`sample(index)`: a line of samples.jsonl."""
    return sample


@pytest.fixture(name="benchmark_result")
def benchmark_result_fixture() -> Callable[..., dict[str, Any]]:
    return benchmark_result


@pytest.fixture
def dataset(workspace: Workspace) -> Row:
    folder = workspace.home.datasets / "ds-clinic-7f3k"
    folder.mkdir()
    files.write_text(folder / "report.html", "<!doctype html><title>clinic</title>")
    draw = random.Random(3)
    rows = [Record("text", text="word " * int(draw.lognormvariate(5.4, 0.7))) for _ in range(400)]
    document = {
        "path": str(folder), "train_rows": 5700, "eval_rows": 300, "format": "alpaca", "kind": "sft",
        "sha256": "d" * 64,
        "source": "clinic.json", "tokens": statistics.estimate(rows, 6000), "warnings": [],
        "languages": [{"language": "zh", "share": 0.93}, {"language": "en", "share": 0.07}],
    }  # fmt: skip
    workspace.store.add_artifact(folder.name, "dataset", "clinic", document, parents=[])
    return workspace.store.artifact(folder.name)


@pytest.fixture
def run(workspace: Workspace, dataset: Row, add_job: AddJob) -> Row:
    """A succeeded fine-tune with its adapter."""
    spec = {
        "dataset_id": dataset["id"], "model": "unsloth/Qwen3-8B", "method": "sft", "name": "clinic",
        "arguments": arguments(), "continue_from": None, "warnings": [],
        "plan": {"peak_gib": 7.4, "tokens_per_s": 9900.0, "time_s": 560, "steps": 600},
    }  # fmt: skip
    figures = {
        "steps": 600, "train_loss_first": 2.4, "train_loss_last": 1.09, "eval_loss": 1.26, "tokens_per_s": 9512.3,
        "peak_gib": 6.91, "train_tokens": 1_710_000, "best_step": None,
    }  # fmt: skip
    job = add_job("finetune", "job-clinic-a1b2", spec, {"adapter_id": "ad-clinic-a1b2", **figures})
    write_metrics(workspace, job["id"], 600)
    files.write_json(workspace.home.jobs / job["id"] / CONDITIONS, {
        "dataset": {"sha256": "d" * 64, "source": "clinic.json"}, "model_revision": "0a1b2c3d", "device": "NVIDIA H200",
        "versions": {"tunewright": "0.6.0", "unsloth": "2026.10.9", "torch": "2.13.0"},
    })  # fmt: skip
    document = {
        "path": str(workspace.home.adapters / "ad-clinic-a1b2"), "form": "lora", "base_model": "unsloth/Qwen3-8B",
        "base_path": None, "dataset_id": dataset["id"], "method": "sft", "training": arguments(batch_size=4),
        "max_seq_length": 2048, "enable_thinking": False, "metrics": figures, "bytes": 87_000_000,
    }  # fmt: skip
    workspace.store.add_artifact(
        "ad-clinic-a1b2", "adapter", "clinic", document, parents=[dataset["id"]], job_id=job["id"]
    )
    workspace.store.add_event(job["id"], "warning", "out_of_memory", "Out of memory. Going on with less: batch_size 4.")
    return workspace.store.job(job["id"])


METRICS = {
    "loss": {"tuned": interval(1.26, 1.18, 1.35), "base": interval(1.93, 1.81, 2.06),
             "difference": interval(-0.67, -0.79, -0.55), "better": "lower"},
    "chrf": {"tuned": interval(48.2, 44.0, 52.3), "base": interval(35.9, 32.2, 39.5),
             "difference": interval(12.3, 8.1, 16.4), "better": "higher"},
    "rouge_l": {"tuned": interval(51.0, 46.0, 56.1), "base": interval(50.1, 45.3, 55.0),
                "difference": interval(0.9, -1.4, 3.2), "better": "higher"},
    "exact_match": {"tuned": interval(10.0, 4.3, 21.4), "base": interval(0.0, 0.0, 7.1),
                    "difference": interval(10.0, 2.0, 18.0), "better": "higher"},
    "perplexity": {"tuned": interval(3.53, 3.25, 3.86), "base": interval(6.89, 6.11, 7.85),
                   "difference": None, "better": "lower"},
}  # fmt: skip
QUESTIONS = [
    "What should be done first when a child has swallowed a corrosive cleaner?",
    "患者，女，28岁，停经 50 天，下腹隐痛 2 天。最可能的诊断是什么？还需要做哪些检查？",
    "Summarise the note as JSON with the keys \"finding\" and \"plan\".",
]  # fmt: skip
TUNED = [
    "Do not induce vomiting. Rinse the mouth, give nothing else by mouth, and call the poison centre at once.",
    "首先考虑早孕，需排除异位妊娠。建议查血 β-hCG、经阴道超声，必要时复查 hCG 动态变化。",
    '{"finding": "small effusion", "plan": "ultrasound in two weeks"}',
]  # fmt: skip
BASE = [
    "As an AI language model I cannot give medical advice. However, here are some general considerations. " * 5,
    "这可能有很多原因，例如月经不调、压力过大等。建议您多休息。",
    "Finding: small effusion\nPlan: ultrasound",
]  # fmt: skip


def sample(index: int, gain: float | None = None) -> dict[str, Any]:
    which = index % 3
    chrf = (40.0 + (10.0 if gain is None else gain), 40.0)

    def side(text: str, value: float, findings: list[dict[str, str]]) -> dict[str, Any]:
        metrics = {"chrf": value, "loss": 1.2}
        return {"text": text, "thinking": "", "tokens": 30, "ended": "stop", "metrics": metrics, "findings": findings}

    broken = [{"kind": "invalid_json", "passage": "Finding: small"}] if which == 2 else []
    return {
        "index": index, "messages": [{"role": "user", "content": QUESTIONS[which]}], "reference": TUNED[which],
        "tuned": side(TUNED[which], chrf[0], []), "base": side(BASE[which], chrf[1], broken),
    }  # fmt: skip


@pytest.fixture
def validation(workspace: Workspace, run: Row, add_job: AddJob) -> Row:
    result = {
        "adapter_id": "ad-clinic-a1b2", "base_model": "unsloth/Qwen3-8B", "dataset_id": "ds-clinic-7f3k",
        "split": "eval", "samples": 50, "metrics": METRICS,
        "sentence": "Tuned is better on loss by 0.67 [0.55, 0.79], chrF by 12.3 [8.1, 16.4] and exact match by 10.0 "
        "[2.0, 18.0]; no difference shown in ROUGE-L.",
        "findings": {"tuned": {"cut_off": 1}, "base": {"cut_off": 9, "invalid_json": 6}}, "domain": None, "pairs": 20,
        "notes": ["3 of 53 rows did not fit and were replaced."],
        "files": {"samples": "samples.jsonl", "evaluation": "evaluation.json"},
    }  # fmt: skip
    spec = {
        "adapter_id": "ad-clinic-a1b2", "dataset_id": "ds-clinic-7f3k", "split": "eval", "prompts": None,
        "domain": None, "max_samples": 50, "max_new_tokens": 512, "pairs": 20, "name": "clinic",
    }  # fmt: skip
    job = add_job("validate", "job-validate-c3d4", spec, result, begun=BEGUN + 1000)
    draw = random.Random(5)
    lines = [json.dumps(sample(index, draw.gauss(8, 12)), ensure_ascii=False) for index in range(50)]
    files.write_text(workspace.home.jobs / job["id"] / "samples.jsonl", "\n".join(lines) + "\n")
    return workspace.store.job(job["id"])


def benchmark_result(tuned: float = 0.755, base: float = 0.762, **changes: Any) -> dict[str, Any]:
    groups = {"STEM": 0.69, "Social Science": 0.86, "Humanities": 0.77, "Other": 0.74, "Hard": 0.56}

    def model(accuracy: float) -> dict[str, Any]:
        return {
            "accuracy": interval(accuracy, accuracy - 0.023, accuracy + 0.023), "subject_average": accuracy - 0.01,
            "groups": {
                name: interval(share + accuracy - 0.76, share + accuracy - 0.81, share + accuracy - 0.71)
                for name, share in groups.items()
            },
            "subjects": {
                "law": {"accuracy": 0.7, "correct": 17, "of": 24}, "art": {"accuracy": 0.8, "correct": 15, "of": 19},
            },
        }  # fmt: skip

    return {
        "adapter_id": "ad-clinic-a1b2", "base_model": "unsloth/Qwen3-8B", "task": "ceval", "n_shot": 5,
        "chat_prompt": False, "questions": 1346, "models": {"tuned": model(tuned), "base": model(base)},
        "comparisons": [{
            "a": "tuned", "b": "base", "difference": interval(tuned - base, tuned - base - 0.012, tuned - base + 0.01),
            "only_a": 61, "only_b": 70, "p_mcnemar": 0.4822, "sentence": "No difference shown between tuned and base.",
        }],
        "sentence": "No difference shown between tuned and base.", "notes": [], "seconds": {"tuned": 41.0},
        "files": {"evaluation": "evaluation.json"}, **changes,
    }  # fmt: skip


@pytest.fixture
def benchmark(run: Row, add_job: AddJob) -> Row:
    spec = {
        "adapter_id": "ad-clinic-a1b2", "base_model": "unsloth/Qwen3-8B", "task": "ceval", "task_dir": None,
        "subjects": list(BENCHMARKS["ceval"].subjects), "n_shot": 5, "chat_prompt": False, "limit": None,
        "compare_with_base": True, "harness": False, "export": None,
    }  # fmt: skip
    return add_job("benchmark", "job-ceval-e5f6", spec, benchmark_result(), begun=BEGUN + 2000)


PARITY = {
    "passed": True, "failures": [],
    "reference": {"dtype": "float32", "device": "cuda", "eval_loss": 1.23456, "scored_tokens": 970},
    "noise_floor": {"kl": 1.3e-4, "top1": 0.996}, "merge": {"kl": 2e-6, "top1": 1.0, "passed": True},
    "outputs": {
        "gguf:q8_0": {"bytes": 9, "passed": True, "kl": 5.8e-4, "top1": 0.993, "eval_loss": 1.235,
                      "greedy_equal": 9, "greedy_of": 10},
        "gguf:q4_k_m": {"bytes": 5, "passed": True, "kl": 0.031, "top1": 0.929, "eval_loss": 1.3,
                        "greedy_equal": None, "greedy_of": None},
    },
    "recommendation": {"output": "gguf:q4_k_m", "why": "the smallest whose loss rises by less than 5 %"}, "notes": [],
}  # fmt: skip


@pytest.fixture
def export(workspace: Workspace, run: Row, add_job: AddJob) -> Row:
    """The job of an export that passed."""
    outputs = [
        {"output": output, "path": f"{workspace.home.exports}/ex-clinic-g7h8/{name}", "bytes": size}
        for output, name, size in (
            ("merged_16bit", "merged", 16_400_000_000), ("gguf:q8_0", "clinic-q8_0.gguf", 8_700_000_000),
            ("gguf:q4_k_m", "clinic-q4_k_m.gguf", 5_030_000_000),
        )
    ]  # fmt: skip
    document = {
        "path": f"{workspace.home.exports}/ex-clinic-g7h8", "adapter_id": "ad-clinic-a1b2", "combine_with": {},
        "combination": None, "base_model": "unsloth/Qwen3-8B", "files": outputs, "parity": PARITY,
        "enable_thinking": False, "max_seq_length": 2048, "adapter_scale": 1.0,
    }  # fmt: skip
    spec = {"adapter_id": "ad-clinic-a1b2", "outputs": [entry["output"] for entry in outputs], "name": "clinic"}
    result = {"export_id": "ex-clinic-g7h8", "files": outputs, "parity": PARITY}
    job = add_job("export", "job-export-g7h8", spec, result, begun=BEGUN + 3000)
    workspace.store.add_artifact(
        "ex-clinic-g7h8", "export", "clinic", document, parents=["ad-clinic-a1b2"], job_id=job["id"]
    )
    return job
