"""A stand-in for an Ollama server: real HTTP on the loopback, enough of Ollama's API to publish a model to it.

It keeps what it received, verifies digests, streams statuses, and does what depends on the version as Ollama does:
since 0.30 it renders prompts with the Jinja template inside the GGUF, thinking switched on wherever the template has
think tags and the request says nothing, and ignores the Go TEMPLATE where there is a Jinja; before, it runs TEMPLATE,
which without one is `{{ .Prompt }}`. Since 0.12 it tells its prompts, since 0.34.1 it quantizes no GGUF. It runs no
model: its answers are `answers` by the last question, else `reply`. What it does not know it answers with 404.
"""

import hashlib
import json
import re
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from jinja2.sandbox import ImmutableSandboxedEnvironment
from standins.serving import Handler, StandIn

QUANTIZES = {"f32", "f16", "bf16", "q8_0", "q4_k_s", "q4_k_m"}
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


def render_go(template: str, messages: list[dict[str, str]]) -> str:
    """What Go's text/template makes of the few actions that our Modelfiles' templates use."""
    has_system = any(message["role"] == "system" for message in messages)
    text = re.sub(
        r"\{\{ if not .System \}\}(.*?)\{\{ end \}\}", lambda m: "" if has_system else m[1], template, flags=re.S
    )
    before, turn, after = re.split(r"\{\{ range .Messages \}\}|\{\{ end \}\}", text)
    if "{{" in before + after:
        raise ValueError("an action that is not known here")
    turns = [turn.replace("{{ .Role }}", m["role"]).replace("{{ .Content }}", m["content"]) for m in messages]
    return before + "".join(turns) + after


@dataclass
class OllamaStandIn(StandIn):
    """`with OllamaStandIn() as server:` serves at `server.url` until the block ends.

    `fail_create` is an error sent in the middle of a creation (where it is empty, the stream just ends there),
    `fail_push` one in the middle of a push, `fail_chat` what every chat is refused with. `answers` are what a chat
    gives by its last question: `text`, and where needed `thinking`, `ended` and `logprobs` (as Ollama tells them);
    `reply` is given to all others. `count_tokens` counts the prompt's tokens, `extra_tokens` more of them (a doubled
    BOS). `drop_parameter` is one that the server loses. `quantized_answers` take the place of `answers` for a model
    that was quantized here. `on_request` hears of every request (method and path) before it is served.
    """

    version: str = "0.33.0"
    reply: str = "Hello! I am glad to help."
    answers: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    quantized_answers: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    count_tokens: Callable[[str], int] | None = None
    extra_tokens: int = 0
    on_request: Callable[[str], None] | None = None
    fail_create: str | None = None
    fail_push: str | None = None
    fail_chat: str | None = None
    drop_parameter: str | None = None
    blobs: dict[str, bytes] = field(default_factory=dict[str, bytes])
    models: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    loaded: set[str] = field(default_factory=set[str])
    pushed: list[str] = field(default_factory=list[str])
    chats: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])

    def full_name(self, name: str) -> str:
        name = name if ":" in name else f"{name}:latest"
        return next((known for known in self.models if known.lower() == name.lower()), name)

    def is_since(self, *numbers: int) -> bool:
        return tuple(int(part) for part in self.version.split(".")) >= numbers

    def create(self, request: dict[str, Any]) -> Iterable[dict[str, Any]]:
        """The statuses of a creation; the model is there once the last one was sent."""
        yield {"status": "parsing GGUF"}
        digest = next(iter(request["files"].values()))
        if digest not in self.blobs:
            yield {"error": f"blob {digest} not found"}
            return
        quantize = request.get("quantize", "")
        if quantize and quantize.lower() not in QUANTIZES:
            yield {"error": f"unsupported quantization type {quantize}"}
            return
        yield {"status": f"quantizing F16 model to {quantize}" if quantize else f"using existing layer {digest}"}
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
            "architecture": strings.get("general.architecture"), "quantize": quantize,
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
        if not self.is_since(0, 30) or not model["jinja"]:
            return render_go(model["template"], messages) if model["template"] else messages[-1]["content"]
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        # The capability: without a word in the request thinking is on.
        if think is None and "<think>" in model["jinja"]:
            think = True
        switch = {} if think is None else {"enable_thinking": think}
        return environment.from_string(model["jinja"]).render(
            messages=messages, add_generation_prompt=True, tools=None, **switch
        )

    def answer(self, name: str, request: dict[str, Any]) -> dict[str, Any]:
        """The message and the metrics of a chat, as they stand in its only line."""
        model = self.models[name]
        known = self.quantized_answers if model["quantize"] else self.answers
        given = known.get(request["messages"][-1]["content"], {"text": self.reply})
        message = {"role": "assistant", "content": given["text"], "thinking": given.get("thinking", "")}
        counts: dict[str, Any] = {}
        if self.count_tokens:
            prompt = self.render(model, request["messages"], request.get("think"))
            counts["prompt_eval_count"] = self.count_tokens(prompt) + self.extra_tokens
        if request.get("logprobs") and "logprobs" in given:
            counts["logprobs"] = given["logprobs"]
        return {"message": message, "done": True, "done_reason": given.get("ended", "stop"), "eval_count": 7, **counts}

    def details(self, model: dict[str, Any]) -> dict[str, Any]:
        quantization = (model["quantize"] or "q8_0").upper()
        return {"format": "gguf", "family": model["architecture"], "quantization_level": quantization} | model.get(
            "details", {}
        )

    def listed(self, name: str) -> dict[str, Any]:
        model = self.models[name]
        content = json.dumps(model, sort_keys=True).encode()
        return {
            "name": name, "model": name, "size": model.get("size", 0), "digest": hashlib.sha256(content).hexdigest(),
            "modified_at": "2026-01-01T00:00:00Z", "details": self.details(model),
        }  # fmt: skip


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
        request = f"{self.command} {self.path}"
        self.state.requests.append(request)
        if self.state.on_request:
            self.state.on_request(request)
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
                self.send_json(200, {"models": [state.listed(name) for name in state.models]})
            case "/api/ps":
                running = [
                    {**state.listed(name), "size_vram": state.models[name].get("size", 0), "context_length": 4096,
                     "expires_at": "2026-01-01T00:05:00Z"}
                    for name in sorted(state.loaded)
                ]  # fmt: skip
                self.send_json(200, {"models": running})
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
            self._create(request)
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
            case "/api/chat" if state.fail_chat:
                self.send_json(500, {"error": state.fail_chat})
            case "/api/chat":
                self.send_json(200, self._chat(name, request))
            case "/api/generate" if not request.get("prompt") and request.get("keep_alive") == 0:
                state.loaded.discard(name)
                self.send_json(200, {"model": name, "response": "", "done": True, "done_reason": "unload"})
            case _:
                self.send_json(404, {"error": "404 page not found"})

    def _create(self, request: dict[str, Any]) -> None:
        if request.get("quantize") and self.state.is_since(0, 34, 1):
            error = "create-time quantization is only supported for safetensors imports; quantize GGUF models first"
            self.send_json(400, {"error": error})
        else:
            self._stream(self.state.create(request))

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
            "details": self.state.details(model), "model_info": {}, "capabilities": ["completion"],
        }  # fmt: skip

    def _chat(self, name: str, request: dict[str, Any]) -> dict[str, Any]:
        state = self.state
        answer = {"model": name, "created_at": "2026-01-01T00:00:00Z"}
        state.loaded.add(name)
        if request.get("_debug_render_only") and state.is_since(0, 12):
            prompt = state.render(state.models[name], request["messages"], request.get("think"))
            return {**answer, "_debug_info": {"rendered_template": prompt}}
        state.chats.append(request)
        return {**answer, **state.answer(name, request)}


OllamaStandIn.handler = _Handler
