"""How the next token is chosen from logits, for a batch whose rows each have rules of their own. Heavy (torch).

The rules are transformers' (`generation/logits_process.py`), in its order: repetition penalty, temperature, top-k,
top-p, min-p. What is random of a row comes from its own seed alone and is drawn on the CPU, so that the same seed gives
the same answer on any device and in any batch, as far as the logits agree.
"""

from collections.abc import Sequence

import torch

from tunewright.pipeline.inference.requests import GREEDY, Request


class Sampler:
    """Chooses tokens for the rows of one batch, step by step."""

    def __init__(self, requests: Sequence[Request], vocabulary: int, device: torch.device) -> None:
        self._step = 0
        # The common case: nothing but the maximum is looked at.
        self._greedy = all(request.sampling == GREEDY for request in requests)
        if self._greedy:
            return
        rules = [request.sampling for request in requests]

        def column(values: list[float]) -> torch.Tensor:
            return torch.tensor(values, dtype=torch.float32, device=device)[:, None]

        self._is_greedy = column([rule.temperature for rule in rules]) == 0
        self._temperature = column([rule.temperature or 1.0 for rule in rules])
        self._top_k = column([rule.top_k or vocabulary for rule in rules])
        self._top_p = column([rule.top_p for rule in rules])
        self._min_p = column([rule.min_p for rule in rules])
        self._penalty = column([rule.repetition_penalty for rule in rules])
        # One more than is asked for: captured steps are a step ahead.
        longest = 1 + max(request.max_new_tokens for request in requests)
        self._uniform = torch.stack([_uniform(request.seed, longest) for request in requests]).to(device)
        self._rank = torch.arange(vocabulary, device=device)
        self._seen = torch.zeros(len(requests), vocabulary, dtype=torch.bool, device=device)
        for row, request in enumerate(requests):
            self._seen[row, torch.tensor(request.ids, device=device)] = True

    def choose(self, logits: torch.Tensor) -> torch.Tensor:
        """The next token's id of each row, (rows, 1), from logits (rows, vocabulary)."""
        if self._greedy:
            return logits.argmax(-1, keepdim=True)
        scores = logits.float()
        penalised = torch.where(scores > 0, scores / self._penalty, scores * self._penalty)
        scores = torch.where(self._seen, penalised, scores)
        drawn = self._draw(scores / self._temperature, self._uniform[:, self._step, None])
        ids = torch.where(self._is_greedy, scores.argmax(-1, keepdim=True), drawn)
        self._seen.scatter_(1, ids, True)
        self._step += 1
        return ids

    def keep(self, rows: torch.Tensor) -> None:
        """Goes on with these rows alone."""
        if self._greedy:
            return
        for name in ("is_greedy", "temperature", "top_k", "top_p", "min_p", "penalty", "uniform", "seen"):
            setattr(self, f"_{name}", getattr(self, f"_{name}")[rows])

    def _draw(self, scores: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
        """By the inverse of the cumulative distribution of what the rules leave, likeliest first."""
        # Stable, or equal scores could change places from one call to the next.
        ordered, order = scores.sort(dim=-1, descending=True, stable=True)
        by_rank = ordered.masked_fill(self._rank >= self._top_k, float("-inf")).softmax(-1)
        # In float64: a sum in parallel is not the same twice, and 1e-7 would now and then decide.
        before = by_rank.cumsum(-1, dtype=torch.float64) - by_rank
        left = (before < self._top_p) & (by_rank >= self._min_p * by_rank[:, :1])
        cumulative = (by_rank * left).cumsum(-1, dtype=torch.float64)
        total = cumulative[:, -1:]
        at = (cumulative <= uniform * total).sum(-1, keepdim=True)
        last = left.sum(-1, keepdim=True) - 1
        return order.gather(1, torch.minimum(at, last))


def _uniform(seed: int, tokens: int) -> torch.Tensor:
    return torch.rand(tokens, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
