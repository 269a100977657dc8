"""Training on pairs of answers: DPO and ORPO, and what they share with KTO. Heavy (datasets, trl, torch).

Guarantees: the ids are exactly those of `ChatTemplate.encode` (TRL would put a second end-of-turn token behind an
answer, and a BOS before a template that has none); what is judged is the answer with the token that ends its turn,
never the prompt, an earlier turn of the assistant or a tool's result. DPO's reference is the policy that the run starts
from: its log-probabilities are computed once, before the first step, so no second model or adapter is held.

Not done: rows are never packed, `train_on` has no say (ORPO's likelihood too is that of the chosen answer alone), and
there is no dropout: it would make a policy differ from its own reference.
"""

import random
from collections.abc import Iterator, Sequence
from typing import Any

# Before trl.
import tunewright.pipeline.backend  # noqa: F401  # pyright: ignore[reportUnusedImport]

import numpy as np
import torch
from datasets import Dataset
from peft import PeftModel
from trl.experimental.orpo import ORPOConfig, ORPOTrainer
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.utils import add_fused_lm_head, pad

from tunewright.pipeline.chat_template import ChatTemplate, Message, Tools
from tunewright.pipeline.context import JobContext
from tunewright.pipeline.data import splits
from tunewright.pipeline.data.rows import Record
from tunewright.pipeline.errors import InvalidInput
from tunewright.pipeline.training.config import common
from tunewright.pipeline.training.loading import Loaded
from tunewright.pipeline.training.optimizers import optimizer
from tunewright.pipeline.training.reporting import Counting
from tunewright.pipeline.training.run import Data, Run, nothing_to_train, tell_encoded

SIDES = ("chosen", "rejected")
IGNORED = -100
ROWS_PER_LOOK = 500
# The attention mask hides padding, so any id would do.
PADDING = 0

Encoded = tuple[list[int], list[int]]


def encode(run: Run) -> Data:
    """Rows of `chosen_ids`, `chosen_mask`, `rejected_ids` and `rejected_mask`: whole conversations, what is judged
    marked with 1. Raises InvalidInput where no pair can be compared within max_seq_length.
    """
    refuse_adapted_head(run)
    rows: dict[str, list[dict[str, Any]]] = {}
    truncated = left_out = 0
    for split in (splits.TRAIN, splits.EVAL):
        rows[split] = []
        for record in records(run, split, steps_rows(run, _effective_batch(run))):
            row, cut = _pair(run, record)
            if row:
                rows[split].append(row)
            if split == splits.TRAIN:
                truncated += cut
                left_out += row is None
    train = rows[splits.TRAIN]
    if not train:
        raise nothing_to_train(run, "has two answers that can be compared")
    tokens = sum(len(row[f"{side}_ids"]) for row in train for side in SIDES)
    trained = sum(int(row[f"{side}_mask"].sum()) for row in train for side in SIDES)
    data = Data(
        Dataset.from_list(train), Dataset.from_list(rows[splits.EVAL]), len(train), tokens, truncated, left_out, trained
    )
    tell_encoded(run, data, "; each pair's prompt is read twice, once with either answer")
    return data


def build(run: Run, loaded: Loaded, data: Data) -> Any:
    """The trainer. For DPO it reads all rows once here, to know what the reference thinks of them: minutes on a large
    dataset, told as progress. Raises Cancelled.
    """
    with_eval = len(data.evaluation) > 0
    settings: dict[str, Any] = common(run, with_eval=with_eval) | {
        "beta": run.arguments["beta"], "max_length": run.arguments["max_seq_length"], "remove_unused_columns": False,
    }  # fmt: skip
    parts: dict[str, Any] = {
        "model": loaded.model, "processing_class": loaded.tokenizer, "data_collator": collate,
        "train_dataset": data.train, "eval_dataset": data.evaluation if with_eval else None,
        "optimizers": (optimizer(run, loaded.model), None),
    }  # fmt: skip
    tell_no_dropout(run)
    if run.method == "dpo":
        return DpoTrainer(context=run.context, args=DPOConfig(**settings, precompute_ref_log_probs=True), **parts)
    inner: Any = loaded.model.get_base_model() if isinstance(loaded.model, PeftModel) else loaded.model
    add_fused_lm_head(inner, outputs=("log_probs", "mean_logits"))
    return OrpoTrainer(args=ORPOConfig(**settings), **parts)


def judged(template: ChatTemplate, prompt: Sequence[Message], answer: Sequence[Message], tools: Tools) -> Encoded:
    """Ids of the whole conversation, and 1 where the assistant speaks in `answer`, 0 elsewhere."""
    ids, mask = template.encode([*prompt, *answer], tools)
    if any(message["role"] == "assistant" for message in prompt):
        asked = template.ids(template.render(prompt, tools=tools, add_generation_prompt=True))
        # Where a template renders the prompt's end differently, or a token spans it, the answer begins earlier.
        begin = next((i for i, (a, b) in enumerate(zip(ids, asked, strict=False)) if a != b), min(len(ids), len(asked)))
        mask[:begin] = [0] * begin
    return ids, mask


def shorten(encoded: Encoded, run: Run) -> tuple[Encoded, bool]:
    """Cut to max_seq_length, and whether anything was."""
    ids, mask = encoded
    longest = run.arguments["max_seq_length"]
    return (ids[:longest], mask[:longest]), len(ids) > longest


def columns(side: str, encoded: Encoded) -> dict[str, Any]:
    """As small integers: Python's own take ten times the memory of a dataset."""
    ids, mask = encoded
    return {f"{side}ids": np.array(ids, np.int32), f"{side}mask": np.array(mask, np.int8)}


def _pair(run: Run, record: Record) -> tuple[dict[str, Any] | None, bool]:
    """The row, or None where nothing is left to compare; and whether an answer was cut."""
    row: dict[str, Any] = {}
    cuts: list[bool] = []
    kept: list[Encoded] = []
    for side in SIDES:
        encoded, cut = shorten(judged(run.template, record.messages, getattr(record, side), record.tools), run)
        row |= columns(f"{side}_", encoded)
        kept.append(encoded)
        cuts.append(cut)
    # Answers that differ only behind the cut say nothing. The first token is never predicted.
    usable = kept[0] != kept[1] and all(any(mask[1:]) for _, mask in kept)
    return (row if usable else None), any(cuts)


def records(run: Run, split: str, wanted: int | None) -> Iterator[Record]:
    """A split's rows; of the training rows at most `wanted`, drawn at random, in their order. Raises Cancelled."""
    run.context.progress("encoding the dataset")
    file = splits.split_file(run.dataset, split)
    total = splits.count_rows(file)
    drawn: Sequence[int] | set[int] = range(total)
    if split == splits.TRAIN and wanted is not None and wanted < total:
        drawn = set(random.Random(run.arguments["seed"]).sample(range(total), wanted))
        run.context.event("info", "rows_drawn", f"max_steps needs {wanted} of {total} training rows, drawn at random.")
    for number, record in enumerate(splits.read(file)):
        if number % ROWS_PER_LOOK == 0:
            run.context.check_cancelled()
        if number in drawn:
            yield record


def steps_rows(run: Run, effective_batch: int) -> int | None:
    """Rows that `max_steps` can see. The reference need not read more: of a short trial on a large dataset that would
    be nearly all the work.
    """
    steps = run.arguments["max_steps"]
    return steps * effective_batch if steps else None


def _effective_batch(run: Run) -> int:
    return run.arguments["batch_size"] * run.arguments["gradient_accumulation"]


def refuse_adapted_head(run: Run) -> None:
    """The log-probabilities are computed from the head's own weight: an adapter on it would never be trained."""
    if "lm_head" in (run.arguments["target_modules"] or ()):
        raise InvalidInput(
            "head_not_adaptable", f"target_modules names lm_head, which method={run.method!r} cannot adapt.",
            allowed="The layers below the head.", next="start_finetune(…) without lm_head in target_modules",
        )  # fmt: skip


def tell_no_dropout(run: Run) -> None:
    if run.arguments["lora_dropout"]:
        run.context.event(
            "info", "no_dropout",
            f"lora_dropout={run.arguments['lora_dropout']} has no effect: {run.method} compares log-probabilities, "
            "which dropout would blur.",
        )  # fmt: skip


def padded(rows: Sequence[Sequence[int]]) -> torch.Tensor:
    return pad([torch.tensor(row) for row in rows], padding_value=PADDING, padding_side="right")


def batch_of(ids: Sequence[Sequence[int]], masks: Sequence[Sequence[int]]) -> dict[str, torch.Tensor]:
    """What TRL's trainers of preferences read: (rows, tokens) each, padded on the right."""
    return {
        "input_ids": padded(ids).long(),
        "attention_mask": padded([[1] * len(row) for row in ids]),
        "completion_mask": padded(masks).long(),
    }


def collate(rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """The chosen answers, then the rejected ones, in one batch of twice the rows."""
    batch = batch_of(*([row[f"{side}_{kind}"] for side in SIDES for row in rows] for kind in ("ids", "mask")))
    for name in ("ref_chosen_logps", "ref_rejected_logps"):
        if name in rows[0]:
            batch[name] = torch.tensor([row[name] for row in rows])
    return batch


class Referenced:
    """Mixin before TRL's DPOTrainer and KTOTrainer: rows come encoded, and the reference's reading of them is told."""

    _rows_per_example = 1

    def __init__(self, *, context: JobContext, **parts: Any) -> None:
        self._context, self._read = context, 0
        self._to_read = len(parts["train_dataset"]) + len(parts["eval_dataset"] or ())
        super().__init__(**parts)
        # TRL copied the adapter, to be the reference. All that it is asked for is known by now; kept, it would be
        # stored with every checkpoint.
        model: Any = self.model  # pyright: ignore[reportAttributeAccessIssue, reportUnknownVariableType, reportUnknownMemberType]
        if isinstance(model, PeftModel) and "ref" in model.peft_config:
            model.delete_adapter("ref")

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, dataset_name: str) -> Any:
        return dataset

    def compute_ref_log_probs(self, model: Any, inputs: dict[str, Any]) -> Any:
        self._context.check_cancelled()
        self._read += len(inputs["input_ids"]) // self._rows_per_example
        self._context.progress("reading the rows with the reference", self._read, self._to_read)
        return super().compute_ref_log_probs(model, inputs)  # pyright: ignore[reportAttributeAccessIssue, reportUnknownVariableType, reportUnknownMemberType]


class DpoTrainer(Counting, Referenced, DPOTrainer):
    """Direct preference optimization (Rafailov et al. 2023, arXiv:2305.18290), sigmoid loss."""

    _rows_per_example = 2


class OrpoTrainer(Counting, ORPOTrainer):
    """Odds ratio preference optimization (Hong et al. 2024, arXiv:2403.07691): no reference.

    TRL's, but for three things: rows come encoded; the likelihood is the chosen answer's alone, not the prompt's too;
    and the head is applied in tiles, as TRL's DPO does, where whole logits of both answers would take most memory.
    """

    def __init__(self, **parts: Any) -> None:
        super().__init__(**parts)
        # TRL warns at every evaluation step of a collator that is not its own.
        self.use_dpo_data_collator = True
        # By the name that TRL's other trainers have for what they log next.
        self._metrics = self._stored_metrics

    def tokenize_row(self, feature: dict[str, Any], model: Any = None) -> dict[str, Any]:
        return feature

    def concatenated_forward(self, model: Any, batch: Any) -> Any:
        """Mean log-probability a token of chosen and rejected answers (rows), their mean logits, the chosen ones' NLL;
        with a mixture of experts its balancing loss too.
        """
        routed = {"output_router_logits": True} if self.aux_loss_enabled else {}
        outputs = model(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False, fused_lm_head=True,
            labels=batch["input_ids"].masked_fill(batch["completion_mask"] == 0, IGNORED), **routed,
        )  # fmt: skip
        mask = batch["completion_mask"][:, 1:]
        chosen, rejected = outputs.log_probs.float().sum(1).chunk(2)
        chosen_tokens, rejected_tokens = mask.sum(1).chunk(2)
        chosen_logits, rejected_logits = (outputs.mean_logits * mask).sum(1).chunk(2)
        parts = (
            chosen / chosen_tokens, rejected / rejected_tokens,
            chosen_logits.sum() / chosen_tokens.sum(), rejected_logits.sum() / rejected_tokens.sum(),
            -chosen.sum() / chosen_tokens.sum(),
        )  # fmt: skip
        return (*parts, outputs.aux_loss) if self.aux_loss_enabled else parts
