"""What a model on an Ollama server answers, greedily, beside what its file answered when its parity was measured.

Guarantees that every recorded answer to a conversation that the server is given as it was recorded is compared, in
full, in each way of asking. A difference counts as a tie, not as a fault, where the server's own choice and the
recorded one are as good as equal to the model: another processor, or another build of llama.cpp, rounds otherwise.
Does not judge how good an answer is.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypedDict

from tunewright.pipeline.chat_template import Message
from tunewright.pipeline.exporting.parity.texts import first_difference
from tunewright.pipeline.publishing.modelfile import Modelfile

if TYPE_CHECKING:
    from ollama import ChatResponse

    from tunewright.pipeline.publishing.ollama_client import OllamaClient

# For answers that nothing is known of.
FREE_TOKENS = 96
# How far two logits may stand apart and still change places in another precision: bf16 moved one by up to 0.165
# where float32 computed it otherwise (measured; the noise floor of the parity gate).
TIE_NATS = 0.2
ALTERNATIVES = 5
THINK = re.compile(r"</?think>")
SHOWN = 120


class Recorded(TypedDict):
    """An answer in parity.json: its text, its token ids (the one that ended it included), and how it ended."""

    text: str
    tokens: list[int]
    ended: str


@dataclass(frozen=True)
class Case:
    """A conversation as it is sent, the prompt that training makes of it, and its answer where one was recorded."""

    messages: list[Message]
    prompt: str
    recorded: Recorded | None = None


@dataclass
class Interview:
    """Asks a model on a server, and keeps what was seen.

    `thinking` is training's mode, `control_tokens` are texts that no answer may hold, `count_tokens` counts a prompt as
    training does. `free` lets answers differ and run on: they come of other weights (quantized on the server) than the
    recorded ones. Afterwards `first` is the first reply, `faults` what cannot be right whatever was recorded, and
    `differences` what is not as recorded, all in sentences.
    """

    client: "OllamaClient"
    model: str
    made: Modelfile
    thinking: bool
    control_tokens: Sequence[str]
    count_tokens: Callable[[str], int]
    free: bool = False
    first: "ChatResponse | None" = None
    compared: int = 0
    equal: int = 0
    ties: int = 0
    stopped: int = 0
    should_stop: int = 0
    differences: list[str] = field(default_factory=list[str])
    faults: list[str] = field(default_factory=list[str])

    def ask(self, cases: Sequence[Case], ways: Sequence[bool | None], step: Callable[[int], None]) -> None:
        """Asks every case with a recorded answer in each of `ways` (the request's `think`); without any, the first.

        `step` is told the number of each case before it is asked, and may raise to stop. Raises what the client
        raises.
        """
        faults: list[str] = []
        for number, case in enumerate([case for case in cases if case.recorded] or cases[:1]):
            step(number)
            for think in ways:
                reply = self._chat(case, think)
                self.first = self.first or reply
                faults += self._faults(case, reply)
                if case.recorded:
                    self._compare(case, case.recorded, think, reply)
        if self.free and self.should_stop and not self.stopped:
            faults.append(f"none of {self.compared} answers ends within {FREE_TOKENS} tokens")
        # The same trouble in both ways of asking is one fault.
        self.faults = list(dict.fromkeys(faults))

    def _chat(self, case: Case, think: bool | None, **wishes: Any) -> "ChatResponse":
        """Greedy, as the recorded answers were: without the penalty or the additional stops of the Modelfile."""
        tokens = FREE_TOKENS
        if case.recorded and not self.free:
            # One more than were recorded: the token that ends the answer may or may not be among them.
            tokens = len(case.recorded["tokens"]) + (case.recorded["ended"] == "stop")
        options = {"temperature": 0, "repeat_penalty": 1.0, "num_predict": tokens, "stop": self.made.stops}
        return self.client.chat(self.model, case.messages, think=think, options=options, **wishes)

    def _faults(self, case: Case, reply: "ChatResponse") -> list[str]:
        """An empty answer, control tokens in it, or another length of the prompt."""
        content, thoughts = reply.message.content or "", reply.message.thinking or ""
        found: list[str] = []
        expects_words = case.recorded is None or bool(said(case.recorded["text"]))
        # With thinking on, the answer may not have begun within the tokens it has; the thoughts count then.
        if expects_words and not content.strip() and not (self.thinking and thoughts.strip()):
            found.append(f"the answer to {_question(case)} is empty")
        unwanted = [*self.control_tokens, *(() if self.thinking else ("<think>", "</think>"))]
        if leaked := [token for token in unwanted if token in content]:
            found.append(f"the answer holds the control tokens {', '.join(leaked)}: {content[:SHOWN]!r}")
        expected, seen = self.count_tokens(case.prompt), reply.prompt_eval_count
        if seen and seen != expected:
            cause = "something is put in front of it, usually a second BOS" if seen > expected else "it is cut"
            found.append(
                f"the prompt to {_question(case)} has {seen} tokens on the server and {expected} in training: {cause}"
            )
        return found

    def _compare(self, case: Case, recorded: Recorded, think: bool | None, reply: "ChatResponse") -> None:
        self.compared += 1
        self.should_stop += recorded["ended"] == "stop"
        self.stopped += reply.done_reason == "stop"
        # Cut at its length, a text may end within a character.
        got = said(f"{reply.message.thinking or ''}</think>{reply.message.content or ''}").rstrip("\ufffd")
        expected = said(recorded["text"]).rstrip("\ufffd")
        cut = recorded["ended"] == "length"
        same = got.startswith(expected) if cut and self.free else got == expected
        ends_as_recorded = cut or reply.done_reason == "stop"
        if same and ends_as_recorded:
            self.equal += 1
        elif not self.free and self._is_tie(case, recorded["text"], think):
            self.ties += 1
        else:
            way = "" if think is None else f" with think={str(think).lower()}"
            at = first_difference(expected, got)
            ending = "" if ends_as_recorded else ", and does not end there"
            self.differences.append(
                f"asked {_question(case)}{way} it answers {got[:SHOWN]!r} instead of {expected[:SHOWN]!r} "
                f"(character {at}){ending}"
            )

    def _is_tie(self, case: Case, recorded: str, think: bool | None) -> bool:
        """Whether the first token that differs was, on the server, as good as tied with the recorded one.

        Servers before 0.12.11 tell no probabilities; nothing is a tie there.
        """
        reply = self._chat(case, think, logprobs=True, top_logprobs=ALTERNATIVES)
        written = ""
        for entry in reply.logprobs or []:
            if entry.token and recorded.startswith(written + entry.token):
                written += entry.token
                continue
            rest = recorded[len(written) :]
            # Where the recorded answer ended, the tie is with a token that ends it.
            ending = ("", *self.made.stops)
            agreeing = [
                other.logprob or 0.0
                for other in entry.top_logprobs or []
                if (other.token and rest.startswith(other.token) if rest else other.token in ending)
            ]
            return bool(agreeing) and (entry.logprob or 0.0) - max(agreeing) <= TIE_NATS
        return False


def said(text: str) -> str:
    """What was said, thoughts first: without think tags, and without the space at the edges that servers trim."""
    return "\n".join(part for piece in THINK.split(text) if (part := piece.strip()))


def _question(case: Case) -> str:
    return repr(case.messages[-1]["content"][:SHOWN])
