"""A stand-in for an Ollama server: real HTTP on the loopback, enough of Ollama's API to publish a model to it.

It keeps what it received, verifies digests, streams statuses, and renders prompts as Ollama since 0.30 does: with the
Jinja template inside the GGUF, thinking switched on wherever the template has think tags. It runs no model: its
answer to a chat is `reply`. Before version 0.30 it tells no prompts. What it does not know it answers with 404.
"""

import hashlib
import json
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from jinja2.sandbox import ImmutableSandboxedEnvironment
from standins.serving import Handler, StandIn

STRING, ARRAY = 8, 9
# Bytes of GGUF's fixed-size value types, by their number.
FIXED = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}


def gguf_strings(data: bytes) -> dict[str, str]:
    """The string entries of a GGUF file's header. Raises ValueError where it is no GGUF."""
    if data[:4] != b"GGUF":
        raise ValueError("invalid file magic")
    (entries,) = struct.unpack_from("<Q", data, 16)
    at, found = 24, {}

    def text(at: int) -> tuple[str, int]:
        (length,) = struct.unpack_from("<Q", data, at)
        return data[at + 8 : at + 8 + length].decode(), at + 8 + length

    def skip(kind: int, at: int) -> int:
        if kind == STRING:
            return text(at)[1]
        if kind != ARRAY:
            return at + FIXED[kind]
        inner, count = struct.unpack_from("<IQ", data, at)
        at += 12
        for _ in range(count):
            at = skip(inner, at)
        return at

    for _ in range(entries):
        key, at = text(at)
        (kind,) = struct.unpack_from("<I", data, at)
        if kind == STRING:
            found[key] = text(at + 4)[0]
        at = skip(kind, at + 4)
    return found


@dataclass
class OllamaStandIn(StandIn):
    """`with OllamaStandIn() as server:` serves at `server.url` until the block ends.

    `fail_create` is an error sent in the middle of a creation (where it is empty, the stream just ends there),
    `fail_push` one in the middle of a push. `reply` and `prompt_eval_count` are what a chat gives, `drop_parameter`
    is a parameter that the server loses.
    """

    version: str = "0.33.0"
    reply: str = "Hello! I am glad to help."
    prompt_eval_count: int | None = None
    fail_create: str | None = None
    fail_push: str | None = None
    drop_parameter: str | None = None
    blobs: dict[str, bytes] = field(default_factory=dict[str, bytes])
    models: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    pushed: list[str] = field(default_factory=list[str])
    chats: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])

    def full_name(self, name: str) -> str:
        return name if ":" in name else f"{name}:latest"

    def create(self, request: dict[str, Any]) -> Iterable[dict[str, Any]]:
        """The statuses of a creation; the model is there once the last one was sent."""
        yield {"status": "parsing GGUF"}
        digest = next(iter(request["files"].values()))
        if digest not in self.blobs:
            yield {"error": f"blob {digest} not found"}
            return
        yield {"status": f"using existing layer {digest}"}
        if self.fail_create is not None:
            if self.fail_create:
                yield {"error": self.fail_create}
            return
        try:
            strings = gguf_strings(self.blobs[digest])
        except ValueError as error:
            yield {"error": str(error)}
            return
        yield {"status": "writing manifest"}
        parameters = {k: v for k, v in request.get("parameters", {}).items() if k != self.drop_parameter}
        self.models[self.full_name(request["model"])] = {
            "digest": digest, "parameters": parameters, "template": request.get("template"),
            "system": request.get("system"), "jinja": strings.get("tokenizer.chat_template"),
            "architecture": strings.get("general.architecture"),
        }  # fmt: skip
        yield {"status": "success"}

    def push(self, name: str) -> Iterable[dict[str, Any]]:
        yield {"status": "retrieving manifest"}
        if self.fail_push:
            yield {"error": self.fail_push}
            return
        digest = self.models[name]["digest"]
        size = len(self.blobs[digest])
        yield {"status": f"pushing {digest[7:19]}", "digest": digest, "total": size, "completed": size}
        self.pushed.append(name)
        yield {"status": "success"}

    def render(self, model: dict[str, Any], messages: list[dict[str, str]], think: bool | None) -> str:
        if model["system"] and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": model["system"]}, *messages]
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        thinking = ("<think>" in model["jinja"]) if think is None else think
        return environment.from_string(model["jinja"]).render(
            messages=messages, add_generation_prompt=True, enable_thinking=thinking, tools=None
        )

    @property
    def tells_prompts(self) -> bool:
        return tuple(int(part) for part in self.version.split(".")[:2]) >= (0, 30)


class _Handler(Handler):
    state: OllamaStandIn

    def _stream(self, parts: Iterable[dict[str, Any]]) -> None:
        # HTTP/1.0: the answer ends with the connection.
        self.send_response(200)
        self.send_header("Content-Type", "application/x-ndjson")
        self.end_headers()
        for part in parts:
            self.wfile.write(json.dumps(part).encode() + b"\n")

    def _noted(self) -> str:
        self.state.requests.append(f"{self.command} {self.path}")
        return self.path

    def _not_found(self, name: str) -> None:
        self.send_json(404, {"error": f"model '{name}' not found"})

    def do_HEAD(self) -> None:
        digest = self._noted().removeprefix("/api/blobs/")
        self.send_response(200 if digest in self.state.blobs else 404)
        self.end_headers()

    def do_GET(self) -> None:
        state = self.state
        match self._noted():
            case "/api/version":
                self.send_json(200, {"version": state.version})
            case "/api/tags":
                self.send_json(200, {"models": [{"name": name, "model": name} for name in state.models]})
            case _:
                self.send_json(404, {"error": "404 page not found"})

    def do_DELETE(self) -> None:
        self._noted()
        name = self.state.full_name(json.loads(self.read_body())["model"])
        if self.state.models.pop(name, None) is None:
            self._not_found(name)
        else:
            self.send_json(200)

    def do_POST(self) -> None:
        state, path, body = self.state, self._noted(), self.read_body()
        if path.startswith("/api/blobs/"):
            self._take_blob(path.removeprefix("/api/blobs/"), body)
            return
        request: dict[str, Any] = json.loads(body)
        if path == "/api/create":
            self._stream(state.create(request))
            return
        name = state.full_name(request.get("source") or request["model"])
        if name not in state.models:
            self._not_found(name)
            return
        match path:
            case "/api/show":
                self.send_json(200, self._shown(state.models[name]))
            case "/api/copy":
                state.models[state.full_name(request["destination"])] = state.models[name]
                self.send_json(200)
            case "/api/push":
                self._stream(state.push(name))
            case "/api/chat":
                self.send_json(200, self._chat(name, request))
            case _:
                self.send_json(404, {"error": "404 page not found"})

    def _take_blob(self, digest: str, body: bytes) -> None:
        actual = f"sha256:{hashlib.sha256(body).hexdigest()}"
        if actual != digest:
            self.send_json(400, {"error": f"digest mismatch, expected {digest!r}, got {actual!r}"})
        else:
            self.state.blobs[digest] = body
            self.send_json(201)

    def _shown(self, model: dict[str, Any]) -> dict[str, Any]:
        lines = [
            f"{name:<30} {json.dumps(value, ensure_ascii=False)}"
            for name, values in model["parameters"].items()
            for value in (values if isinstance(values, list) else [values])
        ]
        return {
            "modelfile": f"FROM {model['digest']}", "parameters": "\n".join(lines), "template": model["template"] or "",
            "details": {"format": "gguf", "family": model["architecture"]}, "model_info": {},
            "capabilities": ["completion"],
        }  # fmt: skip

    def _chat(self, name: str, request: dict[str, Any]) -> dict[str, Any]:
        state = self.state
        answer = {"model": name, "created_at": "2026-01-01T00:00:00Z"}
        if request.get("_debug_render_only") and state.tells_prompts:
            prompt = state.render(state.models[name], request["messages"], request.get("think"))
            return {**answer, "_debug_info": {"rendered_template": prompt}}
        state.chats.append(request)
        counts = {} if state.prompt_eval_count is None else {"prompt_eval_count": state.prompt_eval_count}
        message = {"role": "assistant", "content": state.reply}
        return {**answer, "message": message, "done": True, "done_reason": "stop", "eval_count": 7, **counts}


OllamaStandIn.handler = _Handler
