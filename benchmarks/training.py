"""Training measured on one GPU, beside its peers: JSON lines.

    python benchmarks/training.py compare MODEL PEER   the planner's default, with 16 GiB, and a bare Unsloth script
                                                       of the same settings; PEER is a script that prints `RESULT {…}`
    python benchmarks/training.py accuracy CSV MODEL…  the plan against the run, a table of configurations
    python benchmarks/training.py ladder MODEL         a batch that cannot fit

MODEL is the folder of a base model. Rows have real lengths (log-normal, about 590 tokens in the mean); tokens per
second count real tokens, padding never, of the steps after the first four over their wall time.
"""

import argparse
import csv
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tunewright.pipeline import jobs
from tunewright.pipeline.chat_template import ChatTemplate
from tunewright.pipeline.data import splits, statistics
from tunewright.pipeline.data.rows import Record
from tunewright.pipeline.jobs import ACTIVE
from tunewright.pipeline.store import Row
from tunewright.pipeline.training import request
from tunewright.pipeline.training.arguments import TrainingArguments
from tunewright.pipeline.training.pace import WINDOW_STEPS
from tunewright.pipeline.workspace import Workspace

ROWS = 1500
WARM_UP_STEPS = 4
# 4 × parameters for LoRA's forward and backward pass, the H200's measured matrix speed.
FLOPS_PER_PARAMETER, DEVICE_FLOPS = 4, 790e12
PARAMETERS_8B = 7.57e9  # of its products: without the table of embeddings
# By the name of the model's folder. The last is asked for more than any card holds.
CONFIGURATIONS: list[tuple[str, dict[str, Any]]] = [
    ("8b", {}),
    ("8b", {"vram_limit_gib": 16}),
    ("4b", {}),
    ("0.6b", {}),
    ("4b", {"load_in_4bit": True, "max_seq_length": 1024, "batch_size": 8, "gradient_checkpointing": "unsloth"}),
    ("0.6b", {"load_in_4bit": True, "max_seq_length": 1024, "batch_size": 16, "lora_rank": 64}),
    ("0.6b", {"load_in_4bit": True, "packing": False, "batch_size": 8, "gradient_accumulation": 1}),
    ("4b", {"packing": False, "batch_size": 4, "gradient_accumulation": 2, "gradient_checkpointing": "plain"}),
    ("8b", {"load_in_4bit": False, "max_seq_length": 4096, "batch_size": 2, "gradient_checkpointing": "plain"}),
]
TOO_LARGE = {"batch_size": 256, "gradient_accumulation": 1, "gradient_checkpointing": "none", "max_seq_length": 2048}


def report(**numbers: Any) -> None:
    print(json.dumps(numbers), flush=True)


def dataset(workspace: Workspace, model: str) -> str:
    """The id of a dataset of chats with real lengths; the words are those of a Python module."""
    chance = random.Random(0)
    words = Path(os.__file__).read_text(encoding="utf-8").split()
    records: list[Record] = []
    for _ in range(ROWS):
        said = chance.choices(words, k=max(40, int(chance.lognormvariate(5.6, 0.8))))
        messages = [
            {"role": "user", "content": " ".join(said[:20])},
            {"role": "assistant", "content": " ".join(said[20:])},
        ]
        records.append(Record("sft", messages=messages))
    dataset_id = f"ds-lengths-{abs(hash(model)) % 10**6}"
    folder = workspace.home.datasets / dataset_id
    folder.mkdir()
    splits.write(folder / "train.parquet", "sft", records)
    splits.write(folder / "eval.parquet", "sft", [])
    tokens = statistics.count(ChatTemplate(Path(model)), model, records, ROWS)
    document = {
        "path": str(folder), "kind": "sft", "format": "chatml", "sha256": "", "tokens": tokens, "train_rows": ROWS,
        "eval_rows": 0, "rows": ROWS,
    }  # fmt: skip
    workspace.store.add_artifact(dataset_id, "dataset", "lengths", document, parents=[])
    return dataset_id


def train(workspace: Workspace, dataset_id: str, model: str, max_steps: int, **given: Any) -> tuple[Row, Row]:
    """The spec and the ended job of a run of so many steps."""
    arguments = TrainingArguments(**{"save_steps": 100_000, "max_steps": max_steps, **given})
    spec = request.check(workspace, dataset_id, model, "sft", arguments, None)
    row = jobs.submit(workspace, "finetune", "benchmark", spec, needs_device=True)
    while row["state"] in ACTIVE:
        time.sleep(0.5)
        row = workspace.store.job(row["id"])
        if not workspace.inline:
            jobs.reconcile(workspace)
    return spec, row


def measured(workspace: Workspace, row: Row) -> dict[str, Any]:
    """What the job's metrics say: speed and seconds per step after the warm-up, peak, first and last loss."""
    rows = workspace.store.metrics(row["id"], "train")
    if row["state"] != "succeeded" or len(rows) < WARM_UP_STEPS + 2:
        return {"state": row["state"], "error": row["error"]}
    tokens, begin = tokens_until(rows), WARM_UP_STEPS - 1
    seconds = rows[-1]["at"] - rows[begin]["at"]
    return {
        "state": row["state"], "step_s": round(seconds / (len(rows) - 1 - begin), 3),
        "tokens_per_s": round((tokens[-1] - tokens[begin]) / seconds),
        "peak_gib": rows[-1]["numbers"]["peak_gib"],
        "loss": [rows[0]["numbers"]["loss"], rows[-1]["numbers"]["loss"]],
        "grad_norm": rows[-1]["numbers"].get("grad_norm"),
    }  # fmt: skip


def tokens_until(rows: list[Row]) -> list[float]:
    """Since the first step, at each: a row's speed is the mean of up to WINDOW_STEPS steps, warm-up among them."""
    tokens = [0.0]
    for number in range(1, len(rows)):
        begin = max(0, number - WINDOW_STEPS)
        seconds = rows[number]["at"] - rows[begin]["at"]
        tokens.append(tokens[begin] + rows[number]["numbers"]["tokens_per_s"] * seconds)
    return tokens


def chosen(arguments: dict[str, Any]) -> dict[str, Any]:
    names = (
        "load_in_4bit", "max_seq_length", "packing", "batch_size", "gradient_accumulation", "gradient_checkpointing",
        "lora_rank", "vram_limit_gib",
    )  # fmt: skip
    return {name: arguments[name] for name in names}


def peers(model: str, peer: str) -> None:
    for mode in ("unsloth", "trl"):
        command = [sys.executable, peer, mode, model, "--steps", "12", "--tag", f"{mode}'s defaults"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tempfile.mkdtemp())
        lines = [line.removeprefix("RESULT ") for line in done.stdout.splitlines() if line.startswith("RESULT ")]
        report(run=f"{mode}, its defaults", **(json.loads(lines[0]) if lines else {"error": done.stderr[-400:]}))


def compare(home: str, model: str, peer: str) -> None:
    """Each in a process of its own, one after the other."""
    peers(model, peer)
    workspace = Workspace.open(home)
    dataset_id = dataset(workspace, model)
    spec, row = train(workspace, dataset_id, model, 30)
    numbers = measured(workspace, row)
    share = numbers.get("tokens_per_s", 0) * FLOPS_PER_PARAMETER * PARAMETERS_8B / DEVICE_FLOPS
    report(run="ours, the planner's default", **chosen(spec["arguments"]), plan=spec["plan"], **numbers,
           share_of_arithmetic_limit=round(share, 3))  # fmt: skip
    report(run="a bare Unsloth script, the same settings", **bare(home, model, dataset_id, spec["arguments"]))
    spec, row = train(workspace, dataset_id, model, 20, vram_limit_gib=16)
    report(
        run="ours, 16 GiB", **chosen(spec["arguments"]), plan=spec["plan"], **measured(workspace, row),
        events=[f"{e['code']}: {e['message']}" for e in workspace.store.events(row["id"], 20)],
    )  # fmt: skip


def bare(home: str, model: str, dataset_id: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """What a person would write with Unsloth alone, on the same rows with the job's settings."""
    settings = json.dumps({"model": model, "rows": f"{home}/datasets/{dataset_id}/train.parquet", **arguments})
    command = [sys.executable, str(Path(__file__).with_name("bare_unsloth.py")), settings]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tempfile.mkdtemp())
    lines = [line.removeprefix("RESULT ") for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    return json.loads(lines[0]) if lines else {"error": done.stderr[-600:]}


def accuracy(home: str, table: str, folders: list[str]) -> None:
    """In one process, as an import takes 20 s. Writes the table to the CSV file `table`."""
    workspace = Workspace.open(home, inline=True)
    datasets = {folder: dataset(workspace, folder) for folder in folders}
    with Path(table).open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(
            ["model", "arguments", "planned_gib", "measured_gib", "gib_error", "planned_tokens_per_s",
             "measured_tokens_per_s", "time_error"]
        )  # fmt: skip
        for size, given in CONFIGURATIONS:
            folder = next((f for f in folders if Path(f).name == size), None)
            if folder is None:
                continue
            spec, row = train(workspace, datasets[folder], folder, 12, **given)
            numbers = measured(workspace, row)
            events = [f"{e['code']}: {e['message']}" for e in workspace.store.events(row["id"], 20)]
            report(
                model=size, given=given, chosen=chosen(spec["arguments"]), plan=spec["plan"], **numbers,
                events=events[2:-1],
            )  # fmt: skip
            if row["state"] == "succeeded":
                plan = spec["plan"]
                writer.writerow(
                    [size, json.dumps(chosen(spec["arguments"])), plan["peak_gib"], numbers["peak_gib"],
                     f"{plan['peak_gib'] / numbers['peak_gib'] - 1:+.3f}", plan["tokens_per_s"],
                     numbers["tokens_per_s"], f"{numbers['tokens_per_s'] / plan['tokens_per_s'] - 1:+.3f}"]
                )  # fmt: skip
                file.flush()


def ladder(home: str, model: str) -> None:
    workspace = Workspace.open(home, inline=True)
    spec, row = train(workspace, dataset(workspace, model), model, 8, packing=True, **TOO_LARGE)
    report(
        run="a batch that cannot fit", **chosen(spec["arguments"]), **measured(workspace, row),
        events=[f"{e['code']}: {e['message']}" for e in workspace.store.events(row["id"], 40)],
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["compare", "accuracy", "ladder"])
    parser.add_argument("rest", nargs="+")
    parser.add_argument("--home", default=None, help="data home (default: a new temporary one)")
    given = parser.parse_args()
    home = given.home or tempfile.mkdtemp(prefix="tunewright-")
    if given.what == "compare":
        compare(home, *given.rest)
    elif given.what == "accuracy":
        accuracy(home, given.rest[0], given.rest[1:])
    else:
        ladder(home, *given.rest)


if __name__ == "__main__":
    main()
