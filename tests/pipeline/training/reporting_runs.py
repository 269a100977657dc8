"""Trains a tiny random model under Unsloth's trainers, well and ill, and writes down what the Reporter made of it.

`python reporting_runs.py TOKENIZER FOLDER` in a process of its own, as Unsloth must be imported before transformers:
FOLDER/seen.json. The tests assert.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Before transformers.
import tunewright.pipeline.backend  # noqa: F401

import torch
from datasets import Dataset
from transformers import AutoTokenizer, EarlyStoppingCallback, Qwen3Config, Qwen3ForCausalLM, TrainerCallback
from trl.experimental.utils import DPODataCollatorWithPadding
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from tunewright.pipeline.context import JobContext
from tunewright.pipeline.training.reporting import Counting, Reporter, named
from tunewright.pipeline.training.run import Data
from tunewright.pipeline.workspace import Workspace

LENGTHS = [5, 9, 12, 20, 7, 7, 16, 11, 6, 18, 10, 8, 13, 15, 9, 14]
Change = Callable[[torch.nn.Module], None]


class CountingSupervised(Counting, SFTTrainer):
    pass


class CountingPreference(Counting, DPOTrainer):
    pass


class NoTrainer:
    def compute_loss(self, *_: Any) -> float:
        return 0.0


class Counter(Counting, NoTrainer):
    """Counts batches without training on them."""


def counted(batch: dict[str, Any], *, training: bool = True) -> list[int]:
    counter = Counter()
    counter.compute_loss(torch.nn.Identity().train(training), batch)
    return [counter.tokens_seen, counter.tokens_with_loss]


def batches() -> dict[str, list[int]]:
    """Tokens read and tokens with loss of a batch of each method, by its own collator, of rows of unlike length."""
    judged = [
        {"prompt_ids": [1, 2, 3], "completion_ids": [4, 5], "KL_completion_ids": [6], "label": True},
        {"prompt_ids": [7], "completion_ids": [9], "KL_completion_ids": [10, 11, 12], "label": False},
    ]
    pairs = [
        {
            f"{side}_{name}": values
            for side, length in (("prompt", 2), ("chosen", 2 + answer), ("rejected", 3))
            for name, values in (
                ("input_ids", [5] * length), ("attention_mask", [1] * length),
                ("labels", [-100] * 2 + [5] * (length - 2)),
            )
        }
        for answer in (1, 4)
    ]  # fmt: skip
    grpo = {
        "prompt_ids": torch.ones(2, 4), "prompt_mask": torch.tensor([[0, 1, 1, 1], [0, 0, 1, 1]]),
        "completion_ids": torch.ones(2, 3), "completion_mask": torch.tensor([[1, 1, 1], [1, 0, 0]]),
    }  # fmt: skip
    packed = {"input_ids": torch.ones(1, 30), "labels": torch.tensor([[-100] * 12 + [5] * 18])}
    return {
        "kto": counted(DataCollatorForUnpairedPreference(pad_token_id=0)(judged)),
        "orpo": counted(DPODataCollatorWithPadding()(pairs)),
        "grpo": counted(grpo),
        "packed": counted(packed),
        "evaluated": counted(packed, training=False),
    }


class Meddler(TrainerCallback):
    """Does something at the end of a step, before the Reporter hears of it."""

    def __init__(self, step: int, act: Callable[[Any], None]) -> None:
        self._step, self._act = step, act

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if state.global_step == self._step:
            self._act(model)


def scale_weights(factor: float) -> Change:
    def change(model: torch.nn.Module) -> None:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(factor)

    return change


def rows(lengths: list[int], *, masked: bool = False) -> Dataset:
    """Counting upwards from changing numbers, which a tiny model learns in a few steps; loss on the second half."""
    ids = [[10 + (row * 7 + place) % 90 for place in range(length)] for row, length in enumerate(lengths)]
    labels = [
        [-100] * (len(row) if masked else len(row) // 2) + ([] if masked else row[len(row) // 2 :]) for row in ids
    ]
    return Dataset.from_dict({"input_ids": ids, "labels": labels})


class Stage:
    """One home, one model for each run."""

    def __init__(self, tokenizer: str, folder: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(tokenizer)
        self.folder = folder
        self.workspace = Workspace.open(folder / "home")

    def context(self, name: str, spec: dict[str, Any]) -> JobContext:
        if not self.workspace.store.rows("SELECT id FROM jobs WHERE id=?", name):
            self.workspace.store.execute(
                "INSERT INTO jobs(id, kind, state, needs_device, spec, created_at, started_at) "
                "VALUES (?, 'finetune', 'running', 1, ?, 1, 2)",
                name, json.dumps(spec),
            )  # fmt: skip
        return JobContext.of(self.workspace, name)

    def model(self) -> Qwen3ForCausalLM:
        torch.manual_seed(1)
        config = Qwen3Config(
            vocab_size=len(self.tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=1,
            num_attention_heads=2, num_key_value_heads=1, head_dim=16,
        )  # fmt: skip
        return Qwen3ForCausalLM(config)

    def run(
        self, name: str, *callbacks: Any, method: str = "sft", masked: bool = False, resume: str | None = None,
        truncated: int = 0, **config: Any,
    ) -> dict[str, Any]:  # fmt: skip
        """Trains and returns everything that can be seen of it."""
        context = self.context(name, {"method": method, "arguments": {"learning_rate": 1e-2}})
        train, evaluation = rows(LENGTHS, masked=masked), rows([8, 9, 10, 11])
        data = Data(train, evaluation, len(train), sum(LENGTHS), truncated=truncated)
        chosen = {
            "output_dir": str(self.folder / name), "per_device_train_batch_size": 4, "max_steps": 12, "seed": 5,
            "per_device_eval_batch_size": 4, "learning_rate": 1e-2, "logging_steps": 1, "logging_first_step": True,
            "eval_strategy": "steps", "eval_steps": 3, "save_strategy": "steps", "save_steps": 3, "report_to": "none",
            "disable_tqdm": True, "metric_for_best_model": "eval_loss", "greater_is_better": False, "bf16": False,
            "use_cpu": True, "gradient_checkpointing": False,
        } | config  # fmt: skip
        trainer = CountingSupervised(
            model=self.model(), processing_class=self.tokenizer, train_dataset=train, eval_dataset=evaluation,
            args=SFTConfig(**chosen, max_length=64, dataset_kwargs={"skip_prepare_dataset": True}),
        )  # fmt: skip
        return self.watched(context, trainer, data, callbacks, resume)

    def preference(self) -> dict[str, Any]:
        context = self.context("dpo", {"method": "dpo", "arguments": {}})
        prompts = ["Count upwards", "Say a colour", "What is tea?", "Tell me more"]
        pairs = Dataset.from_dict(
            {"prompt": prompts, "chosen": [" yes please"] * 4, "rejected": [" no, never at all"] * 4}
        )
        trainer = CountingPreference(
            model=self.model(), ref_model=self.model(), processing_class=self.tokenizer, train_dataset=pairs,
            eval_dataset=pairs, args=DPOConfig(
                output_dir=str(self.folder / "dpo"), per_device_train_batch_size=2, max_steps=4, logging_steps=1,
                eval_strategy="steps", eval_steps=4, save_strategy="no", report_to="none", disable_tqdm=True,
                bf16=False, use_cpu=True, gradient_checkpointing=False, learning_rate=1e-3,
            ),
        )  # fmt: skip
        data = Data(trainer.train_dataset, trainer.train_dataset, 4, 0)
        columns = ("prompt_ids", "chosen_ids", "rejected_ids")
        lengths = [[len(row[column]) for column in columns] for row in trainer.train_dataset]
        return self.watched(context, trainer, data, (), None) | {"lengths": lengths}

    def watched(
        self, context: JobContext, trainer: Any, data: Data, callbacks: tuple[Any, ...], resume: str | None
    ) -> dict[str, Any]:  # fmt: skip
        reporter = Reporter(context, trainer, data)
        for callback in (*callbacks, reporter):
            trainer.add_callback(callback)
        trainer.train(resume_from_checkpoint=resume)
        store, job_id = self.workspace.store, context.job_id
        numbers = {
            split: {row["step"]: row["numbers"] for row in store.metrics(job_id, split)}
            for split in ("train", "eval", "run")
        }
        output = Path(trainer.args.output_dir)
        return numbers | {
            "events": [[event["level"], event["code"], event["message"]] for event in store.events(job_id)],
            "progress": store.job(job_id)["progress"],
            "checkpoints": sorted(path.name for path in output.glob("checkpoint-*")),
            "tokens_seen": trainer.tokens_seen, "tokens_with_loss": trainer.tokens_with_loss,
            "cancelled": reporter.cancelled, "diverged": reporter.diverged, "stopped_early": reporter.stopped_early,
            "global_step": trainer.state.global_step,
        }  # fmt: skip


def main(tokenizer: str, folder: Path) -> None:
    stage = Stage(tokenizer, folder)

    def cancel(_: object) -> None:
        stage.workspace.store.execute("UPDATE jobs SET cancel='keep' WHERE id='cancelled'")

    seen = {
        "whole": stage.run("whole", truncated=4, method="cpt"),
        "masked": stage.run("masked", masked=True, max_steps=3),
        "nan": stage.run("nan", Meddler(7, scale_weights(float("nan")))),
        "blown": stage.run("blown", Meddler(30, scale_weights(20)), max_steps=60, eval_steps=10, save_steps=10),
        "cancelled": stage.run("cancelled", Meddler(5, cancel)),
        # No fall of the eval loss is large enough: the second evaluation is the first without a better loss.
        "early": stage.run("early", EarlyStoppingCallback(1, early_stopping_threshold=1e9)),
        "sparse": stage.run("sparse", max_steps=20, logging_steps=10),
        "before": stage.run("resumed", Meddler(8, scale_weights(float("nan"))), truncated=4),
    }
    checkpoint = str(stage.folder / "resumed" / "checkpoint-6")
    seen["resumed"] = stage.run("resumed", resume=checkpoint, truncated=4)
    seen["dpo"] = stage.preference()
    seen["batches"] = batches()
    seen["grpo_names"] = named({
        "loss": 0.0, "reward": torch.tensor(0.5), "rewards/length/mean": 0.25, "rewards/length/std": 1.0, "kl": None,
        "completions/mean_length": 31.5, "completions/clipped_ratio": float("nan"), "frac_reward_zero_std": 0.5,
        "step_time": 3.0, "num_tokens": 99, "grad_norm": float("inf"),
    })  # fmt: skip
    (folder / "seen.json").write_text(json.dumps(seen), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
