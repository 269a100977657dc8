"""Shows, on the very trainer of a run, that the examples packed into one row do not see each other.

What is shown is non-interference, through the trainer's own collator, loss and backward pass: an example's gradient
stays the same when its neighbours are exchanged for others of the same lengths, and when the label of an example's
first token is exchanged, which the token before it must never be asked for; and it is the gradient of that example
alone in its batch. In the control the collator is told that a row is one long example: where even that changes little,
nothing is shown. Batches of one shape run the same kernels, so what must not matter changes a gradient by nothing, or
by what repeating the very same batch changes.

Not shown: examples of other lengths than these few dozen tokens, for which a backend may choose another kernel.
`benchmarks/packing.py` measures those.
"""

import copy
import math
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

IGNORED = -100
# Few, so that what reaches over a border only, as a short convolution does, is a fair part of it.
TARGET_TOKENS = 8
# Of each row the lengths of its examples; None is the target, which alone carries loss. Unsloth runs one kernel where
# lengths differ and another where all are the same.
Layout = Sequence[Sequence[int | None]]
LAYOUTS: tuple[Layout, ...] = (((24, None), (10,)), ((8,), (None, 8)))
# Changes are of the gradient, relative. An exchange that must not matter was 0 on every backend of the CPU; the short
# convolutions of a random LFM2, which reach over borders, changed it by 0.002.
MAX_EXCHANGE = 0.001
# Or this many times what a repetition changes, on kernels that add up in no fixed order.
REPETITIONS = 3
# Packed against alone, as a share of the control: other shapes run other kernels, which round otherwise.
MAX_SHARE_OF_CONTROL = 0.2
# The control must change this much; below, neighbours hardly matter and a leak might hide.
MIN_CONTROL = 0.05
# Of each trainable tensor, evenly spread: two whole gradients of a full fine-tune might not fit.
SAMPLED = 4096


@dataclass(frozen=True)
class Proof:
    """Relative changes of the target's gradient, largest over LAYOUTS; NaN where one is zero or not finite."""

    neighbours: float
    border_labels: float
    packed: float
    control: float
    repeated: float
    time_s: float

    @property
    def apart(self) -> bool:
        return not self.reason

    @property
    def reason(self) -> str:
        """Why the run must not pack; empty where it may."""
        if not all(map(math.isfinite, (self.neighbours, self.border_labels, self.packed, self.control, self.repeated))):
            return "an example's gradient is zero or not finite, so nothing is shown"
        if self.control < MIN_CONTROL:
            return f"even examples declared as one change each other by {self.control:.2g} only, so nothing is shown"
        if max(self.neighbours, self.border_labels) > max(MAX_EXCHANGE, REPETITIONS * self.repeated):
            return (
                f"an example's gradient changes by {self.neighbours:.2g} with other neighbours and by "
                f"{self.border_labels:.2g} with other labels of first tokens, which must not matter"
            )
        if self.packed > MAX_SHARE_OF_CONTROL * self.control:
            return f"an example's gradient differs by {self.packed:.2g} from the one it has alone in its batch"
        return ""


def keeps_examples_apart(trainer: Any) -> Proof:
    """Measures an SFTTrainer over packed rows, before its `train`: ten passes of a few dozen tokens.

    Weights, random state, mode and what the trainer counts stay as they were; gradients are None afterwards. A CUDA
    out-of-memory passes through.
    """
    started = time.monotonic()
    # Tokens of the data, which the model takes as text; some others stand for images.
    tokens = sorted({token for ids in trainer.train_dataset[:8]["input_ids"] for token in ids})

    def gradient(layout: Layout, **changed: Any) -> torch.Tensor:
        return _gradient(trainer, _rows(tokens, layout, **changed))

    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices), _training(trainer), _without_dropout(trainer.model):
        alone = gradient([[None]])
        packed = [gradient(layout) for layout in LAYOUTS]
        repeated = [gradient(layout) for layout in LAYOUTS]
        neighbours = [gradient(layout, neighbours=1) for layout in LAYOUTS]
        borders = [gradient(layout, border=1) for layout in LAYOUTS]
        control = gradient(LAYOUTS[0], apart=False)
    return Proof(
        neighbours=_change(packed, neighbours),
        border_labels=_change(packed, borders),
        packed=_change([alone] * len(LAYOUTS), packed),
        control=_change([alone], [control]),
        repeated=_change(packed, repeated),
        time_s=round(time.monotonic() - started, 3),
    )


def _rows(
    tokens: Sequence[int], layout: Layout, neighbours: int = 0, border: int = 0, apart: bool = True
) -> list[dict[str, list[int]]]:
    """Rows as `examples.pack` makes them. The target's tokens are always the same; `neighbours` draws the others',
    `border` is the label of every example's first token. Unless `apart`, each row is one example.
    """
    drawn = torch.Generator().manual_seed(1 + neighbours)
    rows: list[dict[str, list[int]]] = []
    for lengths in layout:
        row: dict[str, list[int]] = {"input_ids": [], "labels": [], "seq_lengths": []}
        for length in lengths:
            source = torch.Generator().manual_seed(0) if length is None else drawn
            count = TARGET_TOKENS if length is None else length
            ids = [tokens[i] for i in torch.randint(len(tokens), (count,), generator=source).tolist()]
            row["input_ids"] += ids
            row["labels"] += [tokens[border % len(tokens)] if apart else IGNORED]
            row["labels"] += ids[1:] if length is None else [IGNORED] * (count - 1)
            row["seq_lengths"] += [count]
        rows.append(row if apart else row | {"seq_lengths": [len(row["input_ids"])]})
    return rows


def _gradient(trainer: Any, rows: list[dict[str, list[int]]]) -> torch.Tensor:
    """A sample of the gradient of the target's mean loss, float64 on the CPU."""
    model = trainer.model
    batch = trainer._prepare_inputs(trainer.data_collator(rows))
    # Given, as in training; a loss that ignores it takes the mean over as many.
    targets = torch.tensor(TARGET_TOKENS - 1, device=batch["input_ids"].device)
    with trainer.compute_loss_context_manager():
        loss = trainer.compute_loss(model, batch, num_items_in_batch=targets)
    loss.backward()
    parts: list[torch.Tensor] = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            values = parameter.detach() if parameter.grad is None else parameter.grad
            sample = values.flatten()[:: max(1, values.numel() // SAMPLED)].double().cpu()
            parts.append(torch.zeros_like(sample) if parameter.grad is None else sample)
    model.zero_grad(set_to_none=True)
    return torch.cat(parts)


def _change(of: list[torch.Tensor], by: list[torch.Tensor]) -> float:
    """The largest relative change; unlike Python's, torch's maximum of anything and NaN is NaN."""
    return float(torch.stack([(one - other).norm() / one.norm() for one, other in zip(of, by, strict=True)]).max())


@contextmanager
def _training(trainer: Any) -> Generator[None]:
    """The model as Unsloth's `train` sets it, and back; what the loss counts and logs is not of the run."""
    model, metrics, counted = trainer.model, copy.deepcopy(trainer._metrics), trainer._total_train_tokens
    was_training, is_unsloths = model.training, hasattr(model, "for_training")
    if is_unsloths:
        checkpointing = getattr(model, "_unsloth_gradient_checkpointing", trainer.args.gradient_checkpointing)
        model.for_training(use_gradient_checkpointing=checkpointing)
    else:
        model.train()
    try:
        yield
    finally:
        trainer._metrics, trainer._total_train_tokens = metrics, counted
        model.zero_grad(set_to_none=True)
        if not was_training:
            model.for_inference() if is_unsloths else model.eval()


@contextmanager
def _without_dropout(model: torch.nn.Module) -> Generator[None]:
    """In training mode, which some models give an attention of its own, but with nothing left to chance."""
    probabilities: list[tuple[torch.nn.Module, str, float]] = []
    for module in model.modules():
        # Layers of torch and, where attention drops out by itself, of transformers.
        for name in ("p", "attention_dropout"):
            value = vars(module).get(name)
            if isinstance(value, float) and value:
                probabilities.append((module, name, value))
                setattr(module, name, 0.0)
    try:
        yield
    finally:
        for module, name, value in probabilities:
            setattr(module, name, value)
