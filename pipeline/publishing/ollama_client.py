"""The Ollama server, through its own client: the calls that client lacks, and its failures in our form.

Importing this imports the client (about half a second); the server process does so only when a tool needs it.
"""

import re
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from json import JSONDecodeError

import httpx
import ollama
from pydantic import ValidationError

from tunewright.pipeline.chat_template import Message
from tunewright.pipeline.errors import Unavailable
from tunewright.pipeline.settings import ollama_host

CONNECT_TIMEOUT_S = 3
# Between two lines of an answer: a large model is verified and loaded without a word in between.
READ_TIMEOUT_S = 900


class OllamaClient(ollama.Client):
    """The official client for `settings.ollama_host()`, with a time limit on every wait."""

    def __init__(self) -> None:
        super().__init__(ollama_host(), timeout=httpx.Timeout(READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S))

    def version(self) -> str:
        """The server's version. A quick call: waits CONNECT_TIMEOUT_S at most."""
        answer = self._request_raw("GET", "/api/version", timeout=CONNECT_TIMEOUT_S).json()
        if not isinstance(answer, dict) or not isinstance(answer.get("version"), str):
            raise ConnectionError("something answers, but it is not Ollama")
        return answer["version"]

    def has_model(self, name: str) -> bool:
        """Whether the server has a model of this full name (`name:tag`); Ollama does not tell upper from lower case."""
        return any(model.model and model.model.lower() == name.lower() for model in self.list().models)

    def has_blob(self, digest: str) -> bool:
        try:
            self._request_raw("HEAD", f"/api/blobs/{digest}")
        except ollama.ResponseError as error:
            if error.status_code == 404:
                return False
            raise
        return True

    def rendered(self, model: str, messages: Sequence[Message]) -> str | None:
        """The prompt that the server makes of `messages`, or None where it does not tell (before 0.12)."""
        request = {
            "model": model, "messages": list(messages), "stream": False, "_debug_render_only": True,
            # A server that does not know the switch answers in earnest: one token is enough.
            "options": {"num_predict": 1}, "keep_alive": 0,
        }  # fmt: skip
        answer = self._request_raw("POST", "/api/chat", json=request).json()
        return answer.get("_debug_info", {}).get("rendered_template")


def shown_host() -> str:
    """The server's URL as it may be shown: without a user and password."""
    return re.sub(r"//[^/@]*@", "//", ollama_host())


@contextmanager
def answering(doing: str, *, next: str, done: str = "Nothing was changed.") -> Generator[None]:
    """Turns what the client raises into Unavailable: `ollama_unavailable` (no answer) or `ollama_refused`."""
    try:
        yield
    except ollama.ResponseError as error:
        raise Unavailable(
            "ollama_refused", f"The Ollama server refused {doing}: {str(error.error)[:400]}.", next=next, done=done
        ) from error
    except (ConnectionError, httpx.TransportError, JSONDecodeError, ValidationError) as error:
        # The last two: what answers there does not speak Ollama's language.
        raise unavailable(next=next, done=done) from error


def unavailable(*, next: str, done: str = "Nothing was changed.") -> Unavailable:
    return Unavailable(
        "ollama_unavailable",
        f"No Ollama server answers at {shown_host()}.",
        allowed="Start it with `ollama serve` (or the Ollama app; to install: https://ollama.com/download), or name "
        "another host in OLLAMA_HOST.",
        next=next,
        done=done,
    )
