"""Supervised fine-tuning on conversations (sft) and continued pre-training on raw text (cpt). Heavy."""

from dataclasses import replace
from functools import partial

# Before trl.
import tunewright.pipeline.backend  # noqa: F401  # pyright: ignore[reportUnusedImport]

from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from tunewright.pipeline.data import splits
from tunewright.pipeline.training import attention, examples
from tunewright.pipeline.training.config import common
from tunewright.pipeline.training.loading import Loaded
from tunewright.pipeline.training.optimizers import optimizer
from tunewright.pipeline.training.packing import keeps_examples_apart
from tunewright.pipeline.training.reporting import Counting
from tunewright.pipeline.training.run import Data, Run, nothing_to_train, tell_encoded


class SupervisedTrainer(Counting, SFTTrainer):
    pass


def encode(run: Run) -> Data:
    """Conversations cut to the sequence length, texts divided at it. Raises InvalidInput where nothing is left."""
    length, check_cancelled = run.arguments["max_seq_length"], run.context.check_cancelled
    if run.method == "cpt":
        read = partial(examples.texts, template=run.template, max_seq_length=length, check_cancelled=check_cancelled)
    else:
        read = partial(
            examples.conversations, template=run.template, max_seq_length=length, train_on=run.arguments["train_on"],
            check_cancelled=check_cancelled,
        )  # fmt: skip
    train, evaluation = (read(splits.split_file(run.dataset, split)) for split in (splits.TRAIN, splits.EVAL))
    if not train.count:
        raise nothing_to_train(run, "has two tokens" if run.method == "cpt" else "has an answer")
    data = Data(
        train.rows, evaluation.rows, train.count, train.tokens, train.truncated, train.without_answer,
        train.trained_tokens,
    )  # fmt: skip
    tell_encoded(run, data)
    return data


def build(run: Run, loaded: Loaded, data: Data) -> SupervisedTrainer:
    """A trainer over packed rows where that was asked for and is shown to be safe here, else over plain ones."""
    if not run.arguments["packing"]:
        return _trainer(run, loaded, data)
    attention.use_one_kernel_for_packed_rows()
    packed = replace(data, train=examples.pack(data.train, run.arguments["max_seq_length"]))
    trainer = _trainer(run, loaded, packed, packing=True)
    proof = keeps_examples_apart(trainer)
    if not proof.apart:
        run.context.event("warning", "not_packed", f"Training unpacked: {proof.reason}.")
        return _trainer(run, loaded, data)
    run.context.event(
        "info", "packed",
        f"{data.count} rows in {len(packed.train)}; shown not to see each other: other neighbours change an example's "
        f"gradient by {proof.neighbours:.1g}, being packed by {proof.packed:.1g}, seeing them would by "
        f"{proof.control:.1g}.",
    )  # fmt: skip
    return trainer


def _trainer(run: Run, loaded: Loaded, data: Data, *, packing: bool = False) -> SupervisedTrainer:
    with_eval = bool(len(data.evaluation))
    return SupervisedTrainer(
        model=loaded.model,
        processing_class=loaded.tokenizer,
        train_dataset=data.train,
        eval_dataset=data.evaluation if with_eval else None,
        args=SFTConfig(
            **common(run, with_eval=with_eval),
            # The rows come encoded and packed; trl must not do it again.
            dataset_kwargs={"skip_prepare_dataset": True},
            max_length=run.arguments["max_seq_length"],
            packing=packing,
            eval_packing=False,
        ),
        optimizers=(optimizer(run, loaded.model), None),
    )
