"""The Modelfile of an export: what Ollama needs beside the GGUF so that the model answers as it was trained to.

Guarantees that the context is no shorter than the training rows, that every end-of-turn token stops, and that the
sampling is the model's own (Ollama sends its defaults over the GGUF's otherwise). Does not choose the chat template
of servers since 0.30: they run the Jinja template inside the GGUF and ignore TEMPLATE where there is one; the Go
template is for those before.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunewright.pipeline import files
from tunewright.pipeline.chat_template import ChatTemplate, Message
from tunewright.pipeline.errors import InvalidInput, call, nearest
from tunewright.pipeline.publishing import lineage
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
# Ollama's own context on a small card; a model trained on shorter rows still gets this for longer conversations.
USUAL_CONTEXT_TOKENS = 4096
MAX_STOPS = 16


@dataclass(frozen=True)
class Modelfile:
    """`text` is for `ollama create -f`; the rest are the same things as the API takes them. `stop` is a list."""

    text: str
    parameters: dict[str, Any]
    template: str | None
    system: str | None


def build(
    workspace: Workspace,
    export: Row,
    gguf: Path,
    system: str | None = None,
    parameters: Mapping[str, Any] | None = None,
) -> Modelfile:
    """The Modelfile for one GGUF of an export. `parameters` go over the model's own; stops are added to them.

    Raises InvalidInput for a parameter that Ollama does not have or that is out of range, and NotFound where the
    export has lost its tokenizer.
    """
    wished = _checked(export, parameters or {})
    if system is not None and '"""' in system:
        raise InvalidInput(
            "invalid_system", 'The system message holds """.', allowed="A Modelfile ends its texts with that."
        )
    template = ChatTemplate(
        lineage.tokenizer_folder(workspace, export), enable_thinking=export["document"].get("enable_thinking", False)
    )
    settings: dict[str, Any] = {
        **_sampling(workspace, export), "num_ctx": _context_tokens(workspace, export), **wished,
        "stop": list(dict.fromkeys([*_stops(workspace, export, template), *wished["stop"]])),
    }  # fmt: skip
    go = go_template(template)
    return Modelfile(_text(gguf, go, system, settings), settings, go, system)


def _checked(export: Row, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters as they were given, `stop` as a list. Raises InvalidInput."""
    trained_on = export["document"].get("max_seq_length", 0)
    for name, value in parameters.items():
        if name == "stop":
            continue
        if name not in RANGES:
            raise _refused(export, f"Ollama has no parameter {name!r}.", nearest(name, ALLOWED))
        least, most = RANGES[name]
        whole = isinstance(least, int)
        is_number = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
        if not is_number or not least <= value <= most:
            kind = "whole number" if whole else "number"
            raise _refused(export, f"{name}={value!r} is out of range.", f"A {kind} from {least} to {most}.")
        if name == "num_ctx" and value < trained_on:
            raise _refused(
                export,
                f"num_ctx={value} is shorter than the training rows, which had up to {trained_on} tokens.",
                f"At least {trained_on}: a shorter context cuts what the model was trained to read.",
            )
    return {**parameters, "stop": _checked_stops(export, parameters.get("stop", []))}


def _checked_stops(export: Row, value: Any) -> list[str]:
    stops: list[Any] = value if isinstance(value, list) else [value]
    if len(stops) > MAX_STOPS or not all(isinstance(stop, str) and stop and '"""' not in stop for stop in stops):
        raise _refused(export, f"stop={value!r} is no list of texts.", f"At most {MAX_STOPS} texts, none empty.")
    return stops


def _refused(export: Row, what: str, hint: str) -> InvalidInput:
    example = call("publish_to_ollama", export_id=export["id"], model_name="…", parameters={"temperature": 0.7})
    return InvalidInput("invalid_parameter", what, allowed=f"{hint} Allowed are {', '.join(ALLOWED)}.", next=example)


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


def _context_tokens(workspace: Workspace, export: Row) -> int:
    longest = _read(workspace, export, "config.json").get("max_position_embeddings", USUAL_CONTEXT_TOKENS)
    return max(export["document"].get("max_seq_length", 0), min(USUAL_CONTEXT_TOKENS, longest))


def _stops(workspace: Workspace, export: Row, template: ChatTemplate) -> list[str]:
    """The texts of all tokens that end a turn: the tokenizer's EOS and those of generation_config.json."""
    stated = _read(workspace, export, "generation_config.json").get("eos_token_id", [])
    texts = [template.tokenizer.id_to_token(i) for i in (stated if isinstance(stated, list) else [stated])]
    eos = _read(workspace, export, "tokenizer_config.json").get("eos_token")
    texts.append(eos.get("content") if isinstance(eos, dict) else eos)
    return list(dict.fromkeys(text for text in texts if text))


def _turn(message: Message) -> str:
    return f"<|im_start|>{message['role']}\n{message['content']}<|im_end|>\n"


def go_template(template: ChatTemplate) -> str | None:
    """A Go template that writes what the model's own ChatML template writes, or None where that is not ChatML.

    Found by rendering: a default system message and the block with which an answer opens (an empty thinking block,
    where training had thinking off) are taken over; if any turn comes out in another form, there is no Go template.
    """
    system, user, answer = (
        Message(role=role, content=f"the {role}'s words") for role in ("system", "user", "assistant")
    )
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
