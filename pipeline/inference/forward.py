"""A causal language model run over batches of token ids, with transformers' own forward and cache. Heavy.

Serves every architecture that transformers loads as a causal language model. Rows of unlike length are padded on the
left, masked, and counted from their own first token, so that a row's logits do not depend on its neighbours beyond
rounding.
"""

import copy
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

# Of any id: what stands in the padding is masked.
PAD = 0
# What passes between two layers and within one, in numbers per hidden unit; an MLP's inner width is 3 to 4 of it.
NUMBERS_PER_HIDDEN = 24


@dataclass
class Context:
    """What a batch has read: the cache, `mask` (rows, tokens; None where no row is padded), `lengths` (rows,)."""

    cache: Any
    mask: torch.Tensor | None
    lengths: torch.Tensor


class Forward:
    """Call every method under torch.inference_mode and with the adapter switched that is meant."""

    def __init__(self, model: Any, device: torch.device) -> None:
        self.model, self.device = model, device
        self._accepts = inspect.signature(model.forward).parameters.keys()
        text = model.config.get_text_config()
        self.vocabulary = int(text.vocab_size)
        itemsize = model.dtype.itemsize
        self.activation_bytes = NUMBERS_PER_HIDDEN * int(text.hidden_size) * itemsize
        self.logit_bytes = self.vocabulary * itemsize
        with torch.inference_mode():
            _, context = self.read([[PAD]])
        self.cache_bytes = _bytes(context.cache)

    def read(self, rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, Context]:
        """The logits after the last token of each row, (rows, vocabulary), and what was read."""
        ids, mask = self._padded(rows)
        output = self.run(ids, mask, _positions(ids, mask), use_cache=True, keep=1)
        lengths = torch.tensor([len(row) for row in rows], device=self.device)
        return output.logits[:, -1], Context(output.past_key_values, mask, lengths)

    def advance(self, context: Context, ids: torch.Tensor) -> torch.Tensor:
        """The logits after one more token of each row, `ids` (rows, 1); the context grows by it."""
        if context.mask is not None:
            context.mask = torch.cat([context.mask, torch.ones_like(context.mask[:, :1])], 1)
        output = self.run(
            ids, context.mask, context.lengths[:, None], use_cache=True, keep=1, past_key_values=context.cache
        )
        context.lengths = context.lengths + 1
        return output.logits[:, -1]

    def keep(self, context: Context, rows: torch.Tensor) -> None:
        """Drops all other rows of the context."""
        context.cache.batch_select_indices(rows)
        context.lengths = context.lengths[rows]
        if context.mask is not None:
            context.mask = context.mask[rows]

    def last_logits(self, rows: Sequence[Sequence[int]], tokens: int) -> torch.Tensor:
        """The logits at the last `tokens` places of each row, (rows, tokens, vocabulary)."""
        ids, mask = self._padded(rows)
        return self.run(ids, mask, _positions(ids, mask), use_cache=False, keep=tokens).logits[:, -tokens:]

    def continued(self, prefix: Context | None, rows: Sequence[Sequence[int]]) -> torch.Tensor:
        """The logits after the last token of each row, (rows, vocabulary), each of which follows the one prefix.

        The prefix itself stays as it is. Padded on the right: between prefix and row, padding would widen the distances
        that a sliding window counts.
        """
        width = max(map(len, rows))
        ids = torch.tensor([[*row, *[PAD] * (width - len(row))] for row in rows], device=self.device)
        seen = int(prefix.lengths[0]) if prefix else 0
        positions = torch.arange(seen, seen + width, device=self.device)[None].expand(len(rows), -1)
        ends = sorted({len(row) - 1 for row in rows})
        more: dict[str, Any] = {}
        if prefix:
            more["past_key_values"] = copy.deepcopy(prefix.cache)
            more["past_key_values"].batch_repeat_interleave(len(rows))
        keep = torch.tensor(ends, device=self.device)
        logits = self.run(ids, None, positions, use_cache=prefix is not None, keep=keep, **more).logits
        at = [ends.index(len(row) - 1) for row in rows]
        return logits[torch.arange(len(rows), device=self.device), torch.tensor(at, device=self.device)]

    def _padded(self, rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor | None]:
        width = max(map(len, rows))
        ids = torch.tensor([[*[PAD] * (width - len(row)), *row] for row in rows], device=self.device)
        if all(len(row) == width for row in rows):
            return ids, None
        first = torch.tensor([width - len(row) for row in rows], device=self.device)
        return ids, torch.arange(width, device=self.device)[None] >= first[:, None]

    def run(
        self, ids: torch.Tensor, mask: torch.Tensor | None, positions: torch.Tensor, *, keep: int | torch.Tensor,
        **more: Any,
    ) -> Any:  # fmt: skip
        """The model's own forward; `keep` says where logits are wanted: the number of last places, or the places."""
        given = {"input_ids": ids, "attention_mask": mask, "position_ids": positions, "logits_to_keep": keep, **more}
        return self.model(**{name: value for name, value in given.items() if name in self._accepts})


def _positions(ids: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    if mask is None:
        return torch.arange(ids.shape[1], device=ids.device)[None].expand(ids.shape[0], -1)
    return (mask.cumsum(-1) - 1).clamp(min=0)


def _bytes(cache: Any) -> int:
    """Of what a model keeps of one token."""
    kept = [getattr(layer, name, None) for layer in cache.layers for name in ("keys", "values")]
    return sum(tensor.nbytes for tensor in kept if isinstance(tensor, torch.Tensor))
