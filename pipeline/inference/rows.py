"""The answers of one batch while they are made: which rows still go on, and why the others ended. Light."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from tunewright.pipeline.inference.requests import Generation, Request

# Called with the index of the request and the token; False stops that request.
OnToken = Callable[[int, int], bool]
# Called at every step; may raise.
Check = Callable[[], None]
Ended = Literal["stop", "length", "cancelled"]


class Rows:
    """`alive` are the rows that go on, numbered within the batch; `indices` what the caller calls them."""

    def __init__(self, indices: Sequence[int], requests: Sequence[Request], on_token: OnToken, check: Check) -> None:
        self._indices, self._requests, self._on_token, self._check = indices, requests, on_token, check
        self._began = time.monotonic()
        self._ids: list[list[int]] = [[] for _ in requests]
        self._ended: dict[int, tuple[Ended, float]] = {}

    @property
    def alive(self) -> list[int]:
        return [row for row in range(len(self._requests)) if row not in self._ended]

    def take(self, tokens: Mapping[int, int]) -> None:
        """One more token for each row that is alive."""
        self._check()
        for row in self.alive:
            token, request = tokens[row], self._requests[row]
            self._ids[row].append(token)
            wanted = self._on_token(self._indices[row], token)
            if token in request.ends:
                self._end(row, "stop")
            elif not wanted:
                self._end(row, "cancelled")
            elif len(self._ids[row]) >= request.max_new_tokens:
                self._end(row, "length")

    def _end(self, row: int, how: Ended) -> None:
        self._ended[row] = (how, time.monotonic() - self._began)

    def results(self) -> list[Generation]:
        """The answers, once no row is alive, in the batch's order."""
        return [Generation(ids, *self._ended[row]) for row, ids in enumerate(self._ids)]
