"""The Modelfile of an export: what Ollama needs beside the GGUF so that the model answers as it was trained to.

Guarantees that the context is no shorter than the training rows, that every end-of-turn token stops, and that the
sampling is the model's own, or its preset's (Ollama sends its defaults over the GGUF's otherwise). The template is
written for old and new servers alike: those since 0.30 run the Jinja template inside the GGUF and leave TEMPLATE aside
wherever the Jinja can more (tools, thinking); those before run TEMPLATE alone, in Go's language. What the Go template
cannot say is listed (`lacks`), not hidden.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunewright.pipeline import files
from tunewright.pipeline.chat_template import ChatTemplate, Message
from tunewright.pipeline.errors import InvalidInput, nearest
from tunewright.pipeline.publishing import lineage, presets
from tunewright.pipeline.store import Row
from tunewright.pipeline.workspace import Workspace

# Least and most of each PARAMETER of Ollama's Modelfile reference; whole numbers where both bounds are ints.
RANGES: dict[str, tuple[float, float]] = {
    "temperature": (0.0, 2.0),
    "top_p": (0.0, 1.0),
    "top_k": (0, 1000),
    "min_p": (0.0, 1.0),
    "repeat_penalty": (0.1, 2.0),
    "repeat_last_n": (-1, 1_048_576),
    "num_ctx": (32, 1_048_576),
    "num_predict": (-1, 1_048_576),
    "seed": (0, 2**31 - 1),
}
ALLOWED = [*RANGES, "stop"]
SAMPLING = {
    "temperature": "temperature", "top_p": "top_p", "top_k": "top_k", "min_p": "min_p",
    "repetition_penalty": "repeat_penalty",
}  # fmt: skip
# Qwen3's model card, "Best Practices", non-thinking mode.
QWEN3_NOT_THINKING: dict[str, Any] = {"temperature": 0.7, "top_p": 0.8, "top_k": 20}
MAX_STOPS = 16


@dataclass(frozen=True)
class Modelfile:
    """`text` is for `ollama create -f`; the rest are the same things as the API takes them.

    `stops` are the model's own among `parameters["stop"]`. `lacks` says what a server before 0.30 cannot do with it.
    """

    text: str
    parameters: dict[str, Any]
    template: str | None
    system: str | None
    stops: list[str]
    lacks: list[str]


def build(
    workspace: Workspace,
    export: Row,
    gguf: Path,
    system: str | None = None,
    parameters: Mapping[str, Any] | None = None,
    preset: str = presets.ASSISTANT,
    *,
    retry: Callable[..., str],
) -> Modelfile:
    """The Modelfile for one GGUF of an export. `parameters` go over the preset's, those over the model's own.

    An empty `system` is none, whatever the preset has. `retry` makes the tool's call with some arguments changed, for
    errors to name. Stops are added to the model's. Raises InvalidInput for an unknown preset, a parameter that is not
    in `ALLOWED` or out of range, and a system message that the model's template refuses; NotFound where the export has
    lost its tokenizer.
    """
    wished, chosen = _checked(export, parameters or {}, retry), presets.named(preset)
    system = (chosen.system if system is None else system) or None
    if system is not None and '"""' in system:
        raise InvalidInput(
            "invalid_system", 'The system message holds """.', allowed="A Modelfile ends its texts with that.",
            next=retry(system=system.replace('"""', "'''")),
        )  # fmt: skip
    template = ChatTemplate(
        lineage.tokenizer_folder(workspace, export), enable_thinking=export["document"].get("enable_thinking", False)
    )
    if system is not None:
        template.render([{"role": "system", "content": system}, _USER], add_generation_prompt=True)
    stops = _stops(workspace, export, template)
    settings: dict[str, Any] = {
        **_sampling(workspace, export), "num_ctx": _context_tokens(workspace, export, chosen.context_tokens),
        **chosen.parameters, **wished, "stop": list(dict.fromkeys([*stops, *wished["stop"]])),
    }  # fmt: skip
    go = go_template(template)
    return Modelfile(_text(gguf, go, system, settings), settings, go, system, stops, lacks(template, go))


def _checked(export: Row, parameters: Mapping[str, Any], retry: Callable[..., str]) -> dict[str, Any]:
    """The parameters as they were given, `stop` as a list. Raises InvalidInput with the call that leaves one out."""

    def refused(name: str, what: str, hint: str) -> InvalidInput:
        others = {other: value for other, value in parameters.items() if other != name}
        allowed = f"{hint} Allowed are {', '.join(ALLOWED)}."
        return InvalidInput("invalid_parameter", what, allowed=allowed, next=retry(parameters=others))

    trained_on = export["document"].get("max_seq_length") or 0
    for name, value in parameters.items():
        if name == "stop":
            continue
        if name not in RANGES:
            raise refused(name, f"A Modelfile takes no parameter {name!r}.", nearest(name, ALLOWED))
        least, most = RANGES[name]
        whole = isinstance(least, int)
        is_number = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
        if not is_number or not least <= value <= most:
            kind = "whole number" if whole else "number"
            raise refused(name, f"{name}={value!r} is out of range.", f"A {kind} from {least} to {most}.")
        if name == "num_ctx" and value < trained_on:
            raise refused(
                name,
                f"num_ctx={value} is shorter than the training rows, which had up to {trained_on} tokens.",
                f"At least {trained_on}: a shorter context cuts what the model was trained to read.",
            )
    value = parameters.get("stop", [])
    stops: list[Any] = value if isinstance(value, list) else [value]
    if len(stops) > MAX_STOPS or not all(isinstance(stop, str) and stop and '"""' not in stop for stop in stops):
        hint = f'At most {MAX_STOPS} texts, none empty and none with """ in it.'
        raise refused("stop", f"stop={value!r} is no list of texts that stop.", hint)
    return {**parameters, "stop": stops}


def _read(workspace: Workspace, export: Row, name: str) -> dict[str, Any]:
    file = lineage.file_of(workspace, export, name)
    return files.read_json(file) if file else {}


def _sampling(workspace: Workspace, export: Row) -> dict[str, Any]:
    """What generation_config.json states, in Ollama's names; the card's values for a Qwen3 that states nothing."""
    config = _read(workspace, export, "generation_config.json")
    if config.get("do_sample") is False:
        return {"temperature": 0.0}
    stated = {ours: config[theirs] for theirs, ours in SAMPLING.items() if config.get(theirs) is not None}
    is_qwen3 = "qwen3" in (
        _read(workspace, export, "config.json").get("model_type", "") + export["document"].get("base_model", "").lower()
    )
    if not stated and is_qwen3 and not export["document"].get("enable_thinking", False):
        return dict(QWEN3_NOT_THINKING)
    return stated


def _context_tokens(workspace: Workspace, export: Row, wanted: int) -> int:
    """What the preset wants, no more than the model can read and no less than it was trained on."""
    longest = _read(workspace, export, "config.json").get("max_position_embeddings", wanted)
    return max(export["document"].get("max_seq_length") or 0, min(wanted, longest))


def _stops(workspace: Workspace, export: Row, template: ChatTemplate) -> list[str]:
    """The texts of all tokens that end a turn: the tokenizer's EOS and those of generation_config.json."""
    stated = _read(workspace, export, "generation_config.json").get("eos_token_id", [])
    texts = [template.tokenizer.id_to_token(i) for i in (stated if isinstance(stated, list) else [stated])]
    eos = _read(workspace, export, "tokenizer_config.json").get("eos_token")
    texts.append(eos.get("content") if isinstance(eos, dict) else eos)
    return list(dict.fromkeys(text for text in texts if text))


_USER, _SYSTEM, _ANSWER = (
    Message(role=role, content=f"the {role}'s words") for role in ("user", "system", "assistant")
)
_TOOL = {
    "type": "function",
    "function": {"name": "look_up", "description": "Looks up.", "parameters": {"type": "object", "properties": {}}},
}


def _turn(message: Message) -> str:
    return f"<|im_start|>{message['role']}\n{message['content']}<|im_end|>\n"


def go_template(template: ChatTemplate) -> str | None:
    """A Go template that writes what the model's own ChatML template writes, or None where that is not ChatML.

    Found by rendering: a default system message and the block with which an answer opens (an empty thinking block,
    where training had thinking off) are taken over; if any turn comes out in another form, there is no Go template.
    """
    system, user, answer = _SYSTEM, _USER, _ANSWER
    try:
        before, found, opening = template.render([user], add_generation_prompt=True).partition(_turn(user))
        with_system = template.render([system, user], add_generation_prompt=True)
        with_history = template.render([user, answer, user], add_generation_prompt=True)
    except InvalidInput:
        return None
    is_chatml = (
        found
        and opening.startswith("<|im_start|>assistant\n")
        and with_system == _turn(system) + _turn(user) + opening
        and with_history == before + _turn(user) + _turn(answer) + _turn(user) + opening
    )
    if not is_chatml or "{{" in before + opening:
        return None
    default_system = "{{ if not .System }}" + before + "{{ end }}" if before else ""
    turns = "{{ range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}"
    return default_system + turns + opening


def lacks(template: ChatTemplate, go: str | None) -> list[str]:
    """What the model's own template does and `go` does not: nothing of it, tools, or thinking by request."""
    if go is None:
        return ["the chat template, which is not plain ChatML"]
    missing: list[str] = []
    plain = template.render([_USER], add_generation_prompt=True)
    if template.render([_USER], add_generation_prompt=True, tools=[_TOOL]) != plain:
        missing.append("tools")
    switched = template.render([_USER], add_generation_prompt=True, enable_thinking=not template.enable_thinking)
    if switched != plain:
        missing.append("switching thinking on or off")
    return missing


def _text(gguf: Path, template: str | None, system: str | None, parameters: Mapping[str, Any]) -> str:
    lines = [f"FROM {gguf}"]
    if template is not None:
        lines.append(f'TEMPLATE """{template}"""')
    if system is not None:
        lines.append(f'SYSTEM """{system}"""')
    for name, value in parameters.items():
        if name == "stop":
            lines += [f"PARAMETER stop {_quoted(stop)}" for stop in value]
        else:
            lines.append(f"PARAMETER {name} {value}")
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return f'"""{text}"""' if "\n" in text or '"' in text else f'"{text}"'
