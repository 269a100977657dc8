"""What is learnt and how fast: rank, rate, epochs and schedule by the field's rules, from the data's size. Light.

The rules are those of Unsloth's guides and of the mission's documents; where the caller gave a value, it stays.
"""

from dataclasses import dataclass, field
from typing import Any

from tunewright.pipeline.planning.architecture import Architecture
from tunewright.pipeline.planning.machine import Machine
from tunewright.pipeline.store import Row
from tunewright.pipeline.training.arguments import ALL_LINEAR, TARGET_MODULES, Goal, Method, TrainingArguments

THIN, MANY = 100, 10_000
# Fewer steps than these teach little, however many rows each of them sees.
LEAST_STEPS = {"fast": 30, "balanced": 60, "quality": 60}
# Batch 2 × accumulation 8 is the field's; a tenth of it is the least whose gradient is more than one row's.
STEP_ROWS, LEAST_STEP_ROWS = 16, 2
# Below this many tokens a step a GPU spends much of its time on the optimizer and on starting kernels.
GPU_STEP_TOKENS = 8192
SHORT_RUN_STEPS = 200
# A step may be larger than wanted by this much, where the GPU gains by it.
STEP_SLACK = 2.0
MIN_EVAL_ROWS = 20
PATIENCE = 3
RATES = {"sft": 2e-4, "cpt": 5e-5, "dpo": 5e-6, "kto": 5e-6, "orpo": 5e-6, "grpo": 5e-6}
FULL_RATES = {"sft": 2e-5, "cpt": 1e-5, "dpo": 1e-6, "kto": 1e-6, "orpo": 1e-6, "grpo": 1e-6}
BETAS = {"dpo": 0.1, "kto": 0.1, "orpo": 0.1, "grpo": 0.0}
METHOD_OF_KIND: dict[str, Method] = {"sft": "sft", "preference": "dpo", "kto": "kto", "text": "cpt"}


@dataclass
class Draft:
    """A plan's arguments while they are chosen: those that are None. What the caller gave is never changed."""

    given: TrainingArguments
    arguments: dict[str, Any]
    reasons: dict[str, str] = field(default_factory=dict[str, str])
    warnings: list[str] = field(default_factory=list[str])

    @classmethod
    def of(cls, given: TrainingArguments) -> "Draft":
        return cls(given, given.model_dump())

    def is_given(self, name: str) -> bool:
        return getattr(self.given, name) is not None

    def choose(self, name: str, value: Any, reason: str = "") -> None:
        if not self.is_given(name):
            self.arguments[name] = value
            if reason:
                self.reasons[name] = reason


def recommended_method(dataset: Row) -> Method:
    """What a dataset's kind is for."""
    return METHOD_OF_KIND.get(dataset["document"].get("kind", "sft"), "sft")


def learn(draft: Draft, model: Architecture, rows: int, eval_rows: int, method: str, goal: Goal) -> None:
    """Chooses everything that does not depend on memory."""
    kind = draft.arguments["finetuning_type"]
    epochs = _epochs(rows, method, goal)
    draft.choose("epochs", epochs, f"{rows:,} rows: {_why_epochs(rows, epochs)}")
    if kind == "lora":
        _capacity(draft, model, rows, goal)
    rates = RATES if kind == "lora" else FULL_RATES
    rate = rates[method] * (0.5 if goal == "quality" else 1.0)
    usual = {"sft": "usual for", "cpt": "raw text is learnt slowly with"}.get(
        method, "preferences and rewards ask for small steps in"
    )
    slower = ", halved for a gentler run" if goal == "quality" else ""
    draft.choose("learning_rate", rate, f"{usual} {'LoRA' if kind == 'lora' else f'{kind} fine-tuning'}{slower}")
    is_soft = goal == "quality"
    draft.choose("lr_scheduler", "cosine" if is_soft else "linear", "ends softly" if is_soft else "")
    if method in BETAS:
        draft.choose("beta", BETAS[method])
    if kind == "freeze":
        draft.choose("trainable_layers", min(2, model.layers))
    patience = PATIENCE if eval_rows >= MIN_EVAL_ROWS else 0
    draft.choose(
        "early_stopping_patience", patience,
        f"stops after {PATIENCE} evaluations without a better loss on {eval_rows:,} held-out rows"
        if patience else f"{eval_rows:,} held-out rows are too few to stop by (from {MIN_EVAL_ROWS})",
    )  # fmt: skip
    if rows < THIN:
        draft.warnings.append(
            f"{rows:,} rows are thin: they teach a tone or a fixed form at best. Good rows beat many rows; write more."
        )


def device(draft: Draft, machine: Machine) -> None:
    """Precision and optimizer."""
    if not machine.is_gpu:
        draft.choose("precision", "fp32", "a CPU computes in 32 bits")
        draft.choose("optimizer", "adamw_torch", "8-bit states save a GPU's memory, not time")
        return
    if draft.arguments["precision"] == "fp32":
        draft.warnings.append(
            'precision="fp32" takes twice the memory of 16 bits and several times as long as the time that is told.'
        )
    if machine.has_bf16:
        draft.choose("precision", "bf16")
    else:
        draft.choose("precision", "fp16", f"{machine.name} has no bf16")
    draft.choose("optimizer", "adamw_8bit", "a quarter of AdamW's memory at the same result")


def step_tokens(draft: Draft, rows: int, mean: float, machine: Machine, goal: Goal) -> tuple[float, float]:
    """Tokens that one optimizer step should see, and the most that it may where a GPU gains by it."""
    usual = max(STEP_ROWS * mean, GPU_STEP_TOKENS if machine.is_gpu else 0) * (2 if goal == "fast" else 1)
    total = rows * mean * draft.arguments["epochs"]
    most = total / LEAST_STEPS[goal]
    if draft.arguments["max_steps"] or usual <= most:
        draft.reasons["effective_batch"] = (
            f"about {usual:,.0f} tokens a step: {usual / mean:.0f} rows of {mean:.0f} tokens"
        )
        return usual, STEP_SLACK * usual if draft.arguments["max_steps"] else min(STEP_SLACK * usual, most)
    wanted = max(most, LEAST_STEP_ROWS * mean)
    draft.reasons["effective_batch"] = (
        f"about {wanted:,.0f} tokens a step instead of {usual:,.0f}, so that the run has some {total / wanted:.0f} "
        "steps: a handful would teach nothing"
    )
    return wanted, wanted


def warm_up(draft: Draft, steps: int) -> None:
    if steps < SHORT_RUN_STEPS:
        draft.choose("warmup_ratio", 0.1, f"{steps} steps: a twentieth of them would be too few to warm up")
    else:
        draft.choose("warmup_ratio", 0.05)


def _epochs(rows: int, method: str, goal: Goal) -> float:
    if method in ("cpt", "grpo"):
        return 1.0 if goal != "quality" else 2.0
    if rows < THIN:
        # Enough passes for the least number of steps at the smallest batch.
        epochs = min(10, max(3, -(-LEAST_STEPS["balanced"] * LEAST_STEP_ROWS // rows)))
    else:
        epochs = 3 if rows < MANY else 2 if rows < 10 * MANY else 1
    return float(max(1, epochs + {"fast": -1, "balanced": 0, "quality": 1}[goal]))


def _why_epochs(rows: int, epochs: float) -> str:
    if rows < THIN:
        return f"{epochs:g} passes, or there would be hardly a step to learn in"
    return f"{epochs:g} pass{'' if epochs == 1 else 'es'} are enough; more only learns them by heart"


def _capacity(draft: Draft, model: Architecture, rows: int, goal: Goal) -> None:
    rank = 16 if rows < MANY else 32
    rank = {"fast": 16, "balanced": rank, "quality": 2 * rank}[goal]
    # A matrix of less than twice the rank would be replaced rather than adapted.
    rank = min(rank, max(8, model.hidden // 4))
    draft.choose("lora_rank", rank, f"{rows:,} rows" + (", doubled for quality" if goal == "quality" else ""))
    rank = draft.arguments["lora_rank"]
    # rsLoRA divides by the root of the rank already.
    alpha = rank if draft.arguments["use_rslora"] else 2 * rank
    draft.choose("lora_alpha", min(2048, alpha))
    if model.has_usual_modules:
        draft.choose("target_modules", TARGET_MODULES, "all seven linear layers beat attention or MLP alone")
    else:
        draft.choose("target_modules", ALL_LINEAR, f"{model.model_type} names its layers in its own way")
