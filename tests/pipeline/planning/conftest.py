"""Models by their configs, datasets by their lengths, and machines, none of which is there."""

import random
from collections.abc import Callable
from typing import Any

import pytest

from tunewright.pipeline.data import statistics
from tunewright.pipeline.models import Model
from tunewright.pipeline.planning.machine import Machine
from tunewright.pipeline.store import Row

QWEN3 = {
    "model_type": "qwen3", "vocab_size": 151936, "head_dim": 128, "num_key_value_heads": 8,
    "max_position_embeddings": 40960,
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "0.6b": QWEN3 | {
        "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16,
        "tie_word_embeddings": True,
    },
    "4b": QWEN3 | {
        "hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32,
        "tie_word_embeddings": True,
    },
    "8b": QWEN3 | {
        "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "num_attention_heads": 32,
        "tie_word_embeddings": False,
    },
}  # fmt: skip
ModelOf = Callable[..., Model]
DatasetOf = Callable[..., Row]
MachineOf = Callable[..., Machine]


def model(size: str = "8b", name: str | None = None, **config: Any) -> Model:
    """A Qwen3 of a real size, with other values in its config where given."""
    return Model(name or f"local/Qwen3-{size}", "local", None, CONFIGS[size] | config)


def dataset(rows: int = 6000, lengths: list[int] | None = None, *, kind: str = "sft", eval_rows: int = 100) -> Row:
    """Of log-normal lengths with a mean of about 590 tokens, as real data has, or of `lengths`."""
    chance = random.Random(0)
    lengths = lengths or [max(40, int(chance.lognormvariate(6.05, 0.8))) for _ in range(min(rows, 5000))]
    tokens = {"estimated": False, **statistics._summary(lengths, rows)}
    document = {"kind": kind, "format": kind, "train_rows": rows, "eval_rows": eval_rows, "tokens": tokens}
    return {"id": "ds-real-0001", "name": "real", "document": document}


def machine(limit_gib: float = 138.0, name: str = "NVIDIA H200", capability: tuple[int, int] = (9, 0)) -> Machine:
    return Machine(name, True, limit_gib, limit_gib + 2, capability, 200.0, 16)


def cpu(limit_gib: float = 16.0) -> Machine:
    return Machine("cpu", False, limit_gib, 24.0, (0, 0), 20.0, 2)


@pytest.fixture
def model_of() -> ModelOf:
    return model


@pytest.fixture
def dataset_of() -> DatasetOf:
    return dataset


@pytest.fixture
def machine_of() -> MachineOf:
    return machine


@pytest.fixture
def a_cpu() -> Machine:
    return cpu()
