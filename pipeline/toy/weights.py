"""The toy's weights, trained from nothing in one to four minutes on two cores: plain PyTorch, fixed seed and order.

Runs in a worker. Needs transformers' Qwen3, which is what the config names.
"""

import math
import random
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from transformers import Qwen3Config, Qwen3ForCausalLM

from tunewright.pipeline import toy
from tunewright.pipeline.chat_template import ChatTemplate
from tunewright.pipeline.settings import Home

SEED = 7
EPOCHS = 8
BATCH_ROWS = 16
PEAK_LEARNING_RATE = 2e-3
WARMUP_STEPS = 20
# Keeps the toy from being too sure of itself to learn something else.
LABEL_SMOOTHING = 0.1
IGNORED = -100


def ensure(home: Home, on_step: Callable[[int, int], None]) -> Path:
    """The toy's folder, its weights trained when missing; `on_step(done, total)` is called at every step."""
    folder = toy.prepare(home)
    with toy.lock(home):
        if not toy.is_trained(home):
            partial = folder / ".partial-model.safetensors"
            _train(folder, partial, on_step)
            partial.replace(folder / "model.safetensors")
    return folder


def _train(folder: Path, file: Path, on_step: Callable[[int, int], None]) -> None:
    from safetensors.torch import save_file

    batches = _batches(ChatTemplate(folder))
    torch.manual_seed(SEED)
    model = Qwen3ForCausalLM(Qwen3Config.from_pretrained(folder)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LEARNING_RATE, weight_decay=0.01, betas=(0.9, 0.95))
    total = EPOCHS * len(batches)
    order = random.Random(SEED)
    step = 0
    for _ in range(EPOCHS):
        for input_ids, labels in order.sample(batches, len(batches)):
            rate = min((step + 1) / WARMUP_STEPS, 0.5 * (1 + math.cos(math.pi * step / total)))
            for group in optimizer.param_groups:
                group["lr"] = PEAK_LEARNING_RATE * rate
            # Padding stands behind the text, so causal attention never sees it from inside.
            logits = model(input_ids=input_ids).logits[:, :-1]
            loss = cross_entropy(
                logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED, label_smoothing=LABEL_SMOOTHING
            )
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            on_step(step, total)
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    save_file(tensors, file, metadata={"format": "pt"})


def _batches(template: ChatTemplate) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of rows of like length: ids and labels, both (rows, tokens); every token but padding carries loss."""
    rows = sorted((template.encode(conversation)[0] for conversation in toy.conversations()), key=len)
    pad = template.tokenizer.token_to_id("<|endoftext|>")
    batches: list[tuple[torch.Tensor, torch.Tensor]] = []
    for begin in range(0, len(rows), BATCH_ROWS):
        chunk = rows[begin : begin + BATCH_ROWS]
        width = len(chunk[-1])
        ids = torch.tensor([row + [pad] * (width - len(row)) for row in chunk])
        labels = torch.tensor([row + [IGNORED] * (width - len(row)) for row in chunk])
        batches.append((ids, labels))
    return batches
