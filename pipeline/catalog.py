"""Base models that are known to work, and what each needs: from the models' cards, memory from Unsloth's table."""

from bisect import bisect_left
from dataclasses import dataclass

DEFAULT_MODEL = "unsloth/Qwen3-8B"
TOY = "toy"


@dataclass(frozen=True)
class KnownModel:
    """`parameters_b` in billions; `ollama` is the tag under which Ollama serves the same model."""

    hub_id: str
    parameters_b: float
    licence: str
    instruct: bool = True
    thinking: bool = False
    ollama: str = ""


KNOWN_MODELS = (
    KnownModel("unsloth/Qwen3-0.6B", 0.6, "apache-2.0", thinking=True, ollama="qwen3:0.6b"),
    KnownModel("unsloth/Qwen3-1.7B", 1.7, "apache-2.0", thinking=True, ollama="qwen3:1.7b"),
    KnownModel("unsloth/Qwen3-4B", 4.0, "apache-2.0", thinking=True, ollama="qwen3:4b"),
    KnownModel("unsloth/Qwen3-8B", 8.2, "apache-2.0", thinking=True, ollama="qwen3:8b"),
    KnownModel("unsloth/Qwen3-14B", 14.8, "apache-2.0", thinking=True, ollama="qwen3:14b"),
    KnownModel("unsloth/Qwen3-32B", 32.8, "apache-2.0", thinking=True, ollama="qwen3:32b"),
    KnownModel("unsloth/Qwen3-4B-Base", 4.0, "apache-2.0", instruct=False),
    KnownModel("unsloth/Qwen3-8B-Base", 8.2, "apache-2.0", instruct=False),
    KnownModel("unsloth/Qwen2.5-7B-Instruct", 7.6, "apache-2.0", ollama="qwen2.5:7b"),
    KnownModel("unsloth/Qwen2.5-14B-Instruct", 14.8, "apache-2.0", ollama="qwen2.5:14b"),
    KnownModel("unsloth/Qwen2-7B-Instruct", 7.6, "apache-2.0", ollama="qwen2:7b"),
    KnownModel("unsloth/Llama-3.2-1B-Instruct", 1.2, "llama3.2", ollama="llama3.2:1b"),
    KnownModel("unsloth/Llama-3.2-3B-Instruct", 3.2, "llama3.2", ollama="llama3.2:3b"),
    KnownModel("unsloth/Llama-3.1-8B-Instruct", 8.0, "llama3.1", ollama="llama3.1:8b"),
    KnownModel("unsloth/Meta-Llama-3.1-70B-Instruct", 70.6, "llama3.1", ollama="llama3.1:70b"),
    KnownModel("unsloth/gemma-3-1b-it", 1.0, "gemma", ollama="gemma3:1b"),
    KnownModel("unsloth/gemma-3-4b-it", 4.3, "gemma", ollama="gemma3:4b"),
    KnownModel("unsloth/gemma-3-12b-it", 12.2, "gemma", ollama="gemma3:12b"),
    KnownModel("unsloth/mistral-7b-instruct-v0.3", 7.2, "apache-2.0", ollama="mistral:7b"),
    KnownModel("unsloth/phi-4", 14.7, "mit", ollama="phi4:14b"),
    KnownModel("unsloth/DeepSeek-R1-Distill-Qwen-7B", 7.6, "mit", thinking=True, ollama="deepseek-r1:7b"),
    KnownModel("unsloth/DeepSeek-R1-0528-Qwen3-8B", 8.2, "mit", thinking=True, ollama="deepseek-r1:8b"),
)

# Unsloth's documentation, "theoretical minimum" of VRAM in GB by billions of parameters.
_PARAMETERS_B = (0.0, 3, 7, 8, 9, 11, 14, 27, 32, 40, 70, 81, 90, 405)
_QLORA_GB = (1.0, 3.5, 5, 6, 6.5, 7.5, 8.5, 22, 26, 30, 41, 48, 53, 237)
_LORA_GB = (1.5, 8, 19, 22, 24, 29, 33, 64, 76, 96, 164, 192, 212, 950)


def vram_gb(parameters_b: float, *, load_in_4bit: bool) -> float:
    """Least VRAM in GB to fine-tune a model of that size, interpolated in Unsloth's table; sequence 2048, batch 1–2."""
    table = _QLORA_GB if load_in_4bit else _LORA_GB
    right = min(max(bisect_left(_PARAMETERS_B, parameters_b), 1), len(table) - 1)
    x0, x1, y0, y1 = _PARAMETERS_B[right - 1], _PARAMETERS_B[right], table[right - 1], table[right]
    return round(y0 + (y1 - y0) * (parameters_b - x0) / (x1 - x0), 1)


def trainable_form(ollama_tag: str) -> KnownModel | None:
    """The Hub model that can be trained in place of what Ollama serves as `ollama_tag`."""
    tag = ollama_tag.lower().removeprefix("library/")
    exact = [
        model for model in KNOWN_MODELS if model.ollama and (tag == model.ollama or tag.startswith(f"{model.ollama}-"))
    ]
    family = [model for model in KNOWN_MODELS if model.ollama and model.ollama.split(":")[0] == tag.split(":")[0]]
    found = exact or sorted(family, key=lambda model: abs(model.parameters_b - 8))
    return found[0] if found else None
