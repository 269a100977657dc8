"""Where a teacher answers: its address, the key that may be sent there, and what it says it has. Light.

Guarantees: a key is sent to the origin that its own variable names and to no other, and is never part of an address,
a text or an error; no redirect is followed, and a loopback address is never reached through a proxy, so that documents
go nowhere but to the address that was agreed to. Does not guarantee that the endpoint speaks OpenAI's protocol well.
"""

import os
import re
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, cast
from urllib.parse import SplitResult, urlsplit

from tunewright.pipeline.errors import InvalidInput, NotFound, Unavailable, call, nearest
from tunewright.pipeline.redact import TOKEN
from tunewright.pipeline.settings import ollama_host

OLLAMA = "ollama"
OPENAI_URL = "https://api.openai.com/v1"
# A key's variable, the variable that names the address it belongs to, and that address where it is not set.
KEYS = (
    ("OPENAI_API_KEY", "OPENAI_BASE_URL", OPENAI_URL),
    ("TUNEWRIGHT_TEACHER_API_KEY", "TUNEWRIGHT_TEACHER_URL", ""),
)
USUAL_PORT = {"http": 80, "https": 443}
LIST_TIMEOUT_S = 10
MAX_SHOWN = 300
# What providers answer with 429 when it is not a matter of waiting.
QUOTA = re.compile(r"insufficient[_ ](quota|balance|credit|funds)|billing|exceeded your current quota", re.IGNORECASE)
EXAMPLES = '"ollama", "http://127.0.0.1:8000/v1" (vLLM, llama.cpp, LM Studio), "https://api.openai.com/v1"'


@dataclass(frozen=True)
class Endpoint:
    """The base address of an OpenAI-compatible server, without a slash at its end: `http://127.0.0.1:11434/v1`."""

    url: str

    @classmethod
    def of(cls, given: str) -> "Endpoint":
        """The endpoint that an argument names: `ollama` (at OLLAMA_HOST) or a URL. Raises InvalidInput."""
        url = f"{ollama_host()}/v1" if given == OLLAMA else given.strip()
        parts = _split(url)
        if parts is None or parts.scheme not in USUAL_PORT or not parts.hostname:
            raise _invalid(f"{TOKEN.sub('[removed]', given)[:100]!r} is no address.")
        if parts.username is not None or parts.query or parts.fragment:
            # Not shown: a password or a key may stand there.
            where = "OLLAMA_HOST" if given == OLLAMA else "The endpoint"
            raise _invalid(f"{where} holds more than an address: a user, a query or a fragment.")
        path = parts.path.rstrip("/").removesuffix("/chat/completions")
        return cls(f"{parts.scheme}://{parts.netloc}{path or '/v1'}")

    @property
    def origin(self) -> str:
        """Scheme, host and port: what a key belongs to."""
        origin = _origin(self.url)
        return origin or self.url

    @property
    def is_loopback(self) -> bool:
        """Whether what is sent there stays on this machine."""
        host = urlsplit(self.url).hostname or ""
        try:
            return ip_address(host).is_loopback
        except ValueError:
            return host == "localhost"

    @property
    def is_openai(self) -> bool:
        """Whether OPENAI_BASE_URL (or OpenAI itself, where it is not set) is meant."""
        return self.origin == _origin(os.environ.get("OPENAI_BASE_URL") or OPENAI_URL)

    def key(self) -> str | None:
        """The key that belongs to this address, from the environment; None where none does."""
        for variable, address, usual in KEYS:
            key = os.environ.get(variable, "").strip()
            if key and self.origin == _origin(os.environ.get(address) or usual):
                return key
        return None

    def models(self, *, next: str) -> list[str] | None:
        """The ids of the models offered; None where the endpoint does not list them. `next` goes into errors.

        Raises Unavailable where nothing answers within LIST_TIMEOUT_S, or not in OpenAI's protocol.
        """
        # The client of mcp and openai both (the successor of httpx, maintained): a running server has loaded it.
        import httpx2

        key = self.key()
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        try:
            with httpx2.Client(timeout=LIST_TIMEOUT_S, trust_env=not self.is_loopback) as client:
                answer = client.get(f"{self.url}/models", headers=headers)
        except httpx2.TransportError as error:
            raise self.unreachable(type(error).__name__, next=next) from None
        if refusal := self.refusal(answer.status_code, answer.text, next=next):
            raise refusal
        if answer.status_code in (404, 405):
            return None
        if answer.is_success:
            listed = _ids(answer)
            if listed is not None:
                return listed
        raise Unavailable(
            "endpoint_not_understood",
            f"{self.url}/models answers {answer.status_code}, not with a list of models: {self.shown(answer.text)}",
            allowed="The address of an API that OpenAI's clients can use; it mostly ends in /v1.",
            next=next,
        )

    def require_model(self, model: str, *, next: str) -> None:
        """Raises NotFound unless the endpoint offers `model` (or does not say what it offers)."""
        offered = self.models(next=next)
        if offered is not None and not {model, f"{model}:latest", f"models/{model}"} & set(offered):
            raise self.unknown_model(model, offered, next=next)

    def unknown_model(self, model: str, offered: list[str], *, next: str) -> NotFound:
        return NotFound(
            "teacher_not_found",
            f"{self.url} has no model {model!r}.",
            allowed=nearest(model, offered, 8) if offered else "It names none. With Ollama: `ollama pull MODEL` first.",
            next=next,
        )

    def unreachable(self, why: str, *, next: str) -> Unavailable:
        return Unavailable(
            "endpoint_unavailable",
            f"No teacher answers at {self.url} ({why}).",
            allowed="Start the server there (Ollama: `ollama serve`, its address in OLLAMA_HOST), or name another: "
            f"{EXAMPLES}.",
            next=next,
        )

    def refusal(self, status: int, text: str, *, next: str) -> Unavailable | None:
        """The error of an answer that will be the same for every request: a key refused, a quota used up; else None."""
        if status in (401, 403):
            sent = "refuses the key that it was sent" if self.key() else "wants a key, and none was sent"
            variable = "OPENAI_API_KEY" if self.is_openai else "TUNEWRIGHT_TEACHER_API_KEY"
            belongs = "" if self.is_openai else f" and TUNEWRIGHT_TEACHER_URL={self.origin} (the only host it goes to)"
            return Unavailable(
                "teacher_key_refused",
                f"{self.url} {sent} ({status}).",
                allowed=f"Set {variable}{belongs} in the environment of this server and restart it; never as an "
                "argument.",
                next=next,
            )
        if status == 402 or (status == 429 and QUOTA.search(text)):
            return Unavailable(
                "teacher_quota",
                f"The account at {self.url} is used up ({status}): {self.shown(text)}",
                allowed="Ask the user to add to it, or use another teacher.",
                next=next,
            )
        return None

    def shown(self, text: str) -> str:
        """The endpoint's own words, in one line and without a key."""
        if key := self.key():
            text = text.replace(key, "[removed]")
        return " ".join(TOKEN.sub("[removed]", text).split())[:MAX_SHOWN]


def _split(url: str) -> SplitResult | None:
    try:
        parts = urlsplit(url)
        _ = parts.port  # a port that is no number raises when it is read
    except ValueError:
        return None
    return parts


def _origin(url: str) -> str | None:
    parts = _split(url)
    if parts is None or not parts.hostname:
        return None
    return f"{parts.scheme}://{parts.hostname}:{parts.port or USUAL_PORT.get(parts.scheme, '')}"


def _invalid(what: str) -> InvalidInput:
    return InvalidInput(
        "invalid_endpoint",
        what,
        allowed=f"One of: {EXAMPLES}. Keys come from the environment only.",
        next=call("generate_examples", source="…", endpoint=OLLAMA, model="qwen3:8b"),
        done="Nothing was sent.",
    )


def _ids(answer: Any) -> list[str] | None:
    """The ids in `{"data": [{"id": …}]}` or, as some write it, in the bare list; None where there is no such list."""
    try:
        body: object = answer.json()
    except ValueError:
        return None
    entries = cast("dict[str, object]", body).get("data") if isinstance(body, dict) else body
    if not isinstance(entries, list):
        # Ollama without models answers null.
        return [] if isinstance(body, dict) and "data" in body and entries is None else None
    models = [cast("dict[str, object]", entry) for entry in cast("list[object]", entries) if isinstance(entry, dict)]
    return [str(model["id"]) for model in models if "id" in model]
