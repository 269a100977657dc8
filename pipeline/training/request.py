"""From a request to the exact specification of a fine-tune: everything checked and every default chosen. Light."""

from typing import Any

from tunewright.pipeline import files, gpu, models
from tunewright.pipeline.errors import InvalidInput, call
from tunewright.pipeline.store import Row
from tunewright.pipeline.training.arguments import TARGET_MODULES, TrainingArguments
from tunewright.pipeline.workspace import Workspace

METHODS = ("sft",)
USUAL_MAX_SEQ_LENGTH = 2048
EFFECTIVE_BATCH_ROWS = 8
# Without packing the shorter rows of a batch are padded to the longest, so on a CPU long rows go one by one:
# 4,700 instead of 1,000 tokens/s on Alpaca's lengths with the toy.
CPU_MICRO_BATCH_TOKENS = 512
# A checkpoint of an adapter with its optimizer state, of which two are kept.
BYTES_PER_ADAPTER_PARAMETER = 4 * (4 + 8)


def check(
    workspace: Workspace,
    dataset_id: str,
    model: str,
    method: str,
    arguments: TrainingArguments,
    continue_from: str | None,
) -> dict[str, Any]:
    """The spec of a `finetune` job. Raises InvalidInput, NotFound, Unavailable or NoSpace; starts nothing."""
    dataset = workspace.store.artifact(dataset_id, "dataset")
    if method not in METHODS:
        raise InvalidInput(
            "unknown_method", f"method={method!r} is not supported.", allowed=f"Supported: {', '.join(METHODS)}.",
            next=call("start_finetune", dataset_id=dataset["id"], model=model, method="sft"),
        )  # fmt: skip
    kind = dataset["document"].get("kind", "sft")
    if kind != "sft":
        raise InvalidInput(
            "dataset_of_another_kind",
            f"{dataset['id']} holds {kind} data ({dataset['document']['format']}); method={method!r} trains on sft "
            "data: conversations that end with an answer.",
            allowed="Preference pairs, judged answers and raw text can be prepared and inspected; training on them is "
            "not there yet.",
            next='list_artifacts(kind="dataset")',
        )
    base = models.resolve(workspace, model)
    models.tokenizer_folder(workspace, model)
    chosen = _choose(arguments, dataset, base)
    spec: dict[str, Any] = {
        "dataset_id": dataset["id"],
        "model": base.name,
        "method": method,
        "name": arguments.name or f"{dataset['name']}",
        "arguments": chosen.model_dump(),
        "continue_from": None,
    }
    if continue_from:
        adapter = workspace.store.artifact(continue_from, "adapter")
        if adapter["document"]["base_model"] != base.name:
            raise InvalidInput(
                "adapter_of_another_base",
                f"{adapter['id']} was trained on {adapter['document']['base_model']!r}, not on {base.name!r}.",
                allowed="An adapter goes on only on its own base.",
                next=call(
                    "start_finetune", dataset_id=dataset["id"], model=adapter["document"]["base_model"],
                    continue_from=adapter["id"],
                ),
            )  # fmt: skip
        spec["continue_from"] = adapter["id"]
        # The shape of the weights is the earlier adapter's.
        shape = ("lora_rank", "lora_alpha", "target_modules")
        spec["arguments"] |= {key: adapter["document"]["training"][key] for key in shape}
    files.require_space(workspace.home.root, _checkpoint_bytes(spec["arguments"], base), "Training's checkpoints")
    return spec


def _choose(arguments: TrainingArguments, dataset: Row, base: models.Model) -> TrainingArguments:
    on_gpu = bool(gpu.indexes())
    if arguments.load_in_4bit and not on_gpu:
        raise InvalidInput(
            "four_bit_needs_gpu", "load_in_4bit=true, but this machine has no GPU.",
            allowed="On a CPU train 16-bit LoRA: load_in_4bit=false.", next="check_environment()",
        )  # fmt: skip
    if arguments.packing and not on_gpu:
        raise InvalidInput(
            "packing_needs_gpu",
            "packing=true, but without a GPU the backend cannot keep packed examples apart.",
            allowed="Leave packing out: it is chosen by itself.",
        )
    context = int(base.config.get("max_position_embeddings") or USUAL_MAX_SEQ_LENGTH)
    if arguments.max_seq_length and arguments.max_seq_length > context:
        raise InvalidInput(
            "sequence_too_long",
            f"max_seq_length={arguments.max_seq_length}, but {base.name} reads at most {context} tokens.",
            allowed=f"32 to {context}.",
        )
    tokens = dataset["document"]["tokens"]
    longest = int(tokens["max"])
    cpu_batch = max(1, min(EFFECTIVE_BATCH_ROWS, CPU_MICRO_BATCH_TOKENS // max(1, int(tokens["p90"]))))
    batch = arguments.batch_size or (2 if on_gpu else cpu_batch)
    return arguments.model_copy(
        update={
            # A multiple of 64 above the longest row; the estimate may be off where another tokenizer counted.
            "max_seq_length": arguments.max_seq_length
            or min(context, USUAL_MAX_SEQ_LENGTH, max(256, -(-longest * 3 // 2 // 64) * 64)),
            "lora_alpha": arguments.lora_alpha or 2 * arguments.lora_rank,
            "target_modules": arguments.target_modules or TARGET_MODULES,
            "batch_size": batch,
            "gradient_accumulation": arguments.gradient_accumulation or max(1, EFFECTIVE_BATCH_ROWS // batch),
            "load_in_4bit": on_gpu if arguments.load_in_4bit is None else arguments.load_in_4bit,
            "packing": on_gpu if arguments.packing is None else arguments.packing,
        }
    )


def _checkpoint_bytes(arguments: dict[str, Any], base: models.Model) -> int:
    """Adapter parameters are r × (in + out) per matrix; bounded by the widest matrix of each layer."""
    config = base.config
    width = int(config.get("hidden_size", 4096)) + int(config.get("intermediate_size", 4 * 4096))
    matrices = int(config.get("num_hidden_layers", 32)) * len(arguments["target_modules"])
    return 3 * BYTES_PER_ADAPTER_PARAMETER * int(arguments["lora_rank"]) * width * matrices
