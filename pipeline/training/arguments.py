"""The training arguments: their bounds, defaults and meaning, in one place for the tool, the job and the report."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from tunewright.pipeline.training.rewards import Reward

TARGET_MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ALL_LINEAR = "all-linear"

Method = Literal["sft", "cpt", "dpo", "kto", "orpo", "grpo"]
METHODS: tuple[Method, ...] = ("sft", "cpt", "dpo", "kto", "orpo", "grpo")
FinetuningType = Literal["lora", "full", "freeze"]
Checkpointing = Literal["none", "plain", "unsloth"]
Precision = Literal["bf16", "fp16", "fp32"]
Goal = Literal["fast", "balanced", "quality"]
# By transformers' names (SchedulerType, OptimizerNames): those that need no further argument and no other package.
Scheduler = Literal[
    "linear", "cosine", "constant", "constant_with_warmup", "cosine_with_restarts", "polynomial", "inverse_sqrt",
]  # fmt: skip
Optimizer = Literal[
    "adamw_torch", "adamw_torch_fused", "adamw_8bit", "paged_adamw_8bit", "paged_adamw_32bit", "lion_8bit",
    "lion_32bit", "adafactor", "sgd", "rmsprop", "adagrad",
]  # fmt: skip
Tracker = Literal["tensorboard", "trackio", "wandb"]


class TrainingArguments(BaseModel):
    """Everything that can be said about a run. None means: the planner chooses, from the data and the device."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    finetuning_type: FinetuningType = Field("lora", description="full: every weight; freeze: the last layers alone.")
    load_in_4bit: bool | None = Field(None, description="QLoRA; needs a GPU.")
    load_in_8bit: bool = Field(False, description="8-bit base instead.")
    max_seq_length: int | None = Field(None, ge=32, le=131072, description="Tokens per example; longer ones are cut.")
    packing: bool | None = Field(None, description="Several examples per row, kept apart; 2–3 × faster on short ones.")
    batch_size: int | None = Field(None, ge=1, le=1024, description="Rows per micro-batch.")
    gradient_accumulation: int | None = Field(None, ge=1, le=1024, description="Micro-batches per step.")
    gradient_checkpointing: Checkpointing | None = Field(None, description="none is fastest, unsloth smallest.")
    vram_limit_gib: float | None = Field(None, gt=0, le=4096, description="Never take more of the GPU than this.")
    precision: Precision | None = Field(None, description="Default: what the card has.")

    learning_rate: float | None = Field(None, gt=0, le=0.1, description="Peak; 2e-4 is usual for LoRA, 5e-6 for RL.")
    epochs: float | None = Field(None, gt=0, le=1000, description="Passes over the data; 1–3 is usual.")
    max_steps: int | None = Field(None, ge=1, le=10_000_000, description="Overrides epochs.")
    warmup_ratio: float | None = Field(None, ge=0, le=0.5)
    weight_decay: float = Field(0.01, ge=0, le=1)
    max_grad_norm: float = Field(1.0, ge=0, le=1000)
    lr_scheduler: Scheduler | None = None
    optimizer: Optimizer | None = None

    lora_rank: int | None = Field(None, ge=1, le=512, description="8–128; more learns more, costs more.")
    lora_alpha: int | None = Field(None, ge=1, le=2048, description="r to 2r.")
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="0.05–0.1 against overfitting.")
    target_modules: Annotated[list[str], Field(min_length=1)] | Literal["all-linear"] | None = Field(
        None, description="Default: all seven linear layers."
    )
    use_rslora: bool = False
    use_dora: bool = False
    use_loftq: bool = False
    loraplus_ratio: float | None = Field(None, ge=1, le=64, description="LoRA+: rate of B over A; 16 is usual.")
    neftune_alpha: float | None = Field(None, gt=0, le=100, description="NEFTune noise; 5 is usual.")
    embedding_learning_rate: float | None = Field(
        None, gt=0, le=0.1, description="Trains embeddings and head too, at this rate."
    )
    trainable_layers: int | None = Field(None, ge=1, le=1000, description="For freeze; default 2.")

    train_on: Literal["responses", "all"] = Field("responses", description="Which tokens carry loss.")
    enable_thinking: bool = Field(False, description="The chat template's thinking switch.")
    beta: float | None = Field(None, ge=0, le=10, description="dpo, kto, orpo: 0.1; grpo's KL: 0.")
    rewards: list[Reward] | None = Field(None, min_length=1, max_length=16, description="grpo: what is rewarded.")
    num_generations: int = Field(8, ge=2, le=64, description="grpo: answers per prompt.")
    max_completion_length: int = Field(256, ge=8, le=32768, description="grpo: tokens per answer.")
    temperature: float = Field(1.0, gt=0, le=2, description="grpo: of its answers.")

    save_steps: int | None = Field(None, ge=1, le=10_000_000)
    eval_steps: int | None = Field(None, ge=1, le=10_000_000)
    early_stopping_patience: int | None = Field(
        None, ge=0, le=1000, description="Evaluations without a better loss; 0: never."
    )
    logging_steps: int = Field(1, ge=1, le=10_000)
    report_to: list[Tracker] = Field(default_factory=list[Tracker], description="Trackers, if installed.")
    seed: int = Field(42, ge=0, le=2**31 - 1)
    name: str | None = Field(None, min_length=1, max_length=64, description="A name for the adapter.")
