"""Which Hub model stands behind an Ollama name, and that nothing is guessed."""

import pytest

from tunewright.pipeline.catalog import KNOWN_MODELS
from tunewright.pipeline.publishing.trainable import trainable_form


@pytest.mark.parametrize(
    ("name", "size", "hub_id"),
    [
        ("qwen3:8b", "8.2B", "unsloth/Qwen3-8B"),
        ("Qwen3:8B-q4_K_M", "8.2B", "unsloth/Qwen3-8B"),
        ("qwen3:latest", "8.2B", "unsloth/Qwen3-8B"),
        ("library/qwen3:0.6b", "751.63M", "unsloth/Qwen3-0.6B"),
        ("llama3.2:latest", "3.2B", "unsloth/Llama-3.2-3B-Instruct"),
        ("mistral:latest", "7.2B", "unsloth/mistral-7b-instruct-v0.3"),
        ("phi4:14b", "14.7B", "unsloth/phi-4"),
        ("qwen2.5:3b-instruct-q8_0", "3.1B", "unsloth/Qwen2.5-3B-Instruct"),
        ("qwen2.5:latest", "7.6B", "unsloth/Qwen2.5-7B-Instruct"),
        ("gemma3:27b-it-qat", "27.4B", "unsloth/gemma-3-27b-it"),
        ("gemma2:latest", "9.2B", "unsloth/gemma-2-9b-it"),
        ("hf.co/unsloth/Qwen3-8B-GGUF:Q4_K_M", "8.2B", "unsloth/Qwen3-8B"),
        ("hf.co/bartowski/Llama-3.2-1B-Instruct-GGUF:latest", "1.24B", "unsloth/Llama-3.2-1B-Instruct"),
    ],
)
def test_the_trainable_form_of_a_library_model_is_found(name: str, size: str, hub_id: str) -> None:
    assert trainable_form(name, size) == hub_id


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("tuny:latest", "8.2B"),
        ("me/qwen3-mine:8b", "8.2B"),
        # Other weights than the name's own: a mixture, a later release, a base model, an unknown size.
        ("qwen3:30b", "30.5B"),
        ("qwen3:4b-instruct-2507-q4_K_M", "4.0B"),
        ("llama3.1:8b-text-q4_0", "8.0B"),
        ("qwen3:latest", "30.5B"),
        ("qwen3:latest", ""),
        ("hf.co/somebody/Mystery-8B-GGUF:Q4_K_M", "8.2B"),
    ],
)
def test_what_is_not_known_is_not_guessed(name: str, size: str) -> None:
    assert trainable_form(name, size) is None


def test_every_model_of_the_catalogue_that_ollama_serves_is_found_by_its_tag() -> None:
    served = [model for model in KNOWN_MODELS if model.ollama]
    assert served
    assert {model.ollama: trainable_form(model.ollama) for model in served} == {m.ollama: m.hub_id for m in served}
