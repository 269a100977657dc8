"""The one engine that answers: the chat host, validation, benchmarks and blind pairs. Heavy: torch and transformers.

One base model is resident with any number of adapters, so that base and tuned come from one copy of the weights. Any
number of rows may be asked at once: they are put into batches by length and memory, and come back in their order.
Guarantees: the base answers with every adapter off; the same call gives the same result on the same machine; a row is
stopped after any token. Does not guarantee the same bits in batches of another size, which round differently.
"""

import gc
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from tunewright.pipeline import heavy

with heavy.imports():
    import numpy as np
    import psutil
    import torch
    from torch.nn import functional

    from tunewright.pipeline.chat_template import ChatTemplate
    from tunewright.pipeline.errors import InvalidInput
    from tunewright.pipeline.inference import batches, loading
    from tunewright.pipeline.inference.adapters import Adapters
    from tunewright.pipeline.inference.forward import Context, Forward
    from tunewright.pipeline.inference.requests import Generation, Request
    from tunewright.pipeline.inference.rows import Check, OnToken, Rows
    from tunewright.pipeline.inference.sampling import Sampler
    from tunewright.pipeline.inference.subject import Subject

if TYPE_CHECKING:
    from tunewright.pipeline.inference.captured import Captured

MOST_ROWS = 64
# Of the card's memory, and of the machine's, which others use too.
VRAM_SHARE, MEMORY_SHARE = 0.85, 0.15
CPU = torch.device("cpu")


def _go_on(index: int, token: int) -> bool:
    return True


def _no_check() -> None:
    return None


@dataclass
class _Resident:
    """`key` names the weights; `whole` is the id of what was trained as a whole model and is resident as the base."""

    key: tuple[str, bool]
    forward: Forward
    adapters: Adapters
    captured: "Captured | None"
    context_tokens: int
    whole: str | None = None


class Engine:
    """At most one base model, and its adapters. Not for use by two threads at once."""

    def __init__(self) -> None:
        self._device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else CPU
        if torch.cuda.is_available():
            # cuDNN's attention plans for every new shape anew, which delays a first token by up to half a second.
            torch.backends.cuda.enable_cudnn_sdp(False)
        self._now: _Resident | None = None

    def load(self, subject: Subject) -> None:
        """Makes the subject resident: nothing where it is, its adapter alone where its base is, else all.

        Raises Conflict, OSError for files, torch.OutOfMemoryError.
        """
        try:
            now = self._load_base(subject)
            now.whole = None if subject.adapter_path else subject.adapter_id
            if subject.adapter_id and subject.adapter_path and subject.adapter_id not in now.adapters:
                pairs = now.adapters.add(subject.adapter_id, Path(subject.adapter_path))
                if now.captured:
                    with torch.inference_mode(), now.adapters.on(subject.adapter_id):
                        now.captured.add(subject.adapter_id, pairs)
        except BaseException:
            # What a failure has left half loaded would answer wrongly.
            self.unload()
            raise

    def _load_base(self, subject: Subject) -> _Resident:
        key = (subject.base, subject.load_in_4bit)
        if self._now is None or self._now.key != key:
            self.unload()
            model = loading.load_base(
                subject.base, load_in_4bit=subject.load_in_4bit, device=self._device,
                trust_remote_code=subject.trust_remote_code,
            )  # fmt: skip
            forward = Forward(model, self._device)
            captured = _captured(forward, self._budget(forward))
            self._now = _Resident(key, forward, Adapters(model), captured, subject.context_tokens)
        return self._now

    def unload(self) -> None:
        """Gives the memory back."""
        self._now = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def ends(self, template: ChatTemplate) -> frozenset[int]:
        """Ids that end an answer: the model's own, and the token that ends a turn in its template."""
        own = self._resident().forward.model.generation_config.eos_token_id
        ends = {own} if isinstance(own, int) else set(own or ())
        mark = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        ids, mask = template.encode(mark)
        return frozenset(ends | {i for i, m in zip(ids, mask, strict=True) if m and i in template.special_ids})

    def generate(
        self, requests: Sequence[Request], *, adapter_id: str | None, on_token: OnToken = _go_on,
        check: Check = _no_check,
    ) -> list[Generation]:  # fmt: skip
        """The answers in the order of the requests; `adapter_id` None, or of a whole model, is the base itself.

        `on_token(index of the request, token)` is called for every token and stops that request with False; `check` is
        called at every step and may raise. Raises InvalidInput where a prompt leaves no room for an answer.
        """
        now = self._resident()
        requests = [_within(request, now.context_tokens) for request in requests]
        costs = [_cost(now.forward, request) for request in requests]
        made: dict[int, Generation] = {}
        for batch in batches.plan(costs, self._budget(now.forward), MOST_ROWS):
            wanted = [requests[index] for index in batch]
            rows = Rows(batch, wanted, on_token, check)
            with self._answering(adapter_id):
                _answer(now, wanted, rows, None if adapter_id == now.whole else adapter_id)
            made.update(zip(batch, rows.results(), strict=True))
        return [made[index] for index in range(len(requests))]

    def losses(
        self, rows: Sequence[tuple[list[int], list[int]]], *, adapter_id: str | None, check: Check = _no_check
    ) -> list[tuple[float, int]]:
        """Of each (ids, mask): the summed negative log-likelihood in nats of the masked tokens, and their number.

        The first token has nothing before it: it is never counted.
        """
        forward = self._resident().forward
        tails = [_tail(mask) for _, mask in rows]
        costs = [len(ids) * forward.activation_bytes + tail * forward.logit_bytes * 4
                 for (ids, _), tail in zip(rows, tails, strict=True)]  # fmt: skip
        found: dict[int, tuple[float, int]] = {}
        for batch in batches.plan(costs, self._budget(forward), MOST_ROWS):
            check()
            longest = max(tails[index] for index in batch)
            with self._answering(adapter_id):
                logits = forward.last_logits([rows[index][0] for index in batch], longest + 1)
                for line, index in enumerate(batch):
                    found[index] = _loss(logits[line, :-1], rows[index], longest)
        return [found[index] for index in range(len(rows))]

    def choices(
        self, prefix: list[int], rows: Sequence[list[int]], candidates: Sequence[int], *, adapter_id: str | None,
        check: Check = _no_check,
    ) -> np.ndarray:  # fmt: skip
        """Log-probabilities of `candidates` as the next token after prefix and row, (rows, candidates), float64.

        The prefix is computed once for all rows, each of which holds at least one token.
        """
        forward, wanted = self._resident().forward, torch.tensor(list(candidates), device=self._device)
        costs = [
            (len(prefix) + 2 * len(row)) * forward.cache_bytes + len(row) * forward.activation_bytes for row in rows
        ]
        found = np.empty((len(rows), len(candidates)))
        with self._answering(adapter_id):
            shared = forward.read([prefix])[1] if prefix else None
            for batch in batches.plan(costs, self._budget(forward), MOST_ROWS):
                check()
                logits = forward.continued(shared, [rows[index] for index in batch])
                found[batch] = logits.float().log_softmax(-1)[:, wanted].double().cpu().numpy()
        return found

    def _resident(self) -> _Resident:
        if self._now is None:
            raise RuntimeError("no model is loaded")
        return self._now

    @contextmanager
    def _answering(self, adapter_id: str | None) -> Generator[None]:
        """With this adapter on, or where none is named, with all off. Raises KeyError for one that is not loaded."""
        now = self._resident()
        with torch.inference_mode(), now.adapters.on(None if adapter_id == now.whole else adapter_id):
            yield

    def _budget(self, forward: Forward) -> int:
        """Bytes for what is computed, and as many for the room that captured steps keep. Told from what the machine has
        and not from what is free now: the same call must make the same batches.
        """
        if self._device.type == "cpu":
            return int(psutil.virtual_memory().total * MEMORY_SHARE)
        total = torch.cuda.get_device_properties(self._device).total_memory
        return (int(total * VRAM_SHARE) - forward.model.get_memory_footprint()) // 2


def _within(request: Request, context_tokens: int) -> Request:
    """The request with no more new tokens than the model has room for."""
    room = context_tokens - len(request.ids)
    if room < 1 or not request.ids:
        raise InvalidInput(
            "prompt_too_long" if request.ids else "prompt_empty", f"A prompt has {len(request.ids)} tokens.",
            allowed=f"The model reads 1 to {context_tokens - 1} and answers within {context_tokens}.",
            done="No answer was made.",
        )  # fmt: skip
    return replace(request, max_new_tokens=min(request.max_new_tokens, room))


def _cost(forward: Forward, request: Request) -> int:
    """Bytes: as read, and as it grows, for which captured steps keep room up to a power of two."""
    tokens, most = len(request.ids), len(request.ids) + request.max_new_tokens
    return (tokens + 2 * most) * forward.cache_bytes + tokens * forward.activation_bytes


def _answer(now: _Resident, requests: Sequence[Request], rows: Rows, name: str | None) -> None:
    forward = now.forward
    sampler = Sampler(requests, forward.vocabulary, forward.device)
    logits, context = forward.read([request.ids for request in requests])
    if now.captured and now.captured.serves(name):
        tokens = max(len(r.ids) for r in requests) + max(r.max_new_tokens for r in requests)
        now.captured.decode(logits, context, sampler, rows, tokens, name)
    else:
        _decode(forward, logits, context, sampler, rows)


def _decode(forward: Forward, logits: torch.Tensor, context: Context, sampler: Sampler, rows: Rows) -> None:
    """Goes on from what was read until no row is alive."""
    lines = rows.alive
    while True:
        ids = sampler.choose(logits)
        rows.take(dict(zip(lines, ids[:, 0].tolist(), strict=True)))
        alive = rows.alive
        if not alive:
            return
        if len(alive) <= len(lines) // 2:
            kept = torch.tensor([lines.index(row) for row in alive], device=forward.device)
            forward.keep(context, kept)
            sampler.keep(kept)
            ids, lines = ids[kept], alive
        logits = forward.advance(context, ids)


def _captured(forward: Forward, budget: int) -> "Captured | None":
    """Captured steps, on a GPU with Triton."""
    if forward.device.type != "cuda" or find_spec("triton") is None:
        return None
    from tunewright.pipeline.inference.captured import Captured

    with torch.inference_mode():
        captured = Captured(forward, budget)
        captured.add(None, {})
    return captured


def _tail(mask: Sequence[int]) -> int:
    """Tokens from the first that counts to the end."""
    counted = [place for place, counts in enumerate(mask) if counts and place]
    return len(mask) - counted[0] if counted else 0


def _loss(logits: torch.Tensor, row: tuple[list[int], list[int]], longest: int) -> tuple[float, int]:
    """From the logits (longest, vocabulary) before each of the row's last `longest` tokens."""
    tail = _tail(row[1])
    if not tail:
        return 0.0, 0
    ids, mask = (torch.tensor(column[-tail:], device=logits.device) for column in row)
    each = functional.cross_entropy(logits[longest - tail :].float(), ids, reduction="none")
    return float(each[mask.bool()].double().sum()), int(mask.sum())
