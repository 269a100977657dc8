"""From a request to the exact specification of a fine-tune: everything checked and every default chosen. Light."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tunewright.pipeline import files, gpu, models
from tunewright.pipeline.errors import InvalidInput, NotFound, Unavailable, call
from tunewright.pipeline.planning import architecture, plan
from tunewright.pipeline.planning.machine import Machine, this_machine
from tunewright.pipeline.planning.plan import Plan
from tunewright.pipeline.store import Row
from tunewright.pipeline.training.arguments import ALL_LINEAR, METHODS, TARGET_MODULES, Goal, Method, TrainingArguments
from tunewright.pipeline.workspace import Workspace

# What each method learns from.
TRAINS_ON: dict[Method, str] = {
    "sft": "sft", "cpt": "text", "dpo": "preference", "orpo": "preference", "kto": "kto", "grpo": "sft",
}  # fmt: skip
# The shape of an adapter's weights and the form of what it lies on: of one that goes on from another the other's.
SHAPE = (
    "finetuning_type", "lora_rank", "lora_alpha", "target_modules", "use_rslora", "use_dora", "use_loftq",
    "embedding_learning_rate",
)  # fmt: skip
# Arguments that some methods alone, or LoRA alone, read: elsewhere they would be taken and have no effect.
READ_BY: dict[str, tuple[Method, ...]] = {
    "train_on": ("sft",), "enable_thinking": ("sft", "dpo", "kto", "orpo", "grpo"), "packing": ("sft", "cpt"),
    "beta": ("dpo", "kto", "orpo", "grpo"), "rewards": ("grpo",), "num_generations": ("grpo",),
    "max_completion_length": ("grpo",), "temperature": ("grpo",),
}  # fmt: skip
OF_LORA = (
    "lora_rank", "lora_alpha", "lora_dropout", "target_modules", "use_rslora", "use_dora", "use_loftq",
    "loraplus_ratio", "embedding_learning_rate",
)  # fmt: skip


def check(
    workspace: Workspace,
    dataset_id: str,
    model: str,
    method: str,
    arguments: TrainingArguments,
    continue_from: str | None,
    goal: Goal = "balanced",
) -> dict[str, Any]:
    """The spec of a `finetune` job. Raises InvalidInput, NotFound, Unavailable or NoSpace; starts nothing."""
    dataset = workspace.store.artifact(dataset_id, "dataset")
    _check_files(dataset)
    method = _method_for(dataset, model, method, arguments)
    base = models.resolve(workspace, model)
    models.tokenizer_folder(workspace, model)
    if continue_from:
        adapter = _adapter(workspace, dataset, base, method, continue_from)
        continue_from = adapter["id"]
        arguments = _in_shape(adapter, arguments)
    machine = this_machine(arguments.vram_limit_gib)
    _check_together(arguments, method, machine, base)
    _check_evaluations(dataset, arguments)
    chosen = plan.choose(base, dataset, method, arguments, machine, goal)
    files.require_space(workspace.home.root, _checkpoint_bytes(base, chosen), "Training's checkpoints")
    return {
        "dataset_id": dataset["id"],
        "model": base.name,
        "method": method,
        "name": arguments.name or f"{dataset['name']}",
        "arguments": chosen.arguments,
        "continue_from": continue_from,
        "plan": {
            "peak_gib": round(chosen.peak_gib, 2), "tokens_per_s": round(chosen.tokens_per_s, 1),
            "time_s": round(chosen.time_s), "steps": chosen.steps,
        },
        "warnings": chosen.warnings,
    }  # fmt: skip


def _check_files(dataset: Row) -> None:
    folder = Path(dataset["document"]["path"])
    if not (folder / "train.parquet").is_file():
        raise NotFound(
            "dataset_files_missing",
            f"The files of {dataset['id']} are gone from {folder}; only its entry is left.",
            allowed="Prepare it again from its source.",
            next=call("prepare_dataset", source=dataset["document"]["source"]),
        )


def _method_for(dataset: Row, model: str, method: str, arguments: TrainingArguments) -> Method:
    kind = dataset["document"].get("kind", "sft")
    fitting = [name for name in METHODS if TRAINS_ON[name] == kind]
    given = arguments.model_dump(mode="json", exclude_defaults=True)
    read = {name: value for name, value in given.items() if fitting[0] in READ_BY.get(name, METHODS)}
    again = call("start_finetune", dataset_id=dataset["id"], model=model, method=fitting[0], **read)
    for name in METHODS:
        if name == method:
            if name in fitting:
                return name
            raise InvalidInput(
                "dataset_of_another_kind",
                f"{dataset['id']} holds {kind} data ({dataset['document'].get('format')}); method={method!r} trains on "
                f"{TRAINS_ON[name]} data.",
                allowed=f"On {kind} data: {', '.join(fitting)}.",
                next=again,
            )
    raise InvalidInput(
        "unknown_method", f"method={method!r} is not supported.", allowed=f"Supported: {', '.join(METHODS)}.",
        next=again,
    )  # fmt: skip


def _adapter(workspace: Workspace, dataset: Row, base: models.Model, method: Method, continue_from: str) -> Row:
    adapter = workspace.store.artifact(continue_from, "adapter")
    trained_on = adapter["document"]["base_model"]
    if trained_on != base.name:
        raise InvalidInput(
            "adapter_of_another_base",
            f"{adapter['id']} was trained on {trained_on!r}, not on {base.name!r}.",
            allowed="An adapter goes on only on its own base.",
            next=call(
                "start_finetune", dataset_id=dataset["id"], model=trained_on, method=method, continue_from=adapter["id"]
            ),
        )
    return adapter


def _in_shape(adapter: Row, arguments: TrainingArguments) -> TrainingArguments:
    """`arguments` in the shape of the adapter that the run goes on from. Raises InvalidInput for one that differs."""
    trained = adapter["document"]["training"]
    shape = {key: trained[key] for key in SHAPE if key in trained}
    if trained.get("use_loftq"):
        shape |= {"load_in_4bit": True}
    if trained.get("finetuning_type", "lora") != "lora":
        # Of a whole model there is no shape to keep: all of it or its last layers may be trained.
        kind = arguments.finetuning_type
        shape = {"finetuning_type": trained["finetuning_type"] if kind == "lora" else kind}
    elif trained.get("embedding_learning_rate") and arguments.embedding_learning_rate:
        del shape["embedding_learning_rate"]  # that they are trained is the shape, how fast is not
    for key, value in _given(arguments, *shape).items():
        if value != shape[key]:
            raise _contradiction(
                f"{key}={value!r}, but {adapter['id']} has {shape[key]!r}, and an adapter goes on in its own shape",
                "Leave it out.",
            )
    return TrainingArguments.model_validate(arguments.model_dump(exclude_unset=True) | shape)


def _given(arguments: TrainingArguments, *names: str) -> dict[str, Any]:
    """Those of `names` that say something: that are not as they would be had they been left out."""
    defaults = TrainingArguments.model_validate({})
    values = {name: getattr(arguments, name) for name in names}
    return {name: value for name, value in values.items() if value != getattr(defaults, name)}


def _check_together(arguments: TrainingArguments, method: Method, machine: Machine, base: models.Model) -> None:
    """What pydantic cannot know: which arguments go with each other, with the method and with the machine."""
    _check_used(arguments, method)
    _check_device(arguments, machine)
    quantized = arguments.load_in_4bit or arguments.load_in_8bit
    if arguments.load_in_4bit and arguments.load_in_8bit:
        raise _contradiction("load_in_4bit and load_in_8bit are both true", "Choose one of them.")
    if arguments.finetuning_type != "lora" and quantized:
        raise _contradiction(
            f"finetuning_type={arguments.finetuning_type!r} trains the base's weights, and quantized ones cannot be",
            'Leave load_in_4bit and load_in_8bit out, or take finetuning_type="lora".',
        )
    if arguments.trainable_layers and arguments.finetuning_type != "freeze":
        raise _contradiction('trainable_layers is for finetuning_type="freeze"', "Leave it out, or set that.")
    if arguments.use_loftq and not arguments.load_in_4bit:
        raise _contradiction("use_loftq begins from the error of 4-bit weights", "Set load_in_4bit=true with it.")
    if arguments.neftune_alpha and method in ("dpo", "kto", "grpo"):
        raise _contradiction(
            f"the noise of neftune_alpha would part the policy of method={method!r} from the one it is compared with",
            "Leave it out.",
        )
    if method == "grpo" and not arguments.rewards:
        raise _contradiction(
            'method="grpo" needs rewards', 'Say what is rewarded: rewards=[{"kind": "exact_match"}], say.'
        )
    _check_model(arguments, method, base)
    for tracker in arguments.report_to:
        if find_spec(tracker) is None:
            raise Unavailable(
                "tracker_not_installed", f"report_to names {tracker}, which is not installed here.",
                allowed=f"pip install {tracker}, or leave report_to out: get_status and tw://jobs show every step.",
            )  # fmt: skip


def _check_used(arguments: TrainingArguments, method: Method) -> None:
    """Refuses what would be accepted and then ignored."""
    for name in _given(arguments, *READ_BY):
        # packing=false asks for what happens anyway.
        if method not in READ_BY[name] and getattr(arguments, name) is not False:
            fitting = ", ".join(READ_BY[name])
            raise _contradiction(f"{name} has no effect with method={method!r}, but is for {fitting}", "Leave it out.")
    of_lora = _given(arguments, *OF_LORA)
    if of_lora and arguments.finetuning_type != "lora":
        raise _contradiction(
            f"{', '.join(of_lora)} is of LoRA, not of finetuning_type={arguments.finetuning_type!r}",
            'Leave it out, or take finetuning_type="lora".',
        )


def _check_evaluations(dataset: Row, arguments: TrainingArguments) -> None:
    names = [name for name in ("eval_steps", "early_stopping_patience") if getattr(arguments, name)]
    if names and not dataset["document"].get("eval_rows"):
        raise InvalidInput(
            "no_eval_rows", f"{', '.join(names)}, but {dataset['id']} holds out no rows to evaluate on.",
            allowed="Leave it out, or prepare the dataset with eval_fraction=0.1.",
            next=call("inspect_dataset", dataset_id=dataset["id"]),
        )  # fmt: skip


def _check_model(arguments: TrainingArguments, method: Method, base: models.Model) -> None:
    """What the model's shape rules out."""
    form = architecture.of(base)
    longest = arguments.max_seq_length or form.context
    if longest > form.context:
        raise InvalidInput(
            "sequence_too_long",
            f"max_seq_length={longest}, but {base.name} reads at most {form.context} tokens.",
            allowed=f"32 to {form.context}.",
        )
    if method == "grpo" and arguments.max_completion_length >= longest:
        raise InvalidInput(
            "no_room_for_prompts",
            f"max_completion_length={arguments.max_completion_length} of at most {longest} tokens leaves no room for a "
            "prompt.",
            allowed=f"max_completion_length up to {longest - 1}, less the longest prompt; {base.name} reads "
            f"{form.context} tokens in all.",
        )
    if arguments.trainable_layers and arguments.trainable_layers > form.layers:
        raise InvalidInput(
            "too_many_layers", f"trainable_layers={arguments.trainable_layers}, but {base.name} has {form.layers}.",
            allowed=f'1 to {form.layers}, or finetuning_type="full".',
        )  # fmt: skip
    named = arguments.target_modules if form.is_fused and isinstance(arguments.target_modules, list) else []
    unknown = sorted(set(named) - set(TARGET_MODULES))
    if unknown:
        raise InvalidInput(
            "unknown_target_modules", f"target_modules names {unknown}, which {base.name} does not have.",
            allowed=f'{", ".join(TARGET_MODULES)}; or "{ALL_LINEAR}". Embeddings and head are trained with '
            "embedding_learning_rate.",
        )  # fmt: skip


def _check_device(arguments: TrainingArguments, machine: Machine) -> None:
    if machine.is_gpu:
        if arguments.precision == "bf16" and machine.compute_capability < gpu.BF16_CAPABILITY:
            raise InvalidInput(
                "no_bf16", f'precision="bf16", which {machine.name} cannot compute.', allowed="fp16, or left out."
            )
        return
    if arguments.load_in_4bit or arguments.load_in_8bit:
        raise InvalidInput(
            "four_bit_needs_gpu" if arguments.load_in_4bit else "eight_bit_needs_gpu",
            f"load_in_{4 if arguments.load_in_4bit else 8}bit=true, but this machine has no GPU.",
            allowed="On a CPU train 16-bit LoRA: leave it out.", next="check_environment()",
        )  # fmt: skip
    if arguments.packing:
        raise InvalidInput(
            "packing_needs_gpu",
            "packing=true, but without a GPU the backend cannot keep packed examples apart.",
            allowed="Leave packing out: it is chosen by itself.",
        )
    for name, value in (("vram_limit_gib", arguments.vram_limit_gib), ("precision", arguments.precision)):
        if value is not None and value != "fp32":
            raise InvalidInput(
                "needs_gpu", f"{name}={value!r}, but this machine has no GPU.", allowed="Leave it out.",
                next="check_environment()",
            )  # fmt: skip


def _contradiction(what: str, allowed: str) -> InvalidInput:
    return InvalidInput("arguments_contradict", f"{what}.", allowed=allowed, next="start_finetune(…), corrected")


def _checkpoint_bytes(base: models.Model, chosen: Plan) -> int:
    """Of the two checkpoints that are kept and the one being written: weights and two moments of each in float32."""
    arguments, form = chosen.arguments, architecture.of(base)
    trained = form.parameters
    if arguments["finetuning_type"] == "lora":
        trained = form.adapter_parameters(
            arguments["lora_rank"], arguments["target_modules"], dora=arguments["use_dora"]
        )
        trained += form.embeddings + form.head if arguments["embedding_learning_rate"] else 0
    return 3 * 4 * 3 * trained
