"""Decoding by steps captured as CUDA graphs: a whole step is one launch, and the GPU is one step ahead. Heavy.

Every base and every adapter is first tried: only steps that can be captured and say what transformers' forward says
are used, the leaner ones if they do. Where none does, `serves` is False and the caller decodes without. Memory and
graphs are kept for the sizes last used.
"""

import logging
import subprocess
from collections import OrderedDict
from typing import Any, Protocol

import torch
from triton.errors import TritonError

from tunewright.pipeline.inference.forward import Context, Forward
from tunewright.pipeline.inference.lean import Lean
from tunewright.pipeline.inference.lora import Pairs
from tunewright.pipeline.inference.requests import Request, Sampling
from tunewright.pipeline.inference.rows import Rows
from tunewright.pipeline.inference.sampling import Sampler
from tunewright.pipeline.inference.slots import Slots

LEAST_TOKENS = 1024
PROBE_TOKENS = 48
# How far the probe's logits may be from the forward's: so many times as far as two ways of the forward itself are from
# each other, and what rounding makes of two layers. In bf16, with 36 layers of random weights, two ways are 0.05 of
# their length apart, and each is 0.05 from float32, these steps too.
NOISE, ROUNDING = 3.0, 0.04
# A prompt of this length is read once in advance: kernels are loaded at their first use, up to half a second in all.
WARM_UP_TOKENS = 1024

log = logging.getLogger("tunewright.inference")


class Room(Protocol):
    """A batch's memory, which stays in place; `ids` (rows,) is what the next step reads."""

    ids: torch.Tensor

    def take(self, context: Context) -> None:
        """Takes over what was read."""
        ...


class Stepper(Protocol):
    """Makes room, and takes steps in it: the logits (rows, vocabulary) after one more token of each row."""

    def room(self, rows: int, tokens: int) -> Any: ...

    def step(self, room: Any, beside: Any) -> torch.Tensor: ...


# By adapter: the captured step, and where it puts its logits.
Graphs = dict[str | None, tuple[torch.cuda.CUDAGraph, torch.Tensor]]


class Captured:
    """Decodes batches of one base, with its adapters or without. Use it under torch.inference_mode."""

    def __init__(self, forward: Forward, budget: int) -> None:
        self._forward, self._budget = forward, budget
        ids = _probe(forward.vocabulary)
        logits, context = forward.read([ids])
        sampled = Request(ids, 1, frozenset(), Sampling(temperature=1.0, top_p=0.9, top_k=20))
        Sampler([sampled], forward.vocabulary, forward.device).choose(logits)
        self._lean = Lean(forward.model) if Lean.fits(forward.model.config) else None
        self._slots = Slots(forward, context.cache) if Slots.fit(forward, context.cache) else None
        self._rooms: OrderedDict[tuple[Stepper, int, int], tuple[Room, Graphs]] = OrderedDict()
        # By adapter: how it steps, and what of it the steps are told.
        self._ways: dict[str | None, tuple[Stepper, Any]] = {}

    def serves(self, name: str | None) -> bool:
        """Whether this adapter (None: the base) can be decoded here."""
        return name in self._ways

    def add(self, name: str | None, pairs: Pairs | None) -> None:
        """Finds the steps for an adapter (None: the base) that is switched on now; `pairs` are what is all of it, or
        None where PEFT has it.
        """
        ways: list[tuple[Stepper, Any]] = []
        if self._lean and pairs is not None:
            beside = self._lean.stack(pairs)
            ways += [(self._lean, beside)] if beside is not None else []
        if self._slots:
            ways.append((self._slots, None))
        for way in ways:
            self._ways[name] = way
            try:
                if self._agrees(name):
                    return
                why = "other logits"
            except torch.OutOfMemoryError:
                raise
            except (RuntimeError, OSError, ValueError, TritonError, subprocess.CalledProcessError) as error:
                why = f"{type(error).__name__}: {error}"
            log.warning("%s cannot step for %s: %s", type(way[0]).__name__, name or "the base", why)
            del self._ways[name]
            self._rooms.clear()

    def _agrees(self, name: str | None) -> bool:
        """Whether two steps, the second captured, give what the forward gives. Leaves the commonest size ready."""
        ids = _probe(self._forward.vocabulary)
        longest = getattr(self._forward.model.config.get_text_config(), "max_position_embeddings", None) or len(ids)
        self._forward.read([(ids * WARM_UP_TOKENS)[: min(WARM_UP_TOKENS, longest)]])
        whole, _ = self._forward.read([ids])
        _, context = self._forward.read([ids[:-2]])
        room, graphs = self._room(name, 1, LEAST_TOKENS)
        room.take(context)
        ours = theirs = whole
        for step, token in enumerate(ids[-2:]):
            room.ids.fill_(token)
            ours = self._run(name, room, graphs, step)
            theirs = self._forward.advance(context, room.ids[:, None])
        return _apart(ours, theirs) <= NOISE * _apart(whole, theirs) + ROUNDING

    def decode(
        self, logits: torch.Tensor, context: Context, sampler: Sampler, rows: Rows, tokens: int, name: str | None
    ) -> None:
        """Goes on from what was read until no row is alive; no row gets longer than `tokens`."""
        count = len(logits)
        room, graphs = self._room(name, _power_of_two(count), _power_of_two(max(tokens + 1, LEAST_TOKENS)))
        room.take(context)
        copies = [(torch.empty(count, dtype=torch.long, pin_memory=True), torch.cuda.Event()) for _ in range(2)]
        ids = sampler.choose(logits)[:, 0]
        rows.take(dict(enumerate(ids.tolist())))
        step = 0
        while rows.alive:
            room.ids[:count] = ids
            ids = sampler.choose(self._run(name, room, graphs, step)[:count])[:, 0]
            chosen, copied = copies[step % 2]
            chosen.copy_(ids, non_blocking=True)
            copied.record()
            if step:
                # This step is under way before the tokens of the one before are looked at.
                chosen, copied = copies[(step - 1) % 2]
                copied.synchronize()
                rows.take(dict(enumerate(chosen.tolist())))
            step += 1

    def _run(self, name: str | None, room: Room, graphs: Graphs, step: int) -> torch.Tensor:
        """One step: a batch's first as it is where none is captured yet, which compiles what the capture needs."""
        stepper, beside = self._ways[name]
        if name not in graphs:
            if step == 0:
                return stepper.step(room, beside)
            graph = torch.cuda.CUDAGraph()
            # Thread-local: other threads of the process may use CUDA meanwhile.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                logits = stepper.step(room, beside)
            graphs[name] = (graph, logits)
        graph, logits = graphs[name]
        graph.replay()
        return logits

    def _room(self, name: str | None, rows: int, tokens: int) -> tuple[Room, Graphs]:
        stepper, _ = self._ways[name]
        found = self._rooms.pop((stepper, rows, tokens), None)
        if found is None:
            held = sum(rows * tokens for _, rows, tokens in self._rooms)
            while self._rooms and (held + rows * tokens) * self._forward.cache_bytes > self._budget:
                (_, *size), _ = self._rooms.popitem(last=False)
                held -= size[0] * size[1]
            found = (stepper.room(rows, tokens), {})
        self._rooms[stepper, rows, tokens] = found
        return found


def _probe(vocabulary: int) -> list[int]:
    return torch.randint(vocabulary, (PROBE_TOKENS,), generator=torch.Generator().manual_seed(0)).tolist()


def _apart(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours.float() - theirs.float()).norm() / theirs.float().norm())


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()
