"""The steps that a GPU captures, run as they are on a CPU in float32, Triton's kernels by its interpreter.

Each must give, row by row, what transformers' forward gives with its own growing cache.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tunewright.pipeline.inference.forward import Forward
from tunewright.pipeline.inference.lean import Lean
from tunewright.pipeline.inference.slots import Slots

Folder = Callable[..., Path]
STEPS, LENGTHS, ROWS, TOKENS = 12, (30, 5, 22), 4, 64
ROUNDING = 1e-4
TIMEOUT_S = 120
FAMILIES = ("qwen3", "qwen2", "llama")


@pytest.fixture(scope="module")
def seen(base: Folder, adapter: Folder, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `lean_cases.py` has seen."""
    root = tmp_path_factory.mktemp("lean")
    for family in FAMILIES:
        shutil.copytree(base(family), root / "bases" / family)
    for family, kind in (("llama", "lora"), ("llama", "some"), ("qwen3", "dora"), ("qwen3", "head")):
        shutil.copytree(adapter(family, kind), root / "adapters" / f"{family}-{kind}")
    finished = subprocess.run(
        [sys.executable, "-P", Path(__file__).with_name("lean_cases.py"), root],
        capture_output=True, encoding="utf-8", timeout=TIMEOUT_S,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr[-2000:]
    return json.loads((root / "facts.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("family", FAMILIES)
def test_lean_steps_are_the_forwards_from_one_copy_of_the_weights(seen: dict[str, Any], family: str) -> None:
    found = seen["families"][family]
    assert found["batch"] < ROUNDING and found["alone"] < ROUNDING
    assert found["kept"] and found["copies"] == 1


@pytest.mark.parametrize("kind", ["lora", "some"])
def test_lean_steps_carry_an_adapter_beside_the_weights(seen: dict[str, Any], kind: str) -> None:
    found = seen["adapters"][f"llama-{kind}"]
    assert found["batch"] < ROUNDING and found["alone"] < ROUNDING and found["off"] < ROUNDING
    assert found["left on"] > 0.1, "the adapter must change the logits"
    assert found["without PEFT"]


@pytest.mark.parametrize("kind", ["dora", "head"])
def test_other_adapters_than_plain_lora_are_left_to_peft(seen: dict[str, Any], kind: str) -> None:
    assert seen["adapters"][f"qwen3-{kind}"] == {"plain_lora": False}


def test_attention_reads_each_row_to_its_own_place_over_many_chunks(seen: dict[str, Any]) -> None:
    assert seen["attention"] < 1e-5


@pytest.mark.parametrize(
    ("family", "change"),
    [
        ("gemma3", {}),
        ("gpt2", {}),
        ("qwen3", {"sliding_window": 16}),
        ("llama", {"hidden_act": "gelu"}),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}),
    ],
)
def test_what_the_lean_step_does_not_compute_it_does_not_claim(
    base: Folder, plain: Callable[..., Any], family: str, change: dict[str, Any]
) -> None:
    config = plain(base(family)).config
    for name, value in change.items():
        setattr(config, name, value)
    assert not Lean.fits(config)


@pytest.mark.parametrize("family", ["qwen3", "qwen2", "llama", "gemma3", "gpt2"])
def test_steps_in_slots_are_the_forwards(base: Folder, plain: Callable[..., Any], family: str) -> None:
    forward = Forward(plain(base(family)), torch.device("cpu"))
    chance = torch.Generator().manual_seed(1)
    prompts = [torch.randint(10, 1200, (n,), generator=chance).tolist() for n in LENGTHS]
    with torch.inference_mode():
        logits, context = forward.read(prompts)
        assert Slots.fit(forward, context.cache)
        stepper = Slots(forward, context.cache)
        room = stepper.room(ROWS, TOKENS)
        # What another batch has left.
        room.take(forward.read([[7] * 50] * ROWS)[1])
        room.take(context)
        ids = logits.argmax(-1)
        for _ in range(STEPS):
            room.ids[: len(ids)] = ids
            ours, theirs = stepper.step(room, None)[: len(ids)], forward.advance(context, ids[:, None])
            assert torch.allclose(ours, theirs, atol=ROUNDING)
            ids = theirs.argmax(-1)
