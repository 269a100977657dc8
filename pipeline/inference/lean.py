"""One token per row through a decoder of the Llama family, in as few kernels as there are stages. Heavy; for CUDA.

Reads the weights of transformers' own modules, of which there stays one copy: layers that read the same input are laid
side by side in memory, and the modules look into it. Adapters of plain LoRA stand beside, stacked in the same way.
Nothing is guaranteed of other architectures and other kinds of adapters: `Lean.fits` and `Lean.stack` say which.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from tunewright.pipeline.inference import kernels
from tunewright.pipeline.inference.forward import Context
from tunewright.pipeline.inference.lora import Pairs

# Families whose decoder layers differ in biases and in norms over the heads alone.
FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
# Of a rotary embedding that is a fixed table.
ROTARY = ("default", "linear", "llama3", "yarn")
# Linear layers that read the same input.
SITES = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "o": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}
# By site: A (rank, inputs) and B with its scale (outputs, rank), of all its layers together.
Beside = dict[str, tuple[torch.Tensor, torch.Tensor]]


class Projection:
    """Linear layers that read the same input: fused where their weights are matrices, else one after the other."""

    def __init__(self, layers: Sequence[Any]) -> None:
        self._layers = layers
        self.outputs = [int(layer.out_features) for layer in layers]
        self.weight: torch.Tensor | None = None
        self.bias: torch.Tensor | None = None
        if all(type(layer) is torch.nn.Linear for layer in layers):
            self.weight = _side_by_side([layer.weight for layer in layers])
            if layers[0].bias is not None:
                self.bias = _side_by_side([layer.bias for layer in layers])

    def __call__(self, x: torch.Tensor, lora: tuple[torch.Tensor, torch.Tensor] | None) -> torch.Tensor:
        """(rows, inputs) → (rows, outputs of all layers)."""
        if self.weight is not None and len(x) == 1:
            return kernels.project(x, self.weight, self.bias, lora)
        if self.weight is not None:
            y = functional.linear(x, self.weight, self.bias)
        else:
            # Not their hooks, which are for transformers' forward.
            parts = [layer.forward(x) for layer in self._layers]
            y = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
        if lora and len(x) == 1:
            return kernels.project(kernels.project(x, lora[0]), lora[1], y[0])
        return y.addmm_(functional.linear(x, lora[0]), lora[1].T) if lora else y


def _side_by_side(parts: Sequence[torch.nn.Parameter]) -> torch.Tensor:
    """One tensor of all, into which the parameters look from now on, so that they take no memory of their own."""
    if len(parts) == 1:
        return parts[0].data
    whole = torch.cat([part.data for part in parts])
    for part, view in zip(parts, whole.split([len(part) for part in parts]), strict=True):
        part.data = view
    return whole


class Room:
    """The memory of one batch: `ids` (rows,) is what the next step reads, at each row's `position`.

    Keys and values (layers, rows, heads, tokens, width); `table` holds the rotary embedding's cosines and sines.
    """

    def __init__(
        self, shape: tuple[int, ...], like: torch.Tensor, table: tuple[torch.Tensor, torch.Tensor]
    ) -> None:  # fmt: skip
        self.keys, self.values = like.new_zeros(shape), like.new_zeros(shape)
        self.ids, self.position = (torch.zeros(shape[1], dtype=torch.long, device=like.device) for _ in range(2))
        self.table = table

    def take(self, context: Context) -> None:
        """What was read, each row moved to its beginning: here nothing is padded."""
        rows, width = len(context.lengths), context.cache.get_seq_length()
        self.position.zero_()
        self.position[:rows] = context.lengths
        at = torch.arange(width, device=self.ids.device) + (width - context.lengths)[:, None]
        at = at.clamp(max=width - 1)[:, None, :, None]
        for number, layer in enumerate(context.cache.layers):
            for target, source in ((self.keys[number], layer.keys), (self.values[number], layer.values)):
                moved = source if context.mask is None else source.gather(2, at.expand_as(source))
                target[:rows, :, :width] = moved


@dataclass
class _Layer:
    before: torch.Tensor
    after: torch.Tensor
    norms: tuple[torch.Tensor, torch.Tensor, float] | None
    sites: dict[str, Projection]


class Lean:
    """Built before any adapter is loaded: PEFT would put itself before the layers."""

    def __init__(self, model: Any) -> None:
        decoder, config = model.model, model.config
        self._embedding, self._norm = decoder.embed_tokens.weight, decoder.norm.weight
        self._rotary, self._eps = decoder.rotary_emb, float(config.rms_norm_eps)
        self._head = Projection([model.lm_head])
        self._layers = [_layer(module) for module in decoder.layers]
        attention = decoder.layers[0].self_attn
        self._scale, self._width = float(attention.scaling), int(attention.head_dim)
        self._kv_heads = int(config.num_key_value_heads)

    @staticmethod
    def fits(config: Any) -> bool:
        """Whether a model of this config computes what is computed here."""
        return (
            config.model_type in FAMILIES
            and config.hidden_act == "silu"
            and getattr(config, "sliding_window", None) is None
            and (config.rope_parameters or {}).get("rope_type", "default") in ROTARY
        )

    def room(self, rows: int, tokens: int) -> "Room":
        shape = (len(self._layers), rows, self._kv_heads, tokens, self._width)
        positions = torch.arange(tokens, device=self._embedding.device)[None]
        cos, sin = self._rotary(self._embedding[:1], positions)
        return Room(shape, self._embedding, (cos[0].contiguous(), sin[0].contiguous()))

    def step(self, room: "Room", beside: Sequence[Beside] | None) -> torch.Tensor:
        """The logits (rows, vocabulary) after one more token of each row, with an adapter's matrices `beside`."""
        stream, delta = functional.embedding(room.ids, self._embedding), None
        for number, layer in enumerate(self._layers):
            lora = beside[number] if beside else {}
            keys, values = room.keys[number], room.values[number]
            x = kernels.add_norm(delta, stream, layer.before, self._eps)
            qkv = layer.sites["qkv"](x, lora.get("qkv"))
            queries = kernels.store_heads(qkv, layer.norms, room.table, room.position, keys, values)
            x = kernels.attend(queries, keys, values, room.position, self._scale)
            x = kernels.add_norm(layer.sites["o"](x, lora.get("o")), stream, layer.after, self._eps)
            x = kernels.silu_mul(layer.sites["gate_up"](x, lora.get("gate_up")))
            delta = layer.sites["down"](x, lora.get("down"))
        room.position += 1
        return self._head(kernels.add_norm(delta, stream, self._norm, self._eps), None)

    def stack(self, pairs: Pairs) -> list[Beside] | None:
        """An adapter's matrices by layer and site; None where it is not on these layers alone."""
        left = dict(pairs)
        stacked = [
            {site: pair for site in SITES if (pair := self._beside(f"model.layers.{number}.", layer, site, left))}
            for number, layer in enumerate(self._layers)
        ]
        return None if left else stacked

    def _beside(self, prefix: str, layer: _Layer, site: str, left: Pairs) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Of all layers of a site together, taken from what is left."""
        low: list[torch.Tensor] = []
        up: list[torch.Tensor] = []
        for path, outputs in zip(SITES[site], layer.sites[site].outputs, strict=True):
            pair = left.pop(prefix + path, None)
            low += [pair[0]] if pair else []
            up.append(pair[1] if pair else self._embedding.new_zeros(outputs, 0))
        return (torch.cat(low), torch.block_diag(*up)) if low else None


def _layer(module: Any) -> _Layer:
    attention = module.self_attn
    norms = None
    if hasattr(attention, "q_norm"):
        norms = (attention.q_norm.weight, attention.k_norm.weight, float(attention.q_norm.variance_epsilon))
    sites = {site: Projection([module.get_submodule(path) for path in paths]) for site, paths in SITES.items()}
    return _Layer(module.input_layernorm.weight, module.post_attention_layernorm.weight, norms, sites)
