"""Trains the toy on pairs or judged answers and writes down what came of it; a process of its own for Unsloth's sake.

Run as `python preference_runs.py METHOD HOME OUT`: HOME is a data home with the trained toy, OUT becomes JSON.
"""

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

# Before transformers.
import tunewright.pipeline.backend  # noqa: F401  # pyright: ignore[reportUnusedImport]

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tunewright.pipeline import models
from tunewright.pipeline.chat_template import ChatTemplate
from tunewright.pipeline.context import JobContext
from tunewright.pipeline.data import splits
from tunewright.pipeline.data.rows import Message, Record
from tunewright.pipeline.errors import TunewrightError
from tunewright.pipeline.training import kto, loading, preference
from tunewright.pipeline.training.arguments import TrainingArguments
from tunewright.pipeline.training.run import Run
from tunewright.pipeline.workspace import Workspace

QUESTIONS = [f"What is {thing}?" for thing in ("rain", "snow", "a book", "a clock", "bread", "tea", "a key", "music")]
FORMS = ("{}", "Please tell me: {}", "Hello! {}", "I want to know. {}", "{} Say it now.", "Can you help me? {}")
POLITE = ("Thank you. I can help you with {}.", "Good day to you! I tell you of {}.")
RUDE = ("No. I do not help you with {}.", "You are bad. Go, with {}.")
CHOSEN: dict[str, Any] = {
    "finetuning_type": "lora", "load_in_4bit": False, "max_seq_length": 128, "packing": False, "batch_size": 4,
    "gradient_accumulation": 1, "gradient_checkpointing": "none", "precision": "fp32", "learning_rate": 2e-3,
    "lr_scheduler": "linear", "warmup_ratio": 0.05,
    "epochs": 2.0, "lora_rank": 8, "lora_alpha": 16, "optimizer": "adamw_torch", "beta": 0.1,
    "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "eval_steps": 5, "save_steps": 10,
}  # fmt: skip


def say(role: str, content: str, **more: Any) -> Message:
    return {"role": role, "content": content, **more}


def pairs() -> tuple[list[Record], list[Record]]:
    """Polite answers against rude ones: 36 pairs to train on, 12 about other things held out."""
    made = [
        Record(
            "preference",
            [say("user", form.format(question))],
            chosen=[say("assistant", POLITE[number % 2].format(question[8:-1]))],
            rejected=[say("assistant", RUDE[number % 2].format(question[8:-1]))],
        )
        for question in QUESTIONS
        for number, form in enumerate(FORMS)
    ]
    return made[:36], made[36:]


def judged() -> tuple[list[Record], list[Record]]:
    """The same answers one by one, twice as many good ones as bad ones to train on; sorted, as files often are."""
    train, held_out = pairs()
    good, bad = ([single(pair, label) for pair in train] for label in (True, False))
    return [*good, *bad[:18]], [single(pair, label) for label in (True, False) for pair in held_out]


def single(pair: Record, label: bool) -> Record:
    return Record("kto", [*pair.messages, *(pair.chosen if label else pair.rejected)], label=label)


def odd_pairs() -> list[Record]:
    """With an earlier turn, with a tool's result in the answer, cut, cut off whole, and the same as far as it goes."""
    question, long = [say("user", "What is tea?")], "tea " * 200
    called = {"type": "function", "function": {"name": "look", "arguments": {"word": "tea"}}}
    looked = [say("assistant", "", tool_calls=[called]), say("tool", "a drink"), say("assistant", "A drink.")]
    return [
        Record(
            "preference", [*question, say("assistant", "A hot drink."), say("user", "Thanks")],
            chosen=[say("assistant", "You are welcome.")], rejected=[say("assistant", "Go.")],
        ),
        Record("preference", question, chosen=looked, rejected=[say("assistant", "No.")]),
        Record("preference", question, chosen=[say("assistant", long)], rejected=[say("assistant", "No.")]),
        Record(
            "preference", [say("user", long)], chosen=[say("assistant", "Yes.")], rejected=[say("assistant", "No.")]
        ),
        Record(
            "preference", question,
            chosen=[say("assistant", long)], rejected=[say("assistant", long + "no")],
        ),
    ]  # fmt: skip


def a_run(
    workspace: Workspace, name: str, method: str, train: list[Record], held_out: list[Record], **arguments: Any
) -> Run:
    dataset, job = workspace.home.root / f"{name}-rows", workspace.home.jobs / name
    for folder in (dataset, job):
        folder.mkdir()
    kind = "kto" if method == "kto" else "preference"
    splits.write(splits.split_file(dataset, splits.TRAIN), kind, train)
    splits.write(splits.split_file(dataset, splits.EVAL), kind, held_out)
    spec = {"dataset_id": name, "model": "toy", "method": method, "continue_from": None}
    workspace.store.execute(
        "INSERT INTO jobs(id, kind, state, needs_device, spec, created_at) VALUES (?,'finetune','running',1,?,?)",
        name, json.dumps(spec), time.time(),
    )  # fmt: skip
    base = models.resolve(workspace, "toy")
    assert base.folder
    complete = TrainingArguments(**CHOSEN | arguments).model_dump()
    return Run(JobContext(workspace, name, spec, job), method, complete, base, ChatTemplate(base.folder), dataset)


def log_prob(model: Any, ids: list[int], mask: list[int]) -> float:
    """Of the tokens that the mask marks, summed; by a plain forward pass."""
    row = torch.tensor([ids])
    with torch.no_grad():
        logits = model(input_ids=row).logits[0, :-1].float()
    picked = logits.log_softmax(-1).gather(1, row[0, 1:, None])[:, 0]
    return float(picked[torch.tensor(mask[1:]).bool()].sum())


def gains(run: Run, adapter: Path, rows: list[tuple[list[int], list[int]]]) -> list[float]:
    """By how much the adapter, as stored, raised the log-probability of each answer, over the base as published."""
    plain = plain_base(run)
    before = [log_prob(plain, *row) for row in rows]
    trained = PeftModel.from_pretrained(plain, str(adapter)).eval()
    return [log_prob(trained, *row) - old for row, old in zip(rows, before, strict=True)]


def plain_base(run: Run) -> Any:
    return AutoModelForCausalLM.from_pretrained(run.base.loadable, dtype=torch.float32).eval()


def train(run: Run) -> dict[str, Any]:
    """The run's figures: what was stored, what was logged, and the gain in log-probability of the held-out answers."""
    method = kto if run.method == "kto" else preference
    data = method.encode(run)
    loaded = loading.load(run)
    trainable = sum(p.numel() for p in loaded.model.parameters() if p.requires_grad)
    trainer = method.build(run, loaded, data)
    after = sum(p.numel() for p in loaded.model.parameters() if p.requires_grad)
    batch = next(iter(trainer.get_train_dataloader()))
    first_loss = float(trainer.compute_loss(loaded.model.train(), dict(batch)).detach())
    trainer._metrics["train"].clear()
    trainer.train()
    adapter = run.context.folder / "adapter"
    loaded.model.save_pretrained(str(adapter))
    held_out: Any = data.evaluation
    sides = ("input_",) if run.method == "kto" else ("chosen_", "rejected_")
    found = {side: gains(run, adapter, [(row[f"{side}ids"], row[f"{side}mask"]) for row in held_out]) for side in sides}
    return {
        "gains": found, "log": trainer.state.log_history, "count": data.count, "tokens": data.tokens,
        "steps": trainer.state.global_step, "trainable": [trainable, after],
        "fed": trainer.train_dataset.to_list() if run.method == "kto" else [],
        "batch": {name: values.tolist() for name, values in batch.items()},
        "held_out_labels": data.evaluation["label"][:] if run.method == "kto" else [],
        "trained_tokens": data.trained_tokens, "first_loss": first_loss,
        "weights": [trainer.args.desirable_weight, trainer.args.undesirable_weight] if run.method == "kto" else [],
        "adapters": sorted(path.name for path in adapter.iterdir() if path.is_dir()),
        "checkpoint_folders": [path.name for path in run.context.folder.glob("checkpoints/*/*") if path.is_dir()],
        "first_loss_by_hand": by_hand(run, batch) if run.method == "orpo" else None,
    }  # fmt: skip


def by_hand(run: Run, batch: dict[str, torch.Tensor]) -> float:
    """ORPO's loss (Eqs. 6 and 7 of arXiv:2403.07691) of the base, from a plain forward pass for each answer."""
    plain, means, total, count = plain_base(run), [], 0.0, 0
    rows = len(batch["input_ids"])
    for number in range(rows):
        length = int(batch["attention_mask"][number].sum())
        ids, mask = (batch[name][number][:length].tolist() for name in ("input_ids", "completion_mask"))
        summed = log_prob(plain, ids, mask)
        means.append(summed / sum(mask))
        if number < rows // 2:
            total, count = total + summed, count + sum(mask)
    log_odds = [mean - math.log1p(-math.exp(mean)) for mean in means]
    margins = [good - bad for good, bad in zip(log_odds[: rows // 2], log_odds[rows // 2 :], strict=True)]
    preferred = sum(math.log1p(math.exp(-margin)) for margin in margins) / len(margins)
    return -total / count + run.arguments["beta"] * preferred


def references(run: Run) -> dict[str, list[float]]:
    """Log-probabilities of the held-out answers: the reference's of a run that starts from an adapter which has learnt
    something, that adapter's own, and the base's.
    """
    method, side = (kto, "input_") if run.method == "kto" else (preference, "chosen_")
    data, loaded = method.encode(run), loading.load(run)
    torch.manual_seed(0)
    for name, weight in loaded.model.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(std=0.05)
    rows = [(row[f"{side}ids"], row[f"{side}mask"]) for row in data.evaluation]
    own = [log_prob(loaded.model.eval(), *row) for row in rows]
    trainer = method.build(run, loaded, data)
    base = plain_base(run)
    name = "ref_logps" if run.method == "kto" else "ref_chosen_logps"
    return {"reference": trainer.eval_dataset[name][:], "own": own, "base": [log_prob(base, *row) for row in rows]}


def encoded(run: Run) -> dict[str, Any]:
    method = kto if run.method == "kto" else preference
    data = method.encode(run)
    events = [(row["code"], row["message"]) for row in run.context.workspace.store.events(run.context.job_id)]
    return {"rows": data.train.to_list(), "count": data.count, "truncated": data.truncated, "left_out": data.left_out,
            "tokens": data.tokens, "events": events}  # fmt: skip


def refused(run: Run) -> str:
    try:
        encoded(run)
    except TunewrightError as error:
        return str(error)
    return ""


def main(method: str, home: str, out: str) -> None:
    torch.set_num_threads(1)  # whatever the machine has, the numbers are the same
    workspace = Workspace.open(Path(home))
    found: dict[str, Any] = {}
    if method == "kto":
        rows, held_out = judged()
        small = {"batch_size": 1, "gradient_accumulation": 4, "epochs": 1.0, "learning_rate": 4e-3}
        found["run"] = train(a_run(workspace, "kto", "kto", rows, held_out, **small))
        odd = [single(pair, label) for pair, label in zip(odd_pairs(), (True, False, True, True, False), strict=True)]
        found["odd"] = encoded(a_run(workspace, "odd", "kto", odd, []))
        found["references"] = references(a_run(workspace, "warm", "kto", rows[:4], held_out[:4]))
        found["refused"] = refused(a_run(workspace, "one", "kto", rows[:1], []))
        found["even"] = kto.weights(a_run(workspace, "even", "kto", [], []), 40, 35)
        found["rare"] = kto.weights(a_run(workspace, "rare", "kto", [], []), 10, 40)
        found["one_sided"] = kto.weights(a_run(workspace, "same", "kto", [], []), 10, 0)
    else:
        rows, held_out = pairs()
        found["dpo"] = train(a_run(workspace, "dpo", "dpo", rows, held_out))
        found["orpo"] = train(a_run(workspace, "orpo", "orpo", rows, held_out, beta=1.0))
        found["odd"] = encoded(a_run(workspace, "odd", "dpo", odd_pairs(), []))
        found["drawn"] = encoded(a_run(workspace, "few", "dpo", rows, held_out, max_steps=2))
        found["references"] = references(a_run(workspace, "warm", "dpo", rows[:4], held_out[:4]))
        found["refused"] = refused(a_run(workspace, "none", "dpo", odd_pairs()[3:], []))
        head = a_run(workspace, "head", "dpo", rows, [], target_modules=["q_proj", "lm_head"])
        found["head"] = refused(head)
    Path(out).write_text(json.dumps(finite(found)), encoding="utf-8")


def finite(value: Any) -> Any:
    """JSON has no NaN: they become None, which no assertion takes for a number."""
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


if __name__ == "__main__":
    main(*sys.argv[1:])
