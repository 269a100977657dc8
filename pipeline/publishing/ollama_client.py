"""The Ollama server, through its own client: the calls that client lacks, and its failures in our form.

Importing this imports the client (about half a second); the server process does so only when a tool needs it.
"""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from json import JSONDecodeError
from pathlib import Path
from typing import Any

import httpx
import ollama
from pydantic import ValidationError

from tunewright.pipeline.chat_template import Message
from tunewright.pipeline.errors import Unavailable
from tunewright.pipeline.publishing.trainable import trainable_form
from tunewright.pipeline.redact import without_login
from tunewright.pipeline.settings import ollama_host

CONNECT_TIMEOUT_S = 3
# Between two lines of an answer: a large model is verified and loaded without a word in between.
READ_TIMEOUT_S = 900
UPLOAD_CHUNK_BYTES = 1 << 20
GIB = 2**30


class OllamaClient(ollama.Client):
    """The official client for `settings.ollama_host()`, with a time limit on every wait.

    Raises Unavailable where that is no address.
    """

    def __init__(self) -> None:
        try:
            super().__init__(ollama_host(), timeout=httpx.Timeout(READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S))
        except (ValueError, httpx.InvalidURL):
            # Without its cause, which may quote a password.
            raise Unavailable(
                "ollama_host_invalid",
                f"OLLAMA_HOST leads to {shown_host()}, which is no address of a server.",
                allowed="host, host:port or a URL: 127.0.0.1:11434, http://gpu-box:11434. An IPv6 address stands in "
                "brackets. The variable is read when the server starts.",
                next="check_environment()",
            ) from None

    def version(self) -> str:
        """The server's version. A quick call: waits CONNECT_TIMEOUT_S at most."""
        answer = self._quick("/api/version")
        if not isinstance(answer, dict) or not isinstance(answer.get("version"), str):
            raise ConnectionError("something answers, but it is not Ollama")
        return answer["version"]

    def held(self) -> list[dict[str, Any]]:
        """What the server has and runs, running models first, each with the Hub id of its trainable form.

        Entries: name, size_gib, quantization, family, running, vram_gib and until (None where not running; `until` is
        when it will be unloaded, ISO 8601), trainable (None where not known). Two quick calls; raises what the client
        raises (see `answering`).
        """
        running = {model.model: model for model in ollama.ProcessResponse.model_validate(self._quick("/api/ps")).models}
        rows: list[dict[str, Any]] = []
        for model in ollama.ListResponse.model_validate(self._quick("/api/tags")).models:
            name, details, loaded = model.model or "", model.details, running.get(model.model)
            rows.append(
                {
                    "name": name,
                    "size_gib": round((model.size or 0) / GIB, 2),
                    "quantization": details.quantization_level if details else None,
                    "family": details.family if details else None,
                    "running": loaded is not None,
                    "vram_gib": round((loaded.size_vram or 0) / GIB, 2) if loaded else None,
                    "until": loaded.expires_at.isoformat() if loaded and loaded.expires_at else None,
                    "trainable": trainable_form(name, (details.parameter_size if details else None) or ""),
                }
            )
        return sorted(rows, key=lambda row: not row["running"])

    def _quick(self, path: str) -> Any:
        return self._request_raw("GET", path, timeout=CONNECT_TIMEOUT_S).json()

    def digests(self) -> dict[str, str]:
        """The manifest's digest of each model by its full name in lower case: Ollama does not tell upper from lower.

        A copy has the digest of what it was copied from.
        """
        return {model.model.lower(): model.digest or "" for model in self.list().models if model.model}

    def has_blob(self, digest: str) -> bool:
        try:
            self._request_raw("HEAD", f"/api/blobs/{digest}")
        except ollama.ResponseError as error:
            if error.status_code == 404:
                return False
            raise
        return True

    def upload(self, path: Path, digest: str, sent: Callable[[int], None]) -> bool:
        """Sends a file as the blob `digest`; False where the server finds that it has another digest.

        `sent` is told the bytes so far after each chunk, and may raise to stop; the server keeps no part of a blob.
        The client's own `create_blob` reads the file twice, in 32 KB pieces, and says nothing meanwhile.
        """

        def chunks() -> Generator[bytes]:
            done = 0
            with path.open("rb") as file:
                while chunk := file.read(UPLOAD_CHUNK_BYTES):
                    yield chunk
                    done += len(chunk)
                    sent(done)

        try:
            self._request_raw("POST", f"/api/blobs/{digest}", content=chunks())
        except ollama.ResponseError as error:
            if error.status_code == 400 and "digest" in error.error:
                return False
            raise
        return True

    def rendered(self, model: str, messages: Sequence[Message], *, think: bool | None = None) -> str | None:
        """The prompt that the server makes of `messages`, or None where it does not tell (before 0.12)."""
        request: dict[str, Any] = {
            "model": model, "messages": list(messages), "stream": False, "_debug_render_only": True,
            # A server that does not know the switch answers in earnest: one token is enough.
            "options": {"num_predict": 1},
        }  # fmt: skip
        if think is not None:
            request["think"] = think
        answer = self._request_raw("POST", "/api/chat", json=request).json()
        return answer.get("_debug_info", {}).get("rendered_template")

    def unload(self, model: str) -> None:
        """Frees the memory of a model, whether it is loaded or not."""
        self.generate(model=model, keep_alive=0)


def shown_host() -> str:
    """The server's URL as it may be shown: without a user and password."""
    return without_login(ollama_host())


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
