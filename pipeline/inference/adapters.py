"""The adapters of one model, of which one at a time is on, or none. Heavy (torch).

Plain LoRA stands beside the layers by hooks: importing PEFT takes as long as loading a small model, and its layers take
five small kernels where two matrix products do. PEFT has the adapters that are more.
"""

from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from tunewright.pipeline.inference import loading, lora
from tunewright.pipeline.inference.lora import Pairs


class Adapters:
    """Add them by id; `on` switches. The model itself stays what it was wherever none is on."""

    def __init__(self, model: Any) -> None:
        self._model = self._wrapped = model
        self._layers = dict(model.named_modules())
        self._plain: dict[str, Pairs] = {}
        self._hooked: set[str] = set()
        self._on: Pairs = {}
        # By id: what PEFT calls it.
        self._peft: dict[str, str] = {}

    def __contains__(self, adapter_id: object) -> bool:
        return adapter_id in self._plain or adapter_id in self._peft

    def add(self, adapter_id: str, path: Path) -> Pairs | None:
        """Loads the adapter in `path`, in the model's own type. Returns all of it, or None where PEFT has it."""
        pairs = lora.read(path, self._model)
        if pairs is None:
            # PEFT makes module names of adapter names, where dots would nest.
            name = adapter_id.replace(".", "_")
            self._wrapped = loading.add_adapter(self._wrapped, path, name)
            self._peft[adapter_id] = name
            return None
        self._plain[adapter_id] = pairs
        for layer in pairs.keys() - self._hooked:
            # Hooks and not layers of our own: PEFT, should it come too, must find the layers that it knows.
            self._layers[layer].register_forward_hook(partial(self._add_beside, layer))
            self._hooked.add(layer)
        return pairs

    @contextmanager
    def on(self, adapter_id: str | None) -> Generator[None]:
        """With this adapter, or with None, with none. Raises KeyError for one that was not added."""
        if adapter_id is not None and adapter_id not in self:
            raise KeyError(adapter_id)
        self._on = self._plain.get(adapter_id or "", {})
        off = nullcontext()
        if adapter_id in self._peft:
            self._wrapped.set_adapter(self._peft[adapter_id])
        elif self._peft:
            off = self._wrapped.disable_adapter()
        try:
            with off:
                yield
        finally:
            self._on = {}

    def _add_beside(self, path: str, layer: Any, given: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
        pair = self._on.get(path)
        if pair is None:
            return output
        low, up = pair
        return output + functional.linear(functional.linear(given[0], low), up)
