"""What is asked of the engine and what comes back. Light."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Sampling:
    """The rules by which a token is chosen, as in transformers; temperature 0 is greedy, the other rules then idle
    but for the penalty. top_k 0, top_p 1, min_p 0 and repetition_penalty 1 are off.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0


GREEDY = Sampling()


@dataclass(frozen=True)
class Request:
    """A prompt as token ids; the answer stops after a token of `ends` or at `max_new_tokens`.

    `seed` decides the answer alone, whatever else is in the same batch.
    """

    ids: list[int]
    max_new_tokens: int
    ends: frozenset[int]
    sampling: Sampling = GREEDY
    seed: int = 0


@dataclass(frozen=True)
class Generation:
    """The answer's token ids, with the end token if it came; `seconds` from the beginning of its batch."""

    ids: list[int]
    ended: Literal["stop", "length", "cancelled"]
    seconds: float
