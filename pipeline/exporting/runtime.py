"""A GGUF in llama.cpp, as Ollama and llama-server will run it: what it tokenizes, renders and answers. Light.

The model runs in a child process that ends with this one, however it ends. Nothing is printed here; llama.cpp's output
goes to a log. Listens on the loopback address, behind a key of its own.
"""

import json
import secrets
import select
import subprocess
import sys
from collections.abc import Sequence
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal, TypedDict
from urllib.parse import urlsplit

from tunewright.pipeline.chat_template import Message
from tunewright.pipeline.errors import TunewrightError, Unavailable
from tunewright.pipeline.exporting import programs

SERVER = "tunewright.pipeline.exporting.llama_server"
# A large file on a slow disk is read at some 100 MB/s.
LOAD_TIMEOUT_S = 600
REQUEST_TIMEOUT_S = 600
STOP_TIMEOUT_S = 10


class Reply(TypedDict):
    """`tokens` are the ids generated, the one that ended the answer included."""

    text: str
    finish_reason: Literal["stop", "length"]
    tokens: list[int]


class LlamaRuntime:
    """A loaded GGUF, for the length of a `with` block."""

    def __init__(self, gguf: Path, *, log: Path, n_ctx: int = 2048) -> None:
        """`n_ctx` is the most tokens of prompt and answer together; llama.cpp's output is appended to `log`."""
        self._gguf, self._n_ctx, self._log = gguf, n_ctx, log
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
        request = {"model": str(self._gguf), "n_ctx": self._n_ctx, "api_key": self._key}
        try:
            stdin.write(json.dumps(request) + "\n")
            stdin.flush()
            ready = select.select([stdout], [], [], LOAD_TIMEOUT_S)[0]
        except BrokenPipeError:
            ready = []
        address = stdout.readline().strip() if ready else ""
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

    def _stop(self) -> None:
        for pipe in self._pipes():
            pipe.close()
        try:
            self._process.wait(timeout=STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def apply_template(self, messages: Sequence[Message], *, enable_thinking: bool | None = None) -> str:
        """The prompt that the file's own template makes of `messages`, the assistant's turn opened.

        `enable_thinking` is sent as such a switch; None leaves it to llama.cpp, which turns thinking on.
        """
        body: dict[str, Any] = {"messages": list(messages)}
        if enable_thinking is not None:
            body["chat_template_kwargs"] = {"enable_thinking": enable_thinking}
        return self._post("/apply-template", body)["prompt"]

    def tokenize(self, text: str, *, add_special: bool = True) -> list[int]:
        """Token ids of `text`, control tokens read as such; with `add_special` as a prompt is, BOS included."""
        body = {"content": text, "add_special": add_special, "parse_special": True}
        return self._post("/tokenize", body)["tokens"]

    def chat(
        self,
        messages: Sequence[Message],
        *,
        max_tokens: int,
        temperature: float = 0.0,
        enable_thinking: bool | None = None,
    ) -> Reply:
        """The answer to `messages`, its text as generated (thinking included). Greedy at `temperature` 0."""
        body = {
            "prompt": self.apply_template(messages, enable_thinking=enable_thinking),
            "n_predict": max_tokens, "temperature": temperature, "return_tokens": True, "cache_prompt": False,
        }  # fmt: skip
        answer = self._post("/completion", body)
        ended = "length" if answer["stop_type"] == "limit" else "stop"
        return {"text": answer["content"], "finish_reason": ended, "tokens": answer["tokens"]}

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        # No proxy setting of the environment applies to http.client, and none may: the address is this machine.
        connection = HTTPConnection(self._address, timeout=REQUEST_TIMEOUT_S)
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self._key}"}
        try:
            connection.request("POST", path, json.dumps(body).encode(), headers)
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
