"""Steps of `lean` on a CPU, by Triton's interpreter in float32, beside transformers' forward.

`python lean_cases.py FOLDER` writes what was seen to FOLDER/facts.json. In a process of its own: Triton decides at its
first import whether it interprets, and other libraries import it. FOLDER/bases holds a folder for each family,
FOLDER/adapters `FAMILY-KIND` folders.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM

from tunewright.pipeline.inference import kernels
from tunewright.pipeline.inference.adapters import Adapters
from tunewright.pipeline.inference.forward import Forward
from tunewright.pipeline.inference.lean import Lean

LENGTHS, STEPS, ROWS, TOKENS = (30, 5, 22), 3, 4, 64
CPU = torch.device("cpu")
# Few programs, which take milliseconds each here, and several turns of their loops.
kernels.PLAIN, kernels.LOW, kernels.UP = (64, 32, 1), (4, 32, 1), (128, 32, 1)
kernels.FEW = 16


def prompts() -> list[list[int]]:
    chance = torch.Generator().manual_seed(1)
    return [torch.randint(10, 1200, (n,), generator=chance).tolist() for n in LENGTHS]


def furthest(forward: Forward, stepper: Any, beside: Any, read: list[list[int]], rows: int) -> float:
    """The largest difference of a logit over some steps, in a room that has held another batch before."""
    logits, context = forward.read(read)
    room = stepper.room(rows, TOKENS)
    room.take(forward.read([[7] * 50] * rows)[1])
    room.take(context)
    ids, worst = logits.argmax(-1), 0.0
    for _ in range(STEPS):
        room.ids[: len(ids)] = ids
        ours, theirs = stepper.step(room, beside)[: len(ids)], forward.advance(context, ids[:, None])
        worst = max(worst, float((ours - theirs).abs().max()))
        ids = theirs.argmax(-1)
    return worst


def family(folder: Path) -> dict[str, Any]:
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    forward, stepper = Forward(model, CPU), Lean(model)
    attention = model.model.layers[0].self_attn
    return {
        "kept": all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters()),
        "copies": len({attention.get_submodule(f"{n}_proj").weight.untyped_storage().data_ptr() for n in "qkv"}),
        "batch": furthest(forward, stepper, None, prompts(), ROWS),
        "alone": furthest(forward, stepper, None, prompts()[:1], 1),
    }


def tuned(base: Path, adapter: Path) -> dict[str, Any]:
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    forward, stepper, adapters = Forward(model, CPU), Lean(model), Adapters(model)
    pairs = adapters.add("one", adapter)
    beside = None if pairs is None else stepper.stack(pairs)
    if beside is None:
        return {"plain_lora": False}
    with adapters.on("one"):
        seen = {
            "plain_lora": True,
            "batch": furthest(forward, stepper, beside, prompts(), ROWS),
            "alone": furthest(forward, stepper, beside, prompts()[:1], 1),
            "without PEFT": "peft" not in sys.modules,
        }
    with adapters.on(None):
        seen["off"] = furthest(forward, stepper, None, prompts(), ROWS)
        seen["left on"] = furthest(forward, stepper, beside, prompts(), ROWS)
    return seen


def attention() -> float:
    """Rows of one, some and all tokens, over several chunks, with a width that is no power of two."""
    chance = torch.Generator().manual_seed(0)
    heads, kv_heads, tokens, width = 6, 2, 600, 40
    queries = torch.randn(3, heads, width, generator=chance)
    keys, values = (torch.randn(3, kv_heads, tokens, width, generator=chance) for _ in range(2))
    position = torch.tensor([0, 300, 599])
    found, worst = kernels.attend(queries, keys, values, position, 0.2), 0.0
    for row, last in enumerate(position.tolist()):
        k, v = (part[row, :, : last + 1].repeat_interleave(heads // kv_heads, 0) for part in (keys, values))
        expected = functional.scaled_dot_product_attention(queries[row][:, None], k, v, scale=0.2)
        worst = max(worst, float((found[row] - expected.reshape(-1)).abs().max()))
    return worst


def main(root: Path) -> None:
    torch.set_num_threads(1)
    with torch.inference_mode():
        facts: dict[str, Any] = {"attention": attention(), "families": {}, "adapters": {}}
        for folder in sorted((root / "bases").iterdir()):
            facts["families"][folder.name] = family(folder)
        for folder in sorted((root / "adapters").iterdir()):
            facts["adapters"][folder.name] = tuned(root / "bases" / folder.name.split("-")[0], folder)
    (root / "facts.json").write_text(json.dumps(facts), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
