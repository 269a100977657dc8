"""What every part of a fine-tune is given, and what a method's encoding gives back."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunewright.pipeline import files, gpu, models
from tunewright.pipeline.chat_template import ChatTemplate
from tunewright.pipeline.context import JobContext
from tunewright.pipeline.errors import InvalidInput, call
from tunewright.pipeline.training.arguments import Method, TrainingArguments

if TYPE_CHECKING:
    from datasets import Dataset

Arguments = dict[str, Any]
LOWERED = "lowered.json"


@dataclass(frozen=True)
class Run:
    """A fine-tune in its worker. `arguments` are complete: what the planner chooses is chosen, and what an earlier try
    of this job had to lower for want of memory is lowered. `dataset` is the folder with the splits.
    """

    context: JobContext
    method: Method
    arguments: Arguments
    base: models.Model
    template: ChatTemplate
    dataset: Path

    @classmethod
    def of(cls, context: JobContext) -> "Run":
        """Raises NotFound, InvalidInput or Unavailable where the dataset or the model is gone."""
        spec = context.spec
        arguments = TrainingArguments(**spec["arguments"]).model_dump()
        arguments |= {name: value for name, value in _before_planning().items() if arguments[name] is None}
        lowered = context.folder / LOWERED
        if lowered.is_file():
            arguments |= files.read_json(lowered)
        template = ChatTemplate(
            models.tokenizer_folder(context.workspace, spec["model"]), enable_thinking=arguments["enable_thinking"]
        )
        document = context.workspace.store.artifact(spec["dataset_id"], "dataset")["document"]
        base = models.resolve(context.workspace, spec["model"])
        return cls(context, spec["method"], arguments, base, template, Path(document["path"]))

    def lower(self, changes: Arguments) -> "Run":
        """The same run with `changes`; a restart of the job keeps them."""
        lowered = self.context.folder / LOWERED
        earlier = files.read_json(lowered) if lowered.is_file() else {}
        files.write_json(lowered, earlier | changes)
        return Run(self.context, self.method, self.arguments | changes, self.base, self.template, self.dataset)

    @property
    def is_lora(self) -> bool:
        return self.arguments["finetuning_type"] == "lora"


def _before_planning() -> Arguments:
    """What was the same for every run before there was a planner: a job of that time does not name it."""
    card = next(iter(gpu.find()), None)
    if card is None:
        device = {"gradient_checkpointing": "none", "optimizer": "adamw_torch", "precision": "fp32"}
    else:
        precision = "bf16" if card.has_bf16 else "fp16"
        device = {"gradient_checkpointing": "unsloth", "optimizer": "adamw_8bit", "precision": precision}
    return device | {"early_stopping_patience": 0}


@dataclass(frozen=True)
class Data:
    """A method's rows, ready for its trainer. `count`, `truncated` and `left_out` are of training rows; `tokens` are
    those that the model reads in one epoch, padding not counted, and `trained_tokens` those of them that carry loss.
    """

    train: "Dataset"
    evaluation: "Dataset"
    count: int
    tokens: int
    truncated: int = 0
    left_out: int = 0
    trained_tokens: int | None = None


def nothing_to_train(run: Run, why: str) -> InvalidInput:
    """For a dataset of which no row can be trained on."""
    dataset_id = run.context.spec["dataset_id"]
    return InvalidInput(
        "nothing_to_train",
        f"None of {dataset_id}'s rows {why} within max_seq_length={run.arguments['max_seq_length']} tokens.",
        allowed="Raise max_seq_length, or look at the rows.",
        next=call("inspect_dataset", dataset_id=dataset_id, view="mask", model=run.base.name),
    )


def tell_encoded(run: Run, data: Data, more: str = "") -> None:
    """Writes the event with the counts, and `more` about them, and where rows were cut the warning."""
    event = run.context.event
    trained = "" if data.trained_tokens is None else f", {data.trained_tokens} of them trained on"
    event(
        "info",
        "encoded",
        f"{data.count} training and {len(data.evaluation)} eval rows, {data.tokens} tokens{trained}{more}.",
    )
    if data.truncated or data.left_out:
        event(
            "warning", "truncated",
            f"{data.truncated} of {data.count + data.left_out} training rows are longer than "
            f"{run.arguments['max_seq_length']} tokens and were cut; {data.left_out} lost what is trained on and were "
            "left out.",
        )  # fmt: skip
