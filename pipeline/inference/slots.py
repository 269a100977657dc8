"""One token per row through transformers' own forward, with memory that stays in place, so that it can be captured.

Heavy. For every architecture whose forward has no branch that depends on numbers on the GPU, and for every kind of
adapter. Rows stay padded on the left, as they were read; layers with a sliding window keep all tokens and leave the
window to the mask.
"""

from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicLayer, DynamicSlidingWindowLayer

from tunewright.pipeline.inference.forward import Context, Forward


class _Layer(CacheLayerMixin):
    """Room for one layer's keys and values; the next token's go to the slot `at`, which all layers share."""

    is_compileable = True

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, at: torch.Tensor) -> None:
        super().__init__()
        self.tensors, self._at, self.is_initialized = (keys, values), at, True
        self.keys, self.values = keys, values

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        raise NotImplementedError("it is made with its memory")

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = self.tensors
        keys.index_copy_(2, self._at, key_states)
        values.index_copy_(2, self._at, value_states)
        return keys, values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_max_length(), 0

    def get_seq_length(self) -> Any:
        return self._at

    def get_max_length(self) -> int:
        return self.tensors[0].shape[2]


class Room:
    """The memory of one batch: `ids` (rows,) is what the next step reads and puts into the slot `at`."""

    def __init__(self, shapes: list[tuple[int, int, int]], rows: int, tokens: int, forward: Forward) -> None:
        def zeros(*shape: int, dtype: torch.dtype = torch.long) -> torch.Tensor:
            return torch.zeros(shape, dtype=dtype, device=forward.device)

        self.ids, self.position, self.at = zeros(rows), zeros(rows), zeros(1)
        self.mask = zeros(rows, tokens, dtype=torch.bool)
        dtype = forward.model.dtype
        self._layers = [
            _Layer(zeros(rows, heads, tokens, k, dtype=dtype), zeros(rows, heads, tokens, v, dtype=dtype), self.at)
            for heads, k, v in shapes
        ]
        self.cache = Cache(layers=list(self._layers))

    def take(self, context: Context) -> None:
        """What was read."""
        count, width = len(context.lengths), context.cache.get_seq_length()
        self.at.fill_(width)
        self.position.zero_()
        self.position[:count] = context.lengths
        self.mask.fill_(True)
        if context.mask is not None:
            self.mask[:count, :width] = context.mask
        for room, read in zip(self._layers, context.cache.layers, strict=True):
            kept = read.keys.shape[2]  # of a sliding window its last tokens alone
            for target, source in zip(room.tensors, (read.keys, read.values), strict=True):
                target[:count, :, width - kept : width] = source


class Slots:
    """Makes room, if the model's cache is of plain and sliding attention alone."""

    def __init__(self, forward: Forward, cache: Any) -> None:
        self._forward = forward
        self._shapes = [(layer.keys.shape[1], layer.keys.shape[3], layer.values.shape[3]) for layer in cache.layers]

    @staticmethod
    def fit(forward: Forward, cache: Any) -> bool:
        kinds = {type(layer) for layer in cache.layers}
        return forward.model._can_compile_fullgraph and kinds <= {DynamicLayer, DynamicSlidingWindowLayer}

    def room(self, rows: int, tokens: int) -> Room:
        return Room(self._shapes, rows, tokens, self._forward)

    def step(self, room: Room, beside: None) -> torch.Tensor:
        """The logits (rows, vocabulary) after one more token of each row; the adapter is the model's own matter."""
        output = self._forward.run(
            room.ids[:, None], room.mask, room.position[:, None], use_cache=True, keep=1, past_key_values=room.cache
        )
        room.at += 1
        room.position += 1
        return output.logits[:, -1]
