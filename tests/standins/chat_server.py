"""A stand-in for a teacher: real HTTP on the loopback, OpenAI's /v1/models and /v1/chat/completions.

Deterministic and honest: its examples are sentences of the text in the prompt, each next one of a text another
sentence, and its verdicts say whether the answers stand in the text. Faults are switched on by attributes. It keeps
every request, so that a test can tell what was asked, how often, and with which headers.
"""

import json
import re
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from standins.serving import Handler, StandIn

TEXT = re.compile(r"<text>\n(.*?)\n</text>", re.DOTALL)
SENTENCE = re.compile(r"[^.。!?\n]+[.。!?]")
ANSWER = re.compile(r"^Answer: (.*?)(?=\n\nIs every|\nQuestion: )", re.DOTALL | re.MULTILINE)
PROMPT_TOKENS, COMPLETION_TOKENS = 100, 20
WAIT_S = 30
INVENTED = "Researchers in Atlantis measured 98765 instead."


@dataclass
class ChatStandIn(StandIn):
    """`with ChatStandIn() as server:` serves at `server.url` (its base address ends in /v1).

    `statuses` are answers given before any other, in order, one a chat request (429 with `retry_after`, 0 cuts the
    connection). `takes_schema`: otherwise a response_format is refused with 400. `key`: what it demands. `garble` is
    what it answers instead of an example, which stands for its `{}`; `verdict` is what every judgment says, by default
    the truth. `invent` makes every answer about a text that holds this a made-up one. After `hold_after` chat requests
    it answers nobody until `release` is set. `listed=False`: it has no /v1/models.
    """

    models: list[str] = field(default_factory=lambda: ["teacher"])
    listed: bool = True
    statuses: list[int] = field(default_factory=list[int])
    retry_after: str = "0.01"
    refusal: str = "refused"
    takes_schema: bool = True
    key: str | None = None
    garble: str = "{}"
    verdict: str | None = None
    invent: str | None = None
    hold_after: int | None = None
    release: threading.Event = field(default_factory=threading.Event)
    chats: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    headers: list[dict[str, str]] = field(default_factory=list[dict[str, str]])
    lock: threading.Lock = field(default_factory=threading.Lock)
    _next_sentence: Counter[str] = field(default_factory=Counter[str])

    @property
    def endpoint(self) -> str:
        return f"{self.url}/v1"

    def asked(self, step: str) -> list[str]:
        """The user's part of every request to `write` or to `judge`."""
        return [
            chat["messages"][-1]["content"]
            for chat in self.chats
            if ("Is every statement" in chat["messages"][0]["content"]) == (step == "judge")
        ]

    def answer(self, chat: Mapping[str, Any]) -> str:
        system, user = chat["messages"][0]["content"], chat["messages"][-1]["content"]
        found = TEXT.search(user)
        text = found[1] if found else ""
        if "Is every statement" in system:
            supported = all(line in text for answer in ANSWER.findall(user) for line in answer.split("\n"))
            return self.verdict or ("yes" if supported else "no")
        return self.garble.replace("{}", json.dumps(self._example(user, text), ensure_ascii=False))

    def _example(self, user: str, text: str) -> dict[str, Any]:
        first, second = self._sentence(text), None
        if '"turns"' in user:
            second = self._sentence(text)
            return {"turns": [self._exchange(text, said) for said in (first, second)]}
        exchange = self._exchange(text, first)
        if '"reasoning"' in user:
            return {"question": exchange["question"], "reasoning": first, "answer": exchange["answer"]}
        if '"rejected"' in user:
            return {
                "question": exchange["question"], "chosen": exchange["answer"], "rejected": "It depends on many things."
            }  # fmt: skip
        return exchange

    def _exchange(self, text: str, sentence: str) -> dict[str, str]:
        made_up = self.invent is not None and self.invent in text
        return {"question": f"What is known of: {sentence[:40]}?", "answer": INVENTED if made_up else sentence}

    def _sentence(self, text: str) -> str:
        sentences = [sentence.strip() for sentence in SENTENCE.findall(text)]
        with self.lock:
            number = self._next_sentence[text]
            self._next_sentence[text] += 1
        return sentences[number % len(sentences)]


class _Handler(Handler):
    state: ChatStandIn

    def _is_allowed(self) -> bool:
        state = self.state
        state.requests.append(f"{self.command} {self.path}")
        state.headers.append({name.lower(): value for name, value in self.headers.items()})
        if state.key is None or self.headers.get("Authorization") == f"Bearer {state.key}":
            return True
        self.send_json(401, {"error": {"message": f"Incorrect API key: {self.headers.get('Authorization')}"}})
        return False

    def do_GET(self) -> None:
        if not self._is_allowed():
            return
        if self.path == "/v1/models" and self.state.listed:
            models = [{"id": name, "object": "model"} for name in self.state.models]
            self.send_json(200, {"object": "list", "data": models})
        else:
            self.send_json(404, {"error": {"message": "not found"}})

    def do_POST(self) -> None:
        state, body = self.state, self.read_body()
        if not self._is_allowed():
            return
        chat: dict[str, Any] = json.loads(body)
        with state.lock:
            state.chats.append(chat)
            number = len(state.chats)
            status = state.statuses.pop(0) if state.statuses else 200
        if state.hold_after is not None and number > state.hold_after and not state.release.wait(WAIT_S):
            raise TimeoutError("nobody released the stand-in")
        if status == 0:
            self.close_connection = True
            return
        if status != 200:
            self.send_json(status, {"error": {"message": state.refusal}}, Retry_After=state.retry_after)
        elif chat["model"] not in state.models:
            self.send_json(404, {"error": {"message": f"model '{chat['model']}' not found"}})
        elif "response_format" in chat and not state.takes_schema:
            self.send_json(400, {"error": {"message": "response_format is not supported"}})
        else:
            message = {"role": "assistant", "content": state.answer(chat)}
            usage = {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": COMPLETION_TOKENS}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            self._send_completion({"id": "x", "object": "chat.completion", "choices": [choice], "usage": usage})

    def _send_completion(self, completion: dict[str, Any]) -> None:
        try:
            self.send_json(200, completion)
        except (BrokenPipeError, ConnectionResetError):
            # The worker that asked was killed: what a test of that wants.
            self.close_connection = True


ChatStandIn.handler = _Handler
