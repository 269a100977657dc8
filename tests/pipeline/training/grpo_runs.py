"""Trains the toy by reward and writes down what came of it; a process of its own for Unsloth's sake.

Run as `python grpo_runs.py HOME OUT`: HOME is a data home with the trained toy, OUT becomes JSON.
"""

import json
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Before transformers.
import tunewright.pipeline.backend  # noqa: F401

import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tunewright.pipeline import models
from tunewright.pipeline.chat_template import ChatTemplate
from tunewright.pipeline.context import JobContext
from tunewright.pipeline.data import splits
from tunewright.pipeline.data.rows import Message, Record
from tunewright.pipeline.errors import TunewrightError
from tunewright.pipeline.training import checkpoints, grpo, loading
from tunewright.pipeline.training.arguments import TrainingArguments
from tunewright.pipeline.training.reward_functions import score
from tunewright.pipeline.training.rewards import Reward
from tunewright.pipeline.training.run import Data, Run
from tunewright.pipeline.workspace import Workspace

THINGS = ("rain", "snow", "a book", "a clock", "bread", "tea", "a key", "music")
FORMS = ("What is {}?", "Please tell me: What is {}?", "Hello! What is {}?", "What is {}? Say it now.")
SHORT: dict[str, Any] = {"kind": "length", "max_words": 2}
CHOSEN: dict[str, Any] = {
    "finetuning_type": "lora", "load_in_4bit": False, "max_seq_length": 96, "packing": False, "batch_size": 16,
    "gradient_accumulation": 2, "gradient_checkpointing": "none", "precision": "fp32", "learning_rate": 4e-3,
    "epochs": 1.0, "lora_rank": 8, "lora_alpha": 16, "optimizer": "adamw_torch", "beta": 0.0, "num_generations": 8,
    "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "save_steps": 1000, "max_completion_length": 24, "rewards": [SHORT],
    "lr_scheduler": "linear", "warmup_ratio": 0.05, "weight_decay": 0.01, "max_grad_norm": 1.0,
}  # fmt: skip
LEARNING_STEPS = 16
# Three steps an epoch: the checkpoint is of the middle of the second.
RESUMED: dict[str, Any] = {
    "epochs": 3.0, "batch_size": 8, "gradient_accumulation": 1, "save_steps": 5, "beta": 0.05, "lora_dropout": 0.1,
    "temperature": 1.5, "rewards": [{"kind": "length", "min_words": 6}],
}  # fmt: skip
LONG_ANSWER = "It is good to know that tea is hot."


def say(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def asked(question: str, answer: str = LONG_ANSWER, **more: Any) -> Record:
    return Record("sft", [say("user", question), say("assistant", answer)], **more)


def questions() -> tuple[list[Record], list[Record]]:
    """24 to train on; 8 about other things held out."""
    made = [asked(form.format(thing)) for thing in THINGS for form in FORMS]
    return made[:24], made[24:]


def a_run(
    workspace: Workspace, name: str, train: Sequence[Record], held_out: Sequence[Record] = (), *,
    continue_from: str | None = None, **arguments: Any,
) -> Run:  # fmt: skip
    dataset, job = workspace.home.root / f"{name}-rows", workspace.home.jobs / name
    for folder in (dataset, job):
        folder.mkdir()
    splits.write(splits.split_file(dataset, splits.TRAIN), "sft", train)
    splits.write(splits.split_file(dataset, splits.EVAL), "sft", held_out)
    spec = {"dataset_id": name, "model": "toy", "method": "grpo", "continue_from": continue_from}
    workspace.store.execute(
        "INSERT INTO jobs(id, kind, state, needs_device, spec, created_at) VALUES (?,'finetune','running',1,?,?)",
        name, json.dumps(spec), time.time(),
    )  # fmt: skip
    base = models.resolve(workspace, "toy")
    assert base.folder
    complete = TrainingArguments(**CHOSEN | arguments).model_dump()
    template = ChatTemplate(base.folder, enable_thinking=complete["enable_thinking"])
    return Run(JobContext(workspace, name, spec, job), "grpo", complete, base, template, dataset)


def events(run: Run) -> list[tuple[str, str]]:
    return [(row["code"], row["message"]) for row in run.context.workspace.store.events(run.context.job_id)]


def greedy_rewards(run: Run, adapter: Path | None, rows: Sequence[dict[str, str]]) -> list[float]:
    """Of the likeliest answer to each prompt, by plain transformers: neither TRL nor Unsloth has a hand in it."""
    model: Any = AutoModelForCausalLM.from_pretrained(run.base.loadable, dtype=torch.float32)
    if adapter:
        model = PeftModel.from_pretrained(model, str(adapter))
    model.eval()
    (rule,) = run.arguments["rewards"]
    return [score(Reward(**rule), greedy(model, run.template, row["prompt"]), row["reference"]) for row in rows]


def greedy(model: Any, template: ChatTemplate, prompt: str) -> str:
    ids = template.ids(prompt)
    row = model.generate(
        input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long), do_sample=False,
        temperature=None, top_p=None, top_k=None, max_new_tokens=CHOSEN["max_completion_length"],
    )  # fmt: skip
    return template.tokenizer.decode(row[0, len(ids) :].tolist(), skip_special_tokens=True)


def learn(run: Run) -> dict[str, Any]:
    data = grpo.encode(run)
    loaded = loading.load(run)
    trainer = grpo.build(run, loaded, data)
    trainer.train()
    adapter = run.context.folder / "adapter"
    loaded.model.save_pretrained(str(adapter))
    store = run.context.workspace.store
    store.add_artifact("ad-short", "adapter", "short", {"path": str(adapter), "base_model": "toy"}, parents=[])
    held_out = data.evaluation.to_list()
    log = trainer.state.log_history
    return {
        "log": log, "events": events(run), "steps": trainer.state.global_step,
        "before": greedy_rewards(run, None, held_out), "after": greedy_rewards(run, adapter, held_out),
        "tokens_seen": trainer.tokens_seen, "tokens_with_loss": trainer.tokens_with_loss,
        "best_metric": trainer.state.best_metric,
        "adapters": sorted(path.name for path in adapter.iterdir() if path.is_dir()),
    }  # fmt: skip


def written(run: Run) -> list[dict[str, Any]]:
    """What the trainer's sampling writes for prompts of unlike lengths, at next to no temperature, and what plain
    transformers does for each alone.
    """
    data, loaded = grpo.encode(run), loading.load(run)
    trainer: Any = grpo.build(run, loaded, data)
    trainer.model.train()
    prompts = data.train["prompt"][:]
    ids, _, _ = trainer._tokenize_prompts(prompts)
    answers, _ = trainer._generate_single_turn(ids, None, {}, 1)
    plain = AutoModelForCausalLM.from_pretrained(run.base.loadable, dtype=torch.float32).eval()
    decode = run.template.tokenizer.decode
    return [
        {"ids": i, "expected_ids": run.template.ids(prompt), "answer": decode(answer),
         "alone": greedy(plain, run.template, prompt)}
        for prompt, i, answer in zip(prompts, ids, answers, strict=True)
    ]  # fmt: skip


def resume(run: Run) -> dict[str, Any]:
    """The same run twice: through, and again from its checkpoint, which is all that a kill leaves."""
    data = grpo.encode(run)
    through = one_leg(run, data, None)
    folder = checkpoints.folder(run.context.folder)
    for checkpoint in folder.iterdir():
        if checkpoint.name != f"checkpoint-{run.arguments['save_steps']}":
            shutil.rmtree(checkpoint) if checkpoint.is_dir() else checkpoint.unlink()
    found = checkpoints.newest(run.context.folder)
    assert found
    return {"through": through, "resumed": one_leg(run, data, found), "from": found.name}


def one_leg(run: Run, data: Data, checkpoint: Path | None) -> dict[str, Any]:
    loaded = loading.load(run)
    trainer = grpo.build(run, loaded, data)
    checkpoints.train(trainer, checkpoint)
    adapter = run.context.folder / ("resumed" if checkpoint else "through")
    loaded.model.save_pretrained(str(adapter))
    weights = load_file(adapter / "adapter_model.safetensors")
    rows = [row for row in trainer.state.log_history if "loss" in row]
    return {
        "reference_is_kept": "ref" in loaded.model.peft_config,
        "losses": [row["loss"] for row in rows], "rewards": [row["reward"] for row in rows],
        "kl": [row["kl"] for row in rows], "lengths": [row["completions/mean_length"] for row in rows],
        "weights": {name: tensor.flatten().tolist()[:50] for name, tensor in weights.items()},
    }  # fmt: skip


def rates(run: Run) -> list[float]:
    trainer: Any = grpo.build(run, loading.load(run), grpo.encode(run))
    return sorted({group["lr"] for group in trainer.create_optimizer().param_groups})


def encoded(run: Run) -> dict[str, Any]:
    data = grpo.encode(run)
    return {
        "rows": data.train.to_list(), "eval_rows": len(data.evaluation), "count": data.count, "tokens": data.tokens,
        "left_out": data.left_out, "events": events(run),
    }  # fmt: skip


def refused(run: Run) -> str:
    try:
        grpo.encode(run)
    except TunewrightError as error:
        return str(error)
    return ""


def judged(run: Run) -> dict[str, Any]:
    """What the functions that TRL is given say of answers, and what became of a pattern without an end."""
    rules = [
        SHORT, {"kind": "exact_match"}, {"kind": "length", "min_words": 4}, {"kind": "regex", "pattern": "(a|aa)+$"},
        {"kind": "format", "sections": ["<think>", ""]},
    ]  # fmt: skip
    functions = grpo.reward_functions(run.context, [Reward(**rule) for rule in rules])
    endless = "a" * 20000 + "b"
    answers = {
        "prompts": ["p", "p", "p <think>\n", "p"], "reference": ["Yes it is", "No", "No", "No"],
        "completions": ["Yes  it is", "a </think> No", "a </think> No", endless],
    }  # fmt: skip
    scores = {function.__name__: function(**answers, trainer_state=None) for function in functions}
    return {"scores": scores, "events": events(run)}


def odd(workspace: Workspace) -> dict[str, Any]:
    tool = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object", "properties": {}}}}
    talk = [say("user", "Hello"), say("assistant", "Hello!"), *asked("What is tea?", "A drink.").messages]
    rows = [Record("sft", talk), asked("What is tea?", tools=[tool]), asked("tea " * 600)]
    thought = [{"kind": "format", "sections": ["<think>", ""]}]
    thinking = a_run(workspace, "thinking", rows[:1], enable_thinking=True, rewards=thought)
    shut = a_run(workspace, "shut", rows[:1], rewards=thought)
    numbers = [asked("2 + 2?", "4"), asked("Tea?", "Yes")]
    return {
        "odd": encoded(a_run(workspace, "odd", rows, [asked("Hi")] * 70, max_seq_length=600)),
        "thinking": encoded(thinking), "shut": encoded(shut),
        "numbers": encoded(a_run(workspace, "numbers", numbers, rewards=[{"kind": "numeric_match"}])),
        "no_numbers": refused(a_run(workspace, "none", numbers[1:], rewards=[{"kind": "numeric_match"}])),
        "too_long": refused(a_run(workspace, "long", rows[2:3])),
        "no_room": refused(a_run(workspace, "room", rows[:1], max_completion_length=96)),
        "head": refused(a_run(workspace, "head", rows[:1], target_modules=["q_proj", "lm_head"])),
        "judged": judged(a_run(workspace, "judged", rows)),
    }  # fmt: skip


def main(home: str, out: str) -> None:
    torch.set_num_threads(1)  # whatever the machine has, the numbers are the same
    workspace = Workspace.open(Path(home))
    rows, held_out = questions()
    found = odd(workspace)
    found["learnt"] = learn(
        a_run(workspace, "learn", rows, held_out, max_steps=LEARNING_STEPS, eval_steps=LEARNING_STEPS // 2, beta=0.01)
    )
    cold = {"temperature": 0.001, "gradient_checkpointing": "unsloth"}
    found["written"] = written(a_run(workspace, "written", rows[:8], **cold))
    found["rates"] = rates(a_run(workspace, "rates", rows[:8], loraplus_ratio=16, embedding_learning_rate=1e-4))
    found["resume"] = resume(a_run(workspace, "resume", rows[:3], continue_from="ad-short", **RESUMED))
    found["batches"] = [
        [
            [batch, accumulation, group, prompts],
            grpo.batches(
                a_run(
                    workspace, f"b{number}", [], batch_size=batch, gradient_accumulation=accumulation,
                    num_generations=group,
                ),
                prompts,
            ),
        ]
        for number, (batch, accumulation, group, prompts) in enumerate(
            [(16, 2, 8, 24), (2, 4, 8, 24), (3, 3, 8, 24), (1, 1, 8, 24), (16, 4, 8, 3), (5, 1, 2, 1), (64, 1, 8, 24)]
        )
    ]  # fmt: skip
    Path(out).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
