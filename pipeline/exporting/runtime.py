"""A GGUF in llama.cpp, as Ollama and llama-server will run it: what it tokenizes, renders and answers. Light.

The model runs in a child process that ends with this one, however it ends. Nothing is printed here; llama.cpp's output
goes to a log. Listens on the loopback address, behind a key of its own.
"""

import json
import math
import secrets
import select
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal, TypedDict
from urllib.parse import urlsplit

from tunewright.pipeline.chat_template import Message, Tools
from tunewright.pipeline.errors import TunewrightError, Unavailable
from tunewright.pipeline.exporting import programs

SERVER = "tunewright.pipeline.exporting.llama_server"
# Loading may read the whole file: a slow disk gives 50 MB/s.
LOAD_TIMEOUT_S, LOAD_BYTES_PER_S = 300, 50_000_000
REQUEST_TIMEOUT_S = 600
STOP_TIMEOUT_S = 10
# Below, one thread: those of a small model spend their time waiting for each other, most of all on a busy machine.
SMALL_BYTES = 100_000_000
# Added to a logit: above any that a model gives.
FORCE = 1000.0
# Below, a 32-bit float is zero.
LEAST_PROBABILITY = 1e-45


class Reply(TypedDict):
    """`tokens` are the ids generated, the one that ended the answer included."""

    text: str
    finish_reason: Literal["stop", "length"]
    tokens: list[int]


class Token(TypedDict):
    """A possible next token: `logprob` is its natural logarithm before any sampling, null where it is not finite."""

    id: int
    logprob: float | None


class LlamaRuntime:
    """A loaded GGUF, for the length of a `with` block."""

    def __init__(
        self,
        gguf: Path,
        *,
        log: Path,
        n_ctx: int = 2048,
        check_cancelled: Callable[[], None] = lambda: None,
    ) -> None:
        """`n_ctx` is the most tokens of prompt and answer together; llama.cpp's output is appended to `log`.

        `check_cancelled` is called while the model loads.
        """
        self._gguf, self._n_ctx, self._log = gguf, n_ctx, log
        self._check_cancelled = check_cancelled
        self._key = secrets.token_urlsafe(24)

    def __enter__(self) -> "LlamaRuntime":
        """Loads the model. Raises TunewrightError where llama.cpp cannot, saying why."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", SERVER],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, encoding="utf-8",
            )  # fmt: skip
        try:
            self._address = urlsplit(self._start()).netloc
        except BaseException:
            # While it loads it hears nothing.
            self._process.kill()
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop()

    def _pipes(self) -> tuple[IO[str], IO[str]]:
        if self._process.stdin is None or self._process.stdout is None:
            raise RuntimeError("the child was started without pipes")
        return self._process.stdin, self._process.stdout

    def _start(self) -> str:
        stdin, stdout = self._pipes()
        size_bytes = self._gguf.stat().st_size if self._gguf.is_file() else 0
        request = {
            "model": str(self._gguf), "n_ctx": self._n_ctx, "api_key": self._key,
            "threads": 1 if size_bytes < SMALL_BYTES else 0,
        }  # fmt: skip
        try:
            stdin.write(json.dumps(request) + "\n")
            stdin.flush()
            address = stdout.readline().strip() if self._is_ready(stdout, size_bytes) else ""
        except BrokenPipeError:
            address = ""
        if not address:
            # Its last words are in the log once it has ended.
            self._stop()
            raise TunewrightError(
                "gguf_not_loadable",
                f"llama.cpp cannot load {self._gguf.name}: {programs.last_line(self._log)}.",
                allowed=f"Its output stands in {self._log}. Out of memory is the usual reason for a large file.",
                next="check_environment()",
                done="The file itself was not changed.",
            )
        return address

    def _is_ready(self, stdout: IO[str], size_bytes: int) -> bool:
        """Waits until the child has said something or is gone; False where that takes too long."""
        deadline = time.monotonic() + max(LOAD_TIMEOUT_S, size_bytes / LOAD_BYTES_PER_S)
        while time.monotonic() < deadline:
            if select.select([stdout], [], [], programs.POLL_S)[0]:
                return True
            self._check_cancelled()
        return False

    def _stop(self) -> None:
        for pipe in self._pipes():
            pipe.close()
        try:
            self._process.wait(timeout=STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def eos_token(self) -> str:
        """The text of the token that the file itself names as the end."""
        return self._ask("GET", "/props")["eos_token"]

    def apply_template(
        self, messages: Sequence[Message], *, tools: Tools = (), enable_thinking: bool | None = None
    ) -> str:
        """The prompt that the file's own template makes of `messages`, the assistant's turn opened.

        `enable_thinking` is sent as such a switch; None leaves it to llama.cpp, which turns thinking on.
        """
        body: dict[str, Any] = {"messages": list(messages)}
        if tools:
            body["tools"] = list(tools)
        if enable_thinking is not None:
            body["chat_template_kwargs"] = {"enable_thinking": enable_thinking}
        return self._ask("POST", "/apply-template", body)["prompt"]

    def tokenize(self, text: str, *, add_special: bool = True) -> list[int]:
        """Token ids of `text`, control tokens read as such; with `add_special` as a prompt is, BOS included."""
        body = {"content": text, "add_special": add_special, "parse_special": True}
        return self._ask("POST", "/tokenize", body)["tokens"]

    def chat(
        self,
        messages: Sequence[Message],
        *,
        max_tokens: int,
        temperature: float = 0.0,
        enable_thinking: bool | None = None,
    ) -> Reply:
        """The answer to `messages`, its text as generated (thinking included). Greedy at `temperature` 0."""
        prompt = self.apply_template(messages, enable_thinking=enable_thinking)
        return self._complete(prompt, n_predict=max_tokens, temperature=temperature)

    def answer(self, ids: Sequence[int], *, max_tokens: int, forced: int | None = None) -> Reply:
        """What follows the tokens `ids`, greedily. `forced` is a token that is made the likeliest every time."""
        bias = [] if forced is None else [[forced, FORCE]]
        return self._complete(list(ids), n_predict=max_tokens, temperature=0.0, logit_bias=bias)

    def next_tokens(self, ids: Sequence[int], count: int) -> list[Token]:
        """The `count` likeliest tokens after `ids`, the likeliest first.

        What `ids` has in common with the call before is not computed again.
        """
        # What is then generated is of no interest, but must be a whole character: with part of one llama.cpp sends no
        # probabilities. They are those before the bias.
        plain = self.tokenize("a", add_special=False)[-1]
        body = {
            "prompt": list(ids), "n_predict": 1, "n_probs": count, "temperature": 0.0, "cache_prompt": True,
            "logit_bias": [[plain, FORCE]],
        }  # fmt: skip
        return self._ask("POST", "/completion", body)["completion_probabilities"][0]["top_logprobs"]

    def choices(self, ids: Sequence[int], candidates: Sequence[int]) -> list[float]:
        """The log-probability of each of `candidates` as the next token after `ids`, as if there were no others.

        What `ids` has in common with the call before is not computed again. A candidate must be whole characters.
        """
        # The same bias on all of them leaves their differences as they are, and nothing to the rest of the vocabulary.
        body = {
            "prompt": list(ids), "n_predict": 1, "n_probs": len(candidates), "post_sampling_probs": True,
            "samplers": ["temperature"], "temperature": 1.0, "cache_prompt": True,
            "logit_bias": [[candidate, FORCE] for candidate in candidates],
        }  # fmt: skip
        found = self._ask("POST", "/completion", body)["completion_probabilities"][0]["top_probs"]
        probability = {token["id"]: token["prob"] for token in found}
        return [math.log(max(probability.get(candidate, 0.0), LEAST_PROBABILITY)) for candidate in candidates]

    def _complete(self, prompt: str | list[int], **settings: Any) -> Reply:
        body = {"prompt": prompt, "return_tokens": True, "cache_prompt": False, **settings}
        answer = self._ask("POST", "/completion", body)
        ended = "length" if answer["stop_type"] == "limit" else "stop"
        return {"text": answer["content"], "finish_reason": ended, "tokens": answer["tokens"]}

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        # No proxy setting of the environment applies to http.client, and none may: the address is this machine.
        connection = HTTPConnection(self._address, timeout=REQUEST_TIMEOUT_S)
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self._key}"}
        try:
            connection.request(method, path, json.dumps(body).encode() if body else None, headers)
            response = connection.getresponse()
            content = response.read().decode("utf-8")
        except (OSError, HTTPException) as error:
            raise Unavailable(
                "llama_cpp_stopped",
                f"llama.cpp stopped answering at {path} ({error or type(error).__name__}): "
                f"{programs.last_line(self._log)}.",
                allowed=f"Its output stands in {self._log}.",
                next="check_environment()",
            ) from error
        finally:
            connection.close()
        if response.status != 200:
            message = json.loads(content).get("error", {}).get("message", content)
            raise TunewrightError("llama_cpp_refused", f"llama.cpp refuses {path} for {self._gguf.name}: {message}.")
        return json.loads(content)
