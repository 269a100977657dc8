"""How much VRAM a fine-tune takes, by part, from the model's shape and the arguments alone.

Guarantees: within 10 % of `torch.cuda.max_memory_allocated` for LoRA and QLoRA with Unsloth on all of the measured runs
in benchmarks/RESULTS.md (0.6B to 8B, 512 to 32,768 tokens a micro-batch; tests hold it). The other methods and 8-bit,
full, freeze and DoRA go by formula: short runs of DPO, ORPO and GRPO took up to 12 % less, of KTO a third less; the
rest is not measured. Does not count what the allocator holds beyond what is in use (`FRAGMENTATION`) nor the CUDA
context.

The peak is what is resident (weights, adapter, optimizer with gradients) + activations kept for the backward pass + the
larger of two working sets that are never there at once: a layer's backward pass, or a chunk of the logits.
"""

from dataclasses import dataclass
from typing import Any

from tunewright.pipeline.planning.architecture import Architecture

GIB = 2**30
Arguments = dict[str, Any]

# Of the largest measured ratio of reserved to allocated memory, 1.046 (raw runs of RESULTS.md's table), and the error.
FRAGMENTATION = 1.07
# cuBLAS's workspace on Hopper: measured as what is loaded beyond the weights, the same for every model.
WORKSPACE_GIB = 0.031
# What is left of every measured peak after all else: 0.03 to 0.05 GiB (inputs, rotary tables, temporaries).
SMALL_GIB = 0.04
# Unsloth computes head and loss in chunks; a chunk took 0.34 GiB at 151,936 entries in every run.
LOGIT_ROWS, BYTES_PER_CHUNKED_LOGIT = 512, 4.7
# Without chunks: the logits at 16 bits, their 32-bit copy, and its gradient.
BYTES_PER_LOGIT = 2 + 4 + 4
# Hidden states that Unsloth's offloading keeps on the GPU: measured as the difference to one of each layer.
OFFLOADED_KEPT = 4
# PEFT trains adapters in fp32, and so do copies of the embeddings (modules_to_save).
ADAPTER_BYTES = 4
# Bytes of state per trained parameter; paged states live in host memory that the driver moves in and out.
STATE_BYTES = {
    "adamw_torch": 8, "adamw_torch_fused": 8, "adamw_8bit": 2, "paged_adamw_8bit": 0, "paged_adamw_32bit": 0,
    "lion_8bit": 1, "lion_32bit": 4, "adafactor": 0.1, "sgd": 0, "rmsprop": 4, "adagrad": 4,
}  # fmt: skip
# An answer that is chosen and one that is rejected; KTO adds the same prompts with others' answers.
SEQUENCES_PER_ROW = {"dpo": 2, "orpo": 2, "kto": 2}
PREFERENCE = set(SEQUENCES_PER_ROW)


@dataclass(frozen=True)
class Memory:
    """In GiB."""

    weights: float
    adapter: float
    optimizer: float
    activations: float
    logits: float
    overhead: float

    @property
    def peak(self) -> float:
        return self.resident + self.activations + self.logits

    @property
    def resident(self) -> float:
        """What is there whatever the micro-batch."""
        return self.weights + self.adapter + self.optimizer + self.overhead

    @property
    def needed(self) -> float:
        """What a limit must leave for it."""
        return self.peak * FRAGMENTATION

    def by_part(self) -> dict[str, float]:
        return {name: round(value, 2) for name, value in vars(self).items()}


def estimate(model: Architecture, arguments: Arguments, method: str, longest: int, *, on_gpu: bool = True) -> Memory:
    """`arguments` are complete; `longest` is the longest row in tokens, which bounds one that is not packed."""
    row = arguments["max_seq_length"] if arguments["packing"] else min(arguments["max_seq_length"], longest)
    tokens = arguments["batch_size"] * row * SEQUENCES_PER_ROW.get(method, 1)
    weights, trained, gradients = _trained(model, arguments, on_gpu=on_gpu)
    kept, working = _activations(model, arguments, tokens, 4 if _is_fp32(arguments, on_gpu=on_gpu) else 2)
    logits = _logits(model, method, tokens) + (_generation(model, arguments, row) if method == "grpo" else 0)
    overhead = (WORKSPACE_GIB if on_gpu else 0) + SMALL_GIB
    return Memory(
        weights / GIB,
        trained / GIB,
        gradients / GIB,
        (kept + working) / GIB,
        max(0.0, logits - working) / GIB,
        overhead,
    )


def weight_bits(model: Architecture, arguments: Arguments, *, on_gpu: bool = True) -> int:
    if arguments["load_in_4bit"]:
        return 4
    if arguments["load_in_8bit"]:
        return 8
    # A full fine-tune in fp16 needs fp32 weights to add small steps to.
    wide = arguments["finetuning_type"] != "lora" and arguments["precision"] != "bf16"
    return 32 if wide or _is_fp32(arguments, on_gpu=on_gpu) else 16


def _is_fp32(arguments: Arguments, *, on_gpu: bool) -> bool:
    """Whether it computes in 32 bits, as a CPU does whatever is asked for."""
    return not on_gpu or arguments["precision"] == "fp32"


def trainable(model: Architecture, arguments: Arguments) -> tuple[int, int]:
    """Trained parameters: those of the layers (adapter, or weights) and those of embeddings and head."""
    kind = arguments["finetuning_type"]
    if kind == "full":
        return model.parameters - model.embeddings, model.embeddings
    if kind == "freeze":
        share = min(1.0, arguments["trainable_layers"] / model.layers)
        return round(share * model.linear), 0
    adapter = model.adapter_parameters(arguments["lora_rank"], arguments["target_modules"], dora=arguments["use_dora"])
    return adapter, (model.embeddings + model.head if arguments["embedding_learning_rate"] else 0)


def _trained(model: Architecture, arguments: Arguments, *, on_gpu: bool) -> tuple[float, float, float]:
    """Bytes of the weights, of what is added to train beside them, and of gradients and optimizer states."""
    bits = weight_bits(model, arguments, on_gpu=on_gpu)
    layers, embeddings = trainable(model, arguments)
    state = STATE_BYTES[arguments["optimizer"]]
    # transformers keeps the states of embeddings at 32 bits beside 8-bit optimizers.
    embedding_state = 8 if "adamw_8bit" in arguments["optimizer"] else state
    if arguments["finetuning_type"] == "lora":
        added = (layers + embeddings) * ADAPTER_BYTES
        return (
            model.weight_bytes(bits), added, added + layers * state + embeddings * embedding_state,
        )  # fmt: skip
    width = bits // 8
    # AdamW's two moments have the width of the weights.
    state = min(state, 2 * width)
    return model.weight_bytes(bits), 0, layers * (width + state) + embeddings * (width + embedding_state)


def _activations(model: Architecture, arguments: Arguments, tokens: int, width: int) -> tuple[float, float]:
    """Bytes kept from the forward for the backward pass, and of one layer's backward pass; `width` of one number.

    Fitted to the slopes of the measured peaks, which the counts of tensors explain to 2 %: of a layer 5 of the hidden
    size (input, two normed, residual, output), 2 of the MLP's (gate, up), 3 of the queries' (before and after rotation,
    output), 4 of the keys'; its backward pass 4 of the MLP's and one of the hidden size. Over packed rows Unsloth does
    not compile its layers, and its own kernels write gate's and up's gradients over gate and up: one of the MLP's, and
    the gradients of its output and input.
    """
    hidden, mlp = width * model.hidden, width * model.layer_width
    queries, keys = width * model.heads * model.head_dim, width * model.kv_heads * model.head_dim
    is_fused = model.is_fused and not arguments["lora_dropout"] and not arguments["use_dora"]
    # Each of the steps by itself keeps its input: three more of the hidden size, the activated gate and the product.
    layer = 5 * hidden + 2 * mlp + 3 * queries + 4 * keys + (0 if is_fused else 3 * hidden + 2 * mlp)
    backward = mlp + 2 * hidden if arguments["packing"] and is_fused else 4 * mlp + hidden
    norm = 2 * 4 * model.hidden * max(model.intermediate, model.hidden) if arguments["use_dora"] else 0
    kind = arguments["gradient_checkpointing"]
    # Below the trained layers of a freeze run nothing is kept.
    layers = model.layers
    if arguments["finetuning_type"] == "freeze":
        layers = min(layers, arguments["trainable_layers"])
    if kind == "none":
        return tokens * layers * layer, tokens * backward + norm
    states = min(layers, OFFLOADED_KEPT) if kind == "unsloth" else layers
    return tokens * states * hidden, tokens * (layer + backward) + norm


def _logits(model: Architecture, method: str, tokens: int) -> float:
    if method in PREFERENCE or method == "grpo":
        return tokens * model.vocabulary * BYTES_PER_LOGIT
    return min(tokens, LOGIT_ROWS) * model.vocabulary * BYTES_PER_CHUNKED_LOGIT


def _generation(model: Architecture, arguments: Arguments, prompt: int) -> float:
    """Bytes of keys and values of the answers that are generated together."""
    answers = arguments["batch_size"] * arguments["gradient_accumulation"]
    tokens = min(arguments["max_seq_length"], prompt) + arguments["max_completion_length"]
    return answers * tokens * model.layers * 2 * 2 * model.kv_heads * model.head_dim
