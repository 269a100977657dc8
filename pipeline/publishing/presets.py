"""What a published model is for, as a word: sampling, context and system message that suit it. Light.

A preset changes how tokens are drawn and what is said first, never the weights, the template or the stops. Parameters
that are given go over a preset's, and a preset's over the model's own.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from tunewright.pipeline.errors import InvalidInput, call, nearest

ASSISTANT, RETRIEVAL, DETERMINISTIC, CREATIVE = "assistant", "retrieval", "deterministic", "creative"
# Ollama's own context on a small card; a model trained on shorter rows still gets this for longer conversations.
USUAL_CONTEXT_TOKENS = 4096


@dataclass(frozen=True)
class Preset:
    """`parameters` in Ollama's names, `context_tokens` the least num_ctx, `system` for where none is given."""

    parameters: Mapping[str, float] = field(default_factory=dict[str, float])
    context_tokens: int = USUAL_CONTEXT_TOKENS
    system: str | None = None


PRESETS: Mapping[str, Preset] = {
    # The model's own sampling, as its generation_config.json states it.
    ASSISTANT: Preset(),
    # The context holds about eight passages of 800 tokens (as `read_documents` cuts them), a question and its answer.
    RETRIEVAL: Preset(
        {"temperature": 0.1},
        context_tokens=8192,
        system="Answer from the context that the user gives, and from nothing else. Where the context does not hold "
        "the answer, say that it does not; never guess.",
    ),
    # Greedy: the same question gets the same answer. For extraction, classification and tests.
    DETERMINISTIC: Preset({"temperature": 0.0}),
    # Min-p in place of top-p and top-k keeps long tails out at a high temperature (Nguyen et al., arXiv 2407.01082).
    CREATIVE: Preset({"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.05}),
}


def named(name: str) -> Preset:
    """The preset called `name`. Raises InvalidInput."""
    if name not in PRESETS:
        raise InvalidInput(
            "unknown_preset",
            f"There is no preset {name!r}.",
            allowed=f"{nearest(name, list(PRESETS))} All: {', '.join(PRESETS)}.",
            next=call("publish_to_ollama", export_id="…", model_name="…", preset=RETRIEVAL),
        )
    return PRESETS[name]
