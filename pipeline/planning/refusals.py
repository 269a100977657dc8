"""What a model cannot do, and what does not fit on a machine, said before anything starts."""

from dataclasses import replace

from tunewright.pipeline import catalog, models
from tunewright.pipeline.errors import InvalidInput, call
from tunewright.pipeline.planning import fitting
from tunewright.pipeline.planning.architecture import Architecture
from tunewright.pipeline.planning.fitting import Candidate, Problem
from tunewright.pipeline.planning.machine import Machine
from tunewright.pipeline.planning.recipe import Draft
from tunewright.pipeline.store import Row
from tunewright.pipeline.training.arguments import TrainingArguments

# The catalog's table holds theoretical minima: this planner's own are about a quarter above.
COMFORT = 0.75
# The toy's least is a third of that, on a GPU and on a CPU.
TOY_GIB = 0.3
WORK = {"lora": "Fine-tuning", "full": "Full fine-tuning of", "freeze": "Training the last layers of"}


def check(base: models.Model, model: Architecture, given: TrainingArguments, machine: Machine) -> None:
    """Raises InvalidInput for what a model whose files are quantized already cannot do."""
    bits = model.quantized_bits
    if not bits:
        return
    holds = f"{base.name} holds {bits}-bit weights"
    if not machine.is_gpu:
        raise InvalidInput(
            "quantized_model_needs_gpu", f"{holds}, and this machine has no GPU.",
            allowed="On a CPU train a 16-bit model.", next="list_models()",
        )  # fmt: skip
    if given.finetuning_type != "lora":
        raise InvalidInput(
            "model_is_quantized", f"{holds}, which finetuning_type={given.finetuning_type!r} cannot change.",
            allowed="LoRA, or the model's 16-bit form.", next="list_models()",
        )  # fmt: skip
    if bits == 4 and (given.load_in_4bit is False or given.load_in_8bit):
        raise InvalidInput(
            "model_is_quantized", f"{holds} only; load_in_4bit=false or load_in_8bit=true asks for others.",
            allowed="Leave both out, or name the model's 16-bit form.", next="list_models()",
        )  # fmt: skip


def can_lower(problem: Problem) -> bool:
    """Whether a run that starts too large can go down to something that fits."""
    return fitting.fits(problem, _lowest(problem))


def does_not_fit(base: models.Model, dataset: Row, problem: Problem) -> InvalidInput:
    draft, machine = problem.draft, problem.machine
    least, kind = _lowest(problem), draft.arguments["finetuning_type"]
    parts = ", ".join(f"{name} {gib:g}" for name, gib in least.memory.by_part().items() if gib >= 0.05)
    suggested = _largest_known(machine, base.name)
    if kind == "lora" and suggested is None:
        allowed = f"Hardly anything fits: end what else uses the {'GPU' if machine.is_gpu else 'memory'}."
    elif kind == "lora":
        allowed = f"The largest known model that fits: {suggested}."
    else:
        allowed = "LoRA trains a hundredth of the parameters in a fraction of the memory."
    return InvalidInput(
        "does_not_fit",
        f"{WORK[kind]} {base.name} at {least.arguments['max_seq_length']} tokens needs at least "
        f"{least.memory.needed:.1f} GiB of {'GPU' if machine.is_gpu else 'host'} memory ({parts}); "
        f"{machine.limit_gib:g} GiB may be used.",
        allowed=allowed,
        next=_next(base, dataset, problem),
    )


def _lowest(problem: Problem) -> Candidate:
    """The smallest when all that a run may lower is lowered."""
    draft = problem.draft
    lowered: dict[str, None] = dict.fromkeys(("batch_size", "gradient_accumulation", "gradient_checkpointing"))
    # 4-bit weights can be trained beside, not themselves.
    if problem.machine.is_gpu and draft.arguments["finetuning_type"] == "lora":
        lowered["load_in_4bit"] = None
    free = Draft(draft.given.model_copy(update=lowered), dict(draft.arguments))
    return fitting.smallest(replace(problem, draft=free))


def _next(base: models.Model, dataset: Row, problem: Problem) -> str:
    start = {"dataset_id": dataset["id"], "model": base.name, "method": problem.method}
    asked = problem.draft.arguments
    # What it plans is LoRA, of the length that the data asks for.
    if asked["finetuning_type"] != "lora" or (
        problem.draft.is_given("max_seq_length") and asked["max_seq_length"] > 2048
    ):
        return call("plan_finetune", **start)
    suggested = _largest_known(problem.machine, base.name)
    return call("plan_finetune", **start | {"model": suggested}) if suggested else "check_environment()"


def _largest_known(machine: Machine, but: str) -> str | None:
    """Another model than `but`; None where not even the toy fits."""
    room_gb = COMFORT * machine.limit_gib * fitting.memory.GIB / 1e9
    # On a CPU weights have 32 bits.
    known = [
        (model.parameters_b, model.hub_id)
        for model in catalog.KNOWN_MODELS
        if model.hub_id != but
        and (catalog.vram_gb(model.parameters_b, load_in_4bit=True) if machine.is_gpu else 5 * model.parameters_b)
        <= room_gb
    ]
    if known:
        return max(known)[1]
    return catalog.TOY if machine.limit_gib >= TOY_GIB and but != catalog.TOY else None
