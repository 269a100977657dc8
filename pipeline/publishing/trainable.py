"""Which Hub model can be trained in place of what an Ollama server holds. Light.

Guarantees that a named Hub id exists: it is in the catalogue or in Unsloth's own list of models (`models/mapper.py` of
the installed Unsloth, where the ids below were looked up). Says nothing (None) rather than guess: a model under a name
of somebody's own, or of a size that was never released for training, has no form that could be known from its name.
"""

import re

from tunewright.pipeline.catalog import KNOWN_MODELS

# What the catalogue leaves out, by the name in Ollama's library: the Hub id with its size left open, and the sizes.
FAMILIES: dict[str, tuple[str, tuple[str, ...]]] = {
    "qwen2.5": ("unsloth/Qwen2.5-{}B-Instruct", ("0.5", "1.5", "3", "32", "72")),
    "qwen2.5-coder": ("unsloth/Qwen2.5-Coder-{}B-Instruct", ("0.5", "1.5", "3", "7", "14", "32")),
    "qwen2": ("unsloth/Qwen2-{}B-Instruct", ("0.5", "1.5")),
    "llama3.3": ("unsloth/Llama-3.3-{}B-Instruct", ("70",)),
    "llama3": ("unsloth/llama-3-{}b-Instruct", ("8",)),
    "gemma3": ("unsloth/gemma-3-{}b-it", ("27",)),
    "gemma2": ("unsloth/gemma-2-{}b-it", ("2", "9", "27")),
}
SIZE = re.compile(r"(\d+(?:\.\d+)?)b(?:-|$)")
QUANTIZATION = re.compile(r"(iq|q)\d.*|f16|fp16|bf16|f32|qat")
# Both count every parameter, rounded to one digit behind the point.
SIZE_TOLERANCE = 0.03


def trainable_form(name: str, parameter_size: str = "") -> str | None:
    """The Hub id of the trainable form of the model that Ollama calls `name`, or None where that is not known.

    `parameter_size` is what Ollama says of the model ("8.2B"); it decides where the tag holds no size (`latest`).
    """
    path, _, tag = name.lower().partition(":")
    if path.startswith(("hf.co/", "huggingface.co/")):
        return _of_repository(path)
    family = path.removeprefix("library/")
    named = SIZE.match(tag)
    # An exact tag of the catalogue, also with a quantization behind it (qwen3:8b-q4_K_M).
    for model in KNOWN_MODELS:
        if named and model.ollama == f"{family}:{named[1]}b" and not _is_other_variant(tag[named.end() :]):
            return model.hub_id
    form, sizes = FAMILIES.get(family, ("", ()))
    if named:
        return form.format(named[1]) if named[1] in sizes and not _is_other_variant(tag[named.end() :]) else None
    return _by_size(family, parameter_size) if tag in ("", "latest") else None


def _is_other_variant(rest: str) -> bool:
    """Whether what follows the size in a tag names other weights: a base model, a later release, a vision model."""
    plain = {"", "instruct", "it", "chat"}
    return not all(word in plain or QUANTIZATION.fullmatch(word) for word in rest.split("-"))


def _by_size(family: str, parameter_size: str) -> str | None:
    """The family's model of the stated size: `latest` is 8B for one family and 3B for another."""
    stated = re.fullmatch(r"(\d+(?:\.\d+)?)b", parameter_size.lower())
    if not stated:
        return None
    billions = float(stated[1])
    for model in KNOWN_MODELS:
        same_size = abs(model.parameters_b - billions) <= SIZE_TOLERANCE * billions
        if model.ollama.partition(":")[0] == family and same_size:
            return model.hub_id
    form, sizes = FAMILIES.get(family, ("", ()))
    # Names round down: a "7B" has 7.6.
    return form.format(int(billions)) if str(int(billions)) in sizes else None


def _of_repository(path: str) -> str | None:
    """Of `hf.co/owner/Name-GGUF` the catalogue's model of that name, whoever converted it."""
    tail = path.rsplit("/", 1)[-1].removesuffix("-gguf")
    return next((model.hub_id for model in KNOWN_MODELS if model.hub_id.split("/")[1].lower() == tail), None)
