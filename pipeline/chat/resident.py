"""The resident model: one base with its adapters in memory, switched per answer, never loaded twice. Heavy.

Guarantees: the base answers with every adapter off; thinking is told apart from the answer; no control token is shown.
"""

import gc
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunewright.pipeline.backend import FastLanguageModel

import torch
from peft import PeftModel
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList, set_seed

from tunewright.pipeline.chat_template import ChatTemplate, Message

THINK_END = "</think>"
# Markers of any model family that came out as plain text.
MARKER = re.compile(r"<\|[a-zA-Z0-9_]+\|>|</?think>|<(?:start|end)_of_turn>")
LEAST_CONTEXT_TOKENS = 4096


@dataclass(frozen=True)
class Answer:
    """`text` is the answer, `thinking` what stood before it; `stopped` is False where the limit cut it off."""

    text: str
    thinking: str
    tokens: int
    tokens_per_s: float
    stopped: bool


@dataclass
class Resident:
    """At most one base model. `key` names it: what to load and in how many bits."""

    key: tuple[str, bool] | None = None
    _model: Any = None
    _template_folder: Path | None = None
    _adapters: dict[str, str] = field(default_factory=dict[str, str])

    def load(self, loadable: str, tokenizer_folder: Path, *, load_in_4bit: bool, context_tokens: int) -> None:
        """Makes the base resident, unloading another one first; the template is the caller's each time."""
        self._template_folder = tokenizer_folder
        if self.key == (loadable, load_in_4bit):
            return
        self.unload()
        model, _ = FastLanguageModel.from_pretrained(
            loadable, max_seq_length=max(context_tokens, LEAST_CONTEXT_TOKENS), load_in_4bit=load_in_4bit
        )
        self._model, self.key = model, (loadable, load_in_4bit)

    def unload(self) -> None:
        self._model, self.key = None, None
        self._adapters.clear()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def add_adapter(self, adapter_id: str, path: Path) -> None:
        """Loads an adapter beside the base unless it is there already."""
        if adapter_id in self._adapters:
            return
        # PEFT makes module names of adapter names, where dots would nest.
        name = adapter_id.replace(".", "_")
        if isinstance(self._model, PeftModel):
            self._model.load_adapter(str(path), adapter_name=name)
        else:
            self._model = PeftModel.from_pretrained(self._model, str(path), adapter_name=name)
        self._adapters[adapter_id] = name

    def answer(
        self, messages: list[Message], *, adapter_id: str | None, thinking: bool, max_new_tokens: int,
        sampling: dict[str, float], seed: int, on_token: Callable[[int], bool],
    ) -> Answer:  # fmt: skip
        """Generates one answer with an adapter, or with the base alone where `adapter_id` is None.

        `on_token(count)` is called after every token; False stops.
        """
        # Training's gradient checkpointing left on would run generation without its cache and return wrong text.
        FastLanguageModel.for_inference(self._model)
        assert self._template_folder is not None
        template = ChatTemplate(self._template_folder, enable_thinking=thinking)
        prompt = template.ids(template.render(messages, add_generation_prompt=True))
        if adapter_id is not None:
            self._model.set_adapter(self._adapters[adapter_id])
        set_seed(seed)
        began = time.monotonic()
        if adapter_id is None and isinstance(self._model, PeftModel):
            with self._model.disable_adapter():
                ids = self._generate(template, prompt, max_new_tokens, sampling, on_token)
        else:
            ids = self._generate(template, prompt, max_new_tokens, sampling, on_token)
        seconds = time.monotonic() - began
        text, thought = _split(template, ids)
        stopped = bool(ids) and ids[-1] in self._ends(template)
        return Answer(text, thought, len(ids), round(len(ids) / seconds, 1) if seconds else 0.0, stopped)

    def _ends(self, template: ChatTemplate) -> list[int]:
        """Ids that end an answer: the model's own, and the token that ends a turn in its template."""
        own = self._model.generation_config.eos_token_id
        ends = {own} if isinstance(own, int) else set(own or ())
        mark = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        ids, mask = template.encode(mark)
        trained = [i for i, m in zip(ids, mask, strict=True) if m]
        return sorted(ends | {i for i in trained if i in template.special_ids})

    def _generate(
        self, template: ChatTemplate, prompt: list[int], max_new_tokens: int, sampling: dict[str, float],
        on_token: Callable[[int], bool],
    ) -> list[int]:  # fmt: skip
        ends = self._ends(template)
        greedy = sampling.get("temperature", 1.0) == 0
        own = {} if greedy else sampling
        config = GenerationConfig(
            do_sample=not greedy, max_new_tokens=max_new_tokens, eos_token_id=ends, pad_token_id=ends[0], **own
        )
        input_ids = torch.tensor([prompt], device=self._model.device)
        with torch.inference_mode():
            output = self._model.generate(
                input_ids=input_ids, attention_mask=torch.ones_like(input_ids), generation_config=config,
                stopping_criteria=StoppingCriteriaList([_EachToken(len(prompt), on_token)]),
            )  # fmt: skip
        return output[0, len(prompt) :].tolist()


class _EachToken(StoppingCriteria):
    """Tells how many tokens there are, and stops when told to."""

    def __init__(self, prompt_tokens: int, on_token: Callable[[int], bool]) -> None:
        self._prompt_tokens, self._on_token = prompt_tokens, on_token

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> Any:
        go_on = self._on_token(input_ids.shape[1] - self._prompt_tokens)
        return torch.full((input_ids.shape[0],), not go_on, dtype=torch.bool, device=input_ids.device)


def _split(template: ChatTemplate, ids: list[int]) -> tuple[str, str]:
    """The answer and the thinking before it, both free of control tokens."""
    text = template.tokenizer.decode(ids, skip_special_tokens=True)
    thought, end, answer = text.rpartition(THINK_END)
    if not end and "<think>" in text:  # cut off while still thinking
        thought, answer = text, ""
    return MARKER.sub("", answer).strip(), MARKER.sub("", thought).strip()
