"""The training arguments: their bounds, defaults and meaning, in one place for the tool, the job and the report."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

TARGET_MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
Scheduler = Literal["linear", "cosine", "constant", "constant_with_warmup", "cosine_with_restarts", "polynomial"]


class TrainingArguments(BaseModel):
    """Supervised fine-tuning with LoRA or QLoRA. None means: chosen from the data and the device."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    max_seq_length: int | None = Field(
        None,
        ge=32,
        le=131072,
        description="Tokens per example; longer ones are cut. Default: the data's, at most 2048.",
    )
    lora_rank: int = Field(
        16, ge=1, le=512, description="LoRA rank r; 8–128, usually 16 or 32. More learns more, costs more."
    )
    lora_alpha: int | None = Field(None, ge=1, le=2048, description="LoRA alpha, r to 2r. Default: 2 × lora_rank.")
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="0 is fastest; 0.05–0.1 against overfitting.")
    target_modules: list[str] | None = Field(
        None, min_length=1, description="Layers that get an adapter. Default: all seven linear ones, which is best."
    )
    learning_rate: float = Field(2e-4, gt=0, le=0.1, description="Peak rate; 5e-6 to 2e-4 is usual, 2e-4 for LoRA.")
    epochs: float = Field(3.0, gt=0, le=1000, description="Passes over the data; 1–3 is usual.")
    max_steps: int | None = Field(None, ge=1, le=10_000_000, description="Optimizer steps; overrides epochs.")
    batch_size: int | None = Field(
        None, ge=1, le=1024, description="Rows per step on the device; the first to lower on OOM."
    )
    gradient_accumulation: int | None = Field(
        None, ge=1, le=1024, description="Micro-batches per optimizer step; batch_size × this is usually 8–16."
    )
    warmup_ratio: float = Field(0.05, ge=0, le=0.5, description="Share of the steps with rising rate; 0.05–0.1.")
    weight_decay: float = Field(0.01, ge=0, le=1, description="0.01–0.1; more against overfitting.")
    lr_scheduler: Scheduler = Field("linear", description="How the rate falls.")
    load_in_4bit: bool | None = Field(None, description="QLoRA (4-bit base) or 16-bit LoRA. Default: true on a GPU.")
    packing: bool | None = Field(
        None,
        description="Several examples per row, kept apart; 2–3 × faster on short rows. Default: where supported (GPU).",
    )
    save_steps: int | None = Field(None, ge=1, description="Steps between checkpoints. Default: a tenth of the run.")
    eval_steps: int | None = Field(None, ge=1, description="Steps between evaluations. Default: a tenth of the run.")
    logging_steps: int = Field(1, ge=1, le=10_000, description="Steps between stored metrics.")
    seed: int = Field(42, ge=0, le=2**31 - 1, description="Fixes data order and initial adapter.")
    name: str | None = Field(None, min_length=1, max_length=64, description="A name for the adapter.")
