"""What a model is, from its config.json: parameters by part, bytes, arithmetic, and whether examples can be packed.

Guarantees: exact counts for decoders of Llama's form (Llama, Mistral, Qwen, Gemma, Phi, Granite …), dense or with
experts. Does not guarantee them for anything else: what the weights' files hold beyond the count (a vision tower) is
taken as further 16-bit weights.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from tunewright.pipeline import models
from tunewright.pipeline.errors import InvalidInput
from tunewright.pipeline.exporting import weights
from tunewright.pipeline.training.arguments import ALL_LINEAR

Config = dict[str, Any]

DEFAULT_CONTEXT = 2048
# max_seq_length's least.
SHORTEST_CONTEXT = 32
# By the names of transformers' classes.
NO_DECODERS = ("ForMaskedLM", "ForSequenceClassification", "ForTokenClassification")
# Unsloth's own forward and backward passes (unsloth/models/loader.py); everything else goes through transformers' code.
FUSED_TYPES = {"llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2"}
# Packed rows are known to equal each example alone: Unsloth's attention reads `packed_seq_lengths` for the first line's
# (unsloth/utils/attention_dispatch.py), the second line's are on its list of verified families (unsloth/trainer.py).
# gemma2 and gpt_oss are on its list of those where packing fails, hybrids with recurrent layers leak their state.
PACKABLE_TYPES = {"llama", "mistral", "qwen2", "qwen3", "qwen3_moe", "gemma", "granite", "cohere"} | {
    "gemma3", "gemma3_text", "gemma4", "gemma4_text",
}  # fmt: skip
MOE_FIELDS = ("num_experts", "num_local_experts", "n_routed_experts")
ATTENTION_MODULES = {"q_proj", "k_proj", "v_proj", "o_proj"}
# NF4 by bitsandbytes with double quantization: 4 bits, one byte for each 64 values, four more for each 256 of these.
BYTES_PER_PARAMETER = {4: 0.5 + 1 / 64 + 4 / (64 * 256), 8: 1.0, 16: 2.0, 32: 4.0}
# The Hub's `…-unsloth-bnb-4bit` files, which Unsloth loads for `unsloth/…` in 4 bits, keep some layers at 16 bits: an
# allowance, not a measurement.
DYNAMIC_4BIT = 1.2


@dataclass(frozen=True)
class Architecture:
    """Counts are of parameters. `experts` are those of a layer, 0 where it is dense; `expert_width` is of one."""

    model_type: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    context: int
    tied: bool
    experts: int = 0
    active_experts: int = 0
    expert_width: int = 0
    moe_layers: int = 0
    shared_width: int = 0
    other: int = 0
    quantized_bits: int | None = None
    is_dynamic: bool = False
    hybrid: bool = False
    modules: dict[str, tuple[int, int, int]] = field(default_factory=dict[str, tuple[int, int, int]])

    @property
    def embeddings(self) -> int:
        return self.vocabulary * self.hidden

    @property
    def head(self) -> int:
        """Of the output head's own weights; a tied one has none."""
        return 0 if self.tied else self.embeddings

    @property
    def attention(self) -> int:
        return sum(self._of(name) for name in self.modules if name in ATTENTION_MODULES)

    @property
    def mlp(self) -> int:
        return sum(self._of(name) for name in self.modules if name not in ATTENTION_MODULES)

    @property
    def norms(self) -> int:
        per_head = 2 * self.head_dim if self.model_type in ("qwen3", "qwen3_moe", "gemma3", "gemma3_text") else 0
        return self.layers * (2 * self.hidden + per_head) + self.hidden

    @property
    def linear(self) -> int:
        return self.attention + self.mlp

    @property
    def parameters(self) -> int:
        return self.linear + self.embeddings + self.head + self.norms + self.other

    @property
    def active_linear(self) -> int:
        """Linear weights that one token passes: of the experts only those that it is sent to."""
        idle = 1 - self.active_experts / self.experts if self.experts else 0
        return round(self.linear - idle * self.moe_layers * self.experts * 3 * self.hidden * self.expert_width)

    @property
    def is_fused(self) -> bool:
        return self.model_type in FUSED_TYPES

    @property
    def can_pack(self) -> bool:
        return self.model_type in PACKABLE_TYPES and not self.hybrid

    @property
    def has_usual_modules(self) -> bool:
        """Whether its linear layers are called as Llama's are."""
        return self.model_type in FUSED_TYPES | PACKABLE_TYPES

    @property
    def layer_width(self) -> int:
        """Of the MLP's activations that one token makes in a layer."""
        if not self.experts:
            return self.intermediate
        return self.active_experts * self.expert_width + self.shared_width

    def weight_bytes(self, bits: int) -> float:
        """On the device with the linear layers at `bits`; embeddings, head and norms stay at 16 (at 32 all are)."""
        wide = 4 if bits == 32 else 2
        dynamic = DYNAMIC_4BIT if bits == 4 and self.is_dynamic else 1
        return self.linear * BYTES_PER_PARAMETER[bits] * dynamic + (self.parameters - self.linear) * wide

    def adapter_parameters(self, rank: int, targets: list[str] | str, *, dora: bool = False) -> int:
        """LoRA's: r × (in + out) for each matrix; DoRA adds a magnitude for each output."""
        chosen = [
            size for name, size in self.modules.items() if targets == ALL_LINEAR or name.rpartition(".")[2] in targets
        ]
        return sum(count * (rank * (wide + out) + (out if dora else 0)) for wide, out, count in chosen)

    def attention_flops_per_pair(self) -> int:
        """Forward, for each pair of a query and a key: QKᵀ and AV, 2 × 2 FLOPs for each of the heads' dimensions."""
        return 4 * self.layers * self.heads * self.head_dim

    def _of(self, name: str) -> int:
        wide, out, count = self.modules[name]
        return wide * out * count


def of(base: models.Model) -> Architecture:
    """The architecture of a model that may be here or only on the Hub. Raises InvalidInput where it is no decoder."""
    config = _part(base.config)
    text = next(
        (part for key in ("text_config", "llm_config", "language_config") if (part := _part(config.get(key)))), config
    )
    found = _read(base.name, text, config)
    is_dynamic = base.name.lower().startswith("unsloth/") and not base.name.lower().endswith("-bnb-4bit")
    quantization = _part(config.get("quantization_config"))
    bits = 4 if quantization.get("load_in_4bit") else 8 if quantization.get("load_in_8bit") else None
    other = 0
    if base.folder and bits is None and text is not config:
        stored = _stored_parameters(base.folder)
        other = max(0, stored - found["parameters"])
    del found["parameters"]
    return Architecture(
        **found, other=other, quantized_bits=bits, is_dynamic=is_dynamic or "unsloth-bnb-4bit" in base.name.lower()
    )


def _part(value: Any) -> Config:
    """A config, or a section of one; empty where it is not there or something else."""
    return cast(Config, value) if isinstance(value, dict) else {}


def _read(name: str, text: Config, config: Config) -> Config:
    heads_of = cast("list[str]", config.get("architectures") or [])
    if config.get("is_encoder_decoder") or any(str(head).endswith(NO_DECODERS) for head in heads_of):
        raise InvalidInput(
            "not_a_decoder",
            f"{name} is no decoder, but {', '.join(heads_of) or 'an encoder with one'} (model_type "
            f"{config.get('model_type')!r}).",
            allowed="Models that write text from left to right, called …ForCausalLM.",
            next="list_models()",
        )
    hidden = _number(name, text, "hidden_size", "n_embd", "d_model")
    layers = _number(name, text, "num_hidden_layers", "n_layer", "num_layers")
    heads = _number(name, text, "num_attention_heads", "n_head", "num_heads")
    vocabulary = _number(name, text | {"vocab_size": text.get("vocab_size", config.get("vocab_size"))}, "vocab_size")
    intermediate = _number(name, text, "intermediate_size", "n_inner", "ffn_dim", default=4 * hidden)
    head_dim = _number(name, text, "head_dim", default=max(1, hidden // heads))
    kv_heads = _number(name, text, "num_key_value_heads", default=heads)
    context = _number(name, text, "max_position_embeddings", "n_positions", default=DEFAULT_CONTEXT)
    if context < SHORTEST_CONTEXT:
        raise InvalidInput(
            "context_too_short", f"{name} reads at most {context} tokens.",
            allowed=f"Models that read {SHORTEST_CONTEXT} or more.", next="list_models()",
        )  # fmt: skip
    model_type = str(text.get("model_type") or config.get("model_type") or "")
    # transformers' own default is True; the families outside Gemma's write the key or set it to False in their class.
    tied = bool(text.get("tie_word_embeddings", config.get("tie_word_embeddings", model_type.startswith("gemma"))))
    shape: Config = {
        "model_type": model_type, "hidden": hidden, "layers": layers, "heads": heads, "kv_heads": kv_heads,
        "head_dim": head_dim, "intermediate": intermediate, "vocabulary": vocabulary, "tied": tied,
        "context": context, "hybrid": _has_recurrent_layers(text), **_experts(name, text, layers, intermediate),
    }  # fmt: skip
    shape["modules"] = _modules(shape)
    counted = Architecture(**shape)
    return shape | {"parameters": counted.parameters}


def _number(name: str, text: Config, *keys: str, default: int | None = None) -> int:
    """The first of `keys` that says something; where it says it for each layer (Gemma 3n), the largest."""
    found: Any = next((text[key] for key in keys if text.get(key)), default)
    if isinstance(found, list) and found:
        found = max(cast("list[Any]", found), key=lambda value: value if isinstance(value, int) else 0)
    if isinstance(found, float) and found.is_integer():
        found = int(found)
    if not isinstance(found, int) or isinstance(found, bool) or (found < 1 and found != default):
        raise InvalidInput(
            "unknown_architecture",
            f"{name}'s config.json (model_type {text.get('model_type')!r}) has no {keys[0]} that is a number.",
            allowed="Language models of transformers can be planned and trained.",
            next="list_models()",
        )
    return found


def _experts(name: str, text: Config, layers: int, intermediate: int) -> Config:
    experts = _number(name, text, *MOE_FIELDS, default=0)
    if not experts:
        return {}
    width = _number(name, text, "moe_intermediate_size", default=intermediate)
    step = _number(name, text, "decoder_sparse_step", default=1)
    first = _number(name, text, "first_k_dense_replace", default=0)
    dense = {*cast("list[int]", text.get("mlp_only_layers") or []), *range(first)}
    shared = _number(name, text, "n_shared_experts", default=0) * width
    shared = _number(name, text, "shared_expert_intermediate_size", default=shared)
    active = _number(name, text, "num_experts_per_tok", default=1)
    return {
        "experts": experts, "active_experts": min(active, experts), "expert_width": width,
        "moe_layers": sum((i + 1) % step == 0 and i not in dense for i in range(layers)), "shared_width": shared,
    }  # fmt: skip


def _modules(shape: Config) -> dict[str, tuple[int, int, int]]:
    """(in, out, how many in the model) of each linear layer by name; experts are counted with their number."""
    hidden, layers = shape["hidden"], shape["layers"]
    q, kv = shape["heads"] * shape["head_dim"], shape["kv_heads"] * shape["head_dim"]
    modules = {
        "q_proj": (hidden, q, layers), "k_proj": (hidden, kv, layers), "v_proj": (hidden, kv, layers),
        "o_proj": (q, hidden, layers),
    }  # fmt: skip
    moe = shape.get("moe_layers", 0)
    kinds = [(shape["intermediate"], layers - moe, "")]
    if moe:
        kinds += [(shape["expert_width"], moe * shape["experts"], "experts."), (shape["shared_width"], moe, "shared.")]
    for width, count, kind in kinds:
        if width and count:
            modules |= {f"{kind}{name}": (hidden, width, count) for name in ("gate_proj", "up_proj")}
            modules[f"{kind}down_proj"] = (width, hidden, count)
    if moe:
        modules["router"] = (hidden, shape["experts"], moe)
    return modules


def _has_recurrent_layers(text: Config) -> bool:
    kinds = cast("list[str]", text.get("layer_types") or text.get("layers_block_type") or [])
    return any(word in str(kind) for kind in kinds for word in ("linear", "mamba", "recurrent")) or any(
        key.startswith(("mamba_", "ssm_", "linear_num_")) for key in text
    )


def _stored_parameters(folder: Path) -> int:
    """Of all safetensors in a folder, from their headers. Raises InvalidInput where one is damaged."""
    return sum(stored.elements for file in folder.glob("*.safetensors") for stored in weights.declared(file)[0])
