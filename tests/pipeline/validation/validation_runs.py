"""Trains a small adapter of the toy, validates it in several ways, and writes down what came of it.

Run as `python validation_runs.py HOME OUT`, a process of its own, as the engine takes none in which Unsloth is: HOME is
a data home with the trained toy, OUT becomes JSON with the results by name. What was made stays in HOME for others.
"""

import json
import os
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any
from unittest import mock

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

from tunewright.pipeline import files, jobs, toy, worker
from tunewright.pipeline.chat_template import ChatTemplate
from tunewright.pipeline.context import JobContext
from tunewright.pipeline.data import splits
from tunewright.pipeline.data.rows import Kind, Record
from tunewright.pipeline.ids import new_id
from tunewright.pipeline.inference.engine import Engine
from tunewright.pipeline.validation import answering, request
from tunewright.pipeline.workspace import Workspace

ANSWERS = {
    "What does the shop sell?": "We sell tea, cups and pots.",
    "When is the shop open?": "We open at nine and close at six.",
    "Who runs the shop?": "Mina and Tom run the shop.",
    "Where is the shop?": "The shop is in Oslo, by the river.",
}
TRAINED = ("{}", "Please tell me: {}", "Hello! {}")
HELD_OUT = (
    "Hi. {}",
    "Tell me: {}",
    "{} Please.",
    "Hello, {}",
    "Please: {}",
    "Hm, {}",
    "So: {}",
    "{} Thanks!",
    "Hey! {}",
)
STEPS = 25
MAX_NEW_TOKENS = 40
CANCEL_AT = 20


def conversations(forms: tuple[str, ...]) -> list[Record]:
    return [
        Record("sft", [{"role": "user", "content": form.format(question)}, {"role": "assistant", "content": answer}])
        for form, (question, answer) in product(forms, ANSWERS.items())
    ]


def add_dataset(workspace: Workspace, name: str, kind: Kind, train: list[Record], evaluation: list[Record]) -> str:
    dataset_id = new_id("dataset", name)
    folder = workspace.home.datasets / dataset_id
    folder.mkdir()
    for split, rows in ((splits.TRAIN, train), (splits.EVAL, evaluation)):
        splits.write(splits.split_file(folder, split), kind, rows)
    workspace.store.add_artifact(dataset_id, "dataset", name, {"path": str(folder), "kind": kind}, parents=[])
    return dataset_id


def train(base: Path) -> Any:
    """The toy with a LoRA that knows the shop."""
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules="all-linear")
    tuned = get_peft_model(model, config)
    template = ChatTemplate(base)
    rows = [template.encode(record.messages) for record in conversations(TRAINED)]
    longest = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([[*ids, *[0] * (longest - len(ids))] for ids, _ in rows])
    labels = torch.tensor(
        [
            [i if m else -100 for i, m in zip(ids, mask, strict=True)] + [-100] * (longest - len(ids))
            for ids, mask in rows
        ]
    )
    optimizer = torch.optim.AdamW([p for p in tuned.parameters() if p.requires_grad], lr=6e-3)
    for _ in range(STEPS):
        loss = tuned(input_ids=ids, attention_mask=(ids != 0).long(), labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return tuned


def add_adapter(workspace: Workspace, name: str, base: Path, dataset_id: str, form: str, model: Any) -> str:
    adapter_id = new_id("adapter", name)
    folder = workspace.home.adapters / adapter_id
    model.save_pretrained(str(folder))
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        shutil.copyfile(base / file, folder / file)
    document = {
        "path": str(folder), "form": form, "base_model": "toy", "base_path": str(base), "dataset_id": dataset_id,
        "method": "sft", "training": {"load_in_4bit": False}, "max_seq_length": 256, "enable_thinking": False,
    }  # fmt: skip
    workspace.store.add_artifact(adapter_id, "adapter", name, document, parents=[dataset_id])
    return adapter_id


class Counted(Engine):
    """The engine, and what was asked of it."""

    generated = late = 0
    loaded: list[str] = []  # noqa: RUF012 - one engine at a time
    # Called once, at the 20th token; what comes after is counted as late.
    cancel: Callable[[], object] | None = None

    def load(self, subject: Any) -> None:
        if not self.loaded or self.loaded[-1] != subject.base:
            self.loaded.append(subject.base)
        super().load(subject)

    def generate(self, requests: Any, *, on_token: Any, **options: Any) -> Any:
        tokens = 0

        def counting(index: int, token: int) -> bool:
            nonlocal tokens
            tokens += 1
            Counted.late += tokens > CANCEL_AT and Counted.cancel is not None
            if tokens == CANCEL_AT and Counted.cancel is not None:
                Counted.cancel()
            return on_token(index, token)

        made = super().generate(requests, on_token=counting, **options)
        Counted.generated += len(requests)
        return made


def submit(workspace: Workspace, spec: dict[str, Any]) -> str:
    """A validate job with this spec that no worker knows of."""
    job_id = new_id("job", "validate")
    jobs.folder(workspace, job_id).mkdir()
    workspace.store.execute(
        "INSERT INTO jobs(id, kind, state, needs_device, spec, created_at) VALUES (?,'validate','queued',0,?,?)",
        job_id, json.dumps(spec), time.time(),
    )  # fmt: skip
    return job_id


def run(workspace: Workspace, job_id: str) -> dict[str, Any]:
    """Runs the job in this process; what came of it, and what the engine was asked."""
    Counted.generated, Counted.loaded = 0, []
    told: list[dict[str, Any]] = []

    def tell(context: JobContext, phase: str, done: float = 0, total: float = 0, **details: Any) -> None:
        told.append({"phase": phase, "done": done, "total": total, **details})

    with mock.patch.object(JobContext, "progress", tell):
        state = worker.run_job(workspace, job_id)
    row = workspace.store.job(job_id)
    return {
        "job_id": job_id, "state": state, "result": row["result"], "error": row["error"],
        "generated": Counted.generated, "loaded": Counted.loaded,
        "progress": told, "events": [event["code"] for event in workspace.store.events(job_id)],
    }  # fmt: skip


def run_in_a_process_that_is_killed(workspace: Workspace, job_id: str) -> dict[str, Any]:
    """Runs the job in a fork, which saves the imports, until its journal has two lines; then as if it was restarted."""
    folder = jobs.folder(workspace, job_id)
    journal = folder / answering.JOURNAL
    child = os.fork()
    if child == 0:
        worker.run_job(Workspace.open(workspace.home.root), job_id)
        os._exit(0)
    while not journal.is_file() or journal.read_bytes().count(b"\n") < 2:
        if os.waitpid(child, os.WNOHANG) != (0, 0):
            raise RuntimeError("the job ended before it could be killed")
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    kept = journal.read_bytes()
    left = sorted(path.name for path in folder.iterdir())
    jobs.move(workspace, job_id, (jobs.State.RUNNING,), jobs.State.QUEUED)
    resumed = run(workspace, job_id)
    return resumed | {
        "kept": kept.decode("ascii"), "left": left, "journal": journal.read_text(encoding="ascii"),
    }  # fmt: skip


def run_cancelled(workspace: Workspace, job_id: str) -> dict[str, Any]:
    """Runs the job, cancels it between two tokens, and resumes it."""
    Counted.late, Counted.cancel = 0, lambda: jobs.cancel(workspace, job_id)
    with mock.patch.object(jobs, "reconcile", lambda _: []):  # which would start a worker
        cancelled = run(workspace, job_id)
    Counted.cancel = None
    jobs.move(workspace, job_id, (jobs.State.CANCELLED,), jobs.State.QUEUED, cancel=None)
    return run(workspace, job_id) | {"state before": cancelled["state"], "late": Counted.late}


def main(root: Path, out: Path) -> None:
    torch.set_num_threads(1)
    workspace = Workspace.open(root)
    base = toy.folder(workspace.home)
    shop = add_dataset(workspace, "shop", "sft", conversations(TRAINED), conversations(HELD_OUT))
    unsplit = add_dataset(workspace, "unsplit", "sft", conversations(TRAINED), [])
    log = [Record("text", text=f"Entry {n}: the shop in Oslo sold {n} cups of tea by the river.") for n in range(9)]
    texts = add_dataset(workspace, "log", "text", [], log)
    tuned = train(base)
    adapter = add_adapter(workspace, "shop", base, shop, "lora", tuned)
    careless = add_adapter(workspace, "careless", base, unsplit, "lora", tuned)
    whole = add_adapter(workspace, "whole", base, shop, "full", tuned.merge_and_unload())

    answering.Engine = Counted
    asked: dict[str, dict[str, Any]] = {
        "held out": {"adapter_id": adapter, "max_samples": 36},
        "trained on": {"adapter_id": careless, "max_samples": 9, "pairs": 2},
        "texts": {"adapter_id": adapter, "dataset_id": texts},
        "whole": {"adapter_id": whole, "max_samples": 36},
        "prompts": {
            "adapter_id": adapter, "domain": "medicine",
            "prompts": ["Where is the shop?", "What is 2 plus 2?", "误食强酸后怎么办？"],
        },
    }  # fmt: skip
    specs = {
        name: request.check(workspace, max_new_tokens=MAX_NEW_TOKENS, **arguments) for name, arguments in asked.items()
    }
    facts = {"killed": run_in_a_process_that_is_killed(workspace, submit(workspace, specs["held out"]))}
    with mock.patch.object(answering, "REPORT_EVERY_S", 0):
        facts["cancelled"] = run_cancelled(workspace, submit(workspace, specs["prompts"]))
    facts |= {name: run(workspace, submit(workspace, spec)) for name, spec in specs.items()}
    workspace.store.close()
    files.write_json(out, facts)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
