"""Training on single answers that are called good or bad: KTO (Ethayarajh et al. 2024, arXiv:2402.01306). Heavy.

Guarantees: ids, judged tokens and reference as in `preference`. Judged is the last answer alone. Rows are shuffled
once, by the seed: TRL reads them in their order, as each is paired with its neighbour's answer for the KL term.
"""

import random
from collections.abc import Sequence
from typing import Any

# Before trl.
import tunewright.pipeline.backend  # noqa: F401  # pyright: ignore[reportUnusedImport]

import torch
from datasets import Dataset
from trl.trainer.kto_config import KTOConfig
from trl.trainer.kto_trainer import KTOTrainer

from tunewright.pipeline.data import splits
from tunewright.pipeline.training.config import common
from tunewright.pipeline.training.loading import Loaded
from tunewright.pipeline.training.optimizers import optimizer
from tunewright.pipeline.training.preference import (
    Referenced,
    batch_of,
    columns,
    judged,
    records,
    refuse_adapted_head,
    shorten,
    steps_rows,
    tell_no_dropout,
)
from tunewright.pipeline.training.reporting import Counting
from tunewright.pipeline.training.run import Data, Run, nothing_to_train, tell_encoded

# The KL term is estimated from an answer to another row of the same micro-batch.
LEAST_BATCH = 2
# Eq. 8 of the paper: weight × rows of the good ones, divided by that of the bad ones, lies from 1 to 4/3.
LEAST_RATIO, GREATEST_RATIO = 1.0, 4 / 3


def encode(run: Run) -> Data:
    """Rows of `input_ids`, `input_mask` (1 on the last answer) and `label`.

    Raises InvalidInput where fewer than two can be used.
    """
    refuse_adapted_head(run)
    rows: dict[str, list[dict[str, Any]]] = {}
    truncated = left_out = 0
    batch, accumulation = batches(run)
    for split in (splits.TRAIN, splits.EVAL):
        rows[split] = []
        for record in records(run, split, steps_rows(run, batch * accumulation)):
            encoded = judged(run.template, record.messages[:-1], record.messages[-1:], record.tools)
            (ids, mask), cut = shorten(encoded, run)
            # The first token is never predicted.
            usable = any(mask[1:])
            if usable:
                rows[split].append(columns("input_", (ids, mask)) | {"label": bool(record.label)})
            if split == splits.TRAIN:
                truncated += cut
                left_out += not usable
        random.Random(run.arguments["seed"]).shuffle(rows[split])
    train = rows[splits.TRAIN]
    if len(train) < LEAST_BATCH:
        raise nothing_to_train(run, "(KTO needs two) has an answer")
    data = Data(
        Dataset.from_list(train), Dataset.from_list(rows[splits.EVAL]), len(train),
        sum(len(row["input_ids"]) for row in train), truncated, left_out,
        trained_tokens=sum(int(row["input_mask"].sum()) for row in train),
    )  # fmt: skip
    tell_encoded(run, data)
    return data


def build(run: Run, loaded: Loaded, data: Data) -> Any:
    """The trainer. It reads all rows once here, to know what the reference thinks of them. Raises Cancelled."""
    batch, accumulation = batches(run)
    if batch != run.arguments["batch_size"]:
        run.context.event(
            "info", "batch_raised", f"batch_size={batch}, gradient_accumulation={accumulation}: KTO needs two rows."
        )
    train, evaluation = (with_mismatched(rows, batch, run) for rows in (data.train, data.evaluation))
    labels: list[bool] = data.train["label"][:]
    good, bad = weights(run, sum(labels), len(labels) - sum(labels))
    settings: dict[str, Any] = common(run, with_eval=len(evaluation) > 0) | {
        "per_device_train_batch_size": batch, "per_device_eval_batch_size": batch,
        "gradient_accumulation_steps": accumulation, "remove_unused_columns": False,
        "beta": run.arguments["beta"], "max_length": run.arguments["max_seq_length"],
        "desirable_weight": good, "undesirable_weight": bad, "precompute_ref_log_probs": True,
    }  # fmt: skip
    tell_no_dropout(run)
    return KtoTrainer(
        context=run.context, model=loaded.model, processing_class=loaded.tokenizer, data_collator=collate,
        train_dataset=train, eval_dataset=evaluation if len(evaluation) else None, args=KTOConfig(**settings),
        optimizers=(optimizer(run, loaded.model), None),
    )  # fmt: skip


def batches(run: Run) -> tuple[int, int]:
    """Rows of a micro-batch, at least two, and micro-batches of a step, so that a step has as many rows as asked for,
    or one more.
    """
    batch, accumulation = run.arguments["batch_size"], run.arguments["gradient_accumulation"]
    if batch >= LEAST_BATCH:
        return batch, accumulation
    return LEAST_BATCH, -(-batch * accumulation // LEAST_BATCH)


def weights(run: Run, desirable: int, undesirable: int) -> tuple[float, float]:
    """Weights of the good and of the bad answers' losses: the rarer ones count more, as much as Eq. 8 needs."""
    if not desirable or not undesirable:
        run.context.event(
            "warning", "one_label", f"All {desirable + undesirable} answers have one label: nothing is told apart."
        )
        return 1.0, 1.0
    ratio = desirable / undesirable
    good, bad = max(1.0, LEAST_RATIO / ratio), max(1.0, ratio / GREATEST_RATIO)
    run.context.event(
        "info", "label_balance",
        f"{desirable} desirable and {undesirable} undesirable answers, weighted {good:.3g} and {bad:.3g}.",
    )  # fmt: skip
    return good, bad


def with_mismatched(rows: Dataset, batch: int, run: Run) -> Dataset:
    """Adds `kl_ids` and `kl_mask`: the row's prompt with the answer of the row before it in its micro-batch. A last row
    that is alone in its micro-batch is left out.
    """
    if len(rows) % batch == 1:
        rows = rows.select(range(len(rows) - 1))
    longest = {"longest": run.arguments["max_seq_length"]}
    return rows.map(_mismatched, batched=True, batch_size=batch, fn_kwargs=longest)


def _mismatched(part: dict[str, list[Any]], longest: int) -> dict[str, list[Any]]:
    begins = [mask.index(1) for mask in part["input_mask"]]
    made: dict[str, list[Any]] = {"kl_ids": [], "kl_mask": []}
    for row, begin in enumerate(begins):
        other = row - 1  # of the first row the last
        ids = part["input_ids"][row][:begin] + part["input_ids"][other][begins[other] :]
        mask = [0] * begin + part["input_mask"][other][begins[other] :]
        for name, values in columns("kl_", (ids[:longest], mask[:longest])).items():
            made[name].append(values)
    return made


def collate(rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """What TRL's KTOTrainer reads: the rows, and the same prompts with mismatched answers under KL_."""
    batch = batch_of([row["input_ids"] for row in rows], [row["input_mask"] for row in rows])
    mismatched = batch_of([row["kl_ids"] for row in rows], [row["kl_mask"] for row in rows])
    batch |= {f"KL_{name}": values for name, values in mismatched.items()}
    for name in ("label", "ref_logps", "ref_KL_logps"):
        if name in rows[0]:
            batch[name] = torch.tensor([row[name] for row in rows])
    return batch


class KtoTrainer(Counting, Referenced, KTOTrainer):
    """Kahneman-Tversky optimization; the KL term is estimated within each micro-batch."""
