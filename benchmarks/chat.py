"""Answers measured on one GPU, beside Unsloth's `generate` and plain PEFT's: JSON lines.

`python benchmarks/chat.py MODEL` makes an adapter of rank 16 on all linear layers of the model in the folder MODEL and
asks it greedily, each library in a process of its own, in 16 and in 4 bits. Per line: `tokens_per_s` of NEW tokens for
each of `rows` prompts of PROMPT tokens, with the prompts' reading counted, all rows as long; `first_s`, from asking to
the first token; both the mean of two after one that is not counted (`cold` lines are that one). `start` lines: seconds
of importing, of loading (with the adapter, and for ours with what is tried and captured), and of the first answer's
first token, in a new process. Nothing of ours runs in the background, then or later.
"""

import argparse
import importlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

PROMPT, NEW, TURNS = 128, 128, 2
ROWS = (1, 16)
IMPORTS = {"ours": "tunewright.pipeline.inference.engine", "unsloth": "tunewright.pipeline.backend", "peft": "peft"}
ALL_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
TIMEOUT_S = 300
# Asks `rows` prompts of `prompt` tokens for `new` more; returns the seconds to the first token and to the last.
Ask = Callable[[int, int, int], tuple[float, float]]


def report(**numbers: Any) -> None:
    print(json.dumps(numbers), flush=True)


def make_adapter(model: Path, folder: Path) -> None:
    """An adapter by peft whose B is random too, so that it changes every answer; without loading the model."""
    import torch
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        base = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model))
    lora = LoraConfig(r=16, lora_alpha=32, target_modules=ALL_LINEAR, task_type="CAUSAL_LM")
    tuned = get_peft_model(base, lora)
    torch.manual_seed(1)
    state: dict[str, torch.Tensor] = {}
    for name, parameter in tuned.named_parameters():
        if "lora_" in name:
            state[name.replace(".default", "")] = 0.02 * torch.randn(parameter.shape)
    tuned.peft_config["default"].base_model_name_or_path = str(model)
    tuned.peft_config["default"].save_pretrained(str(folder))
    save_file(state, folder / "adapter_model.safetensors")


def prompts(rows: int, tokens: int) -> list[list[int]]:
    import torch

    made = torch.randint(100, 20_000, (rows, tokens), generator=torch.Generator().manual_seed(rows * tokens))
    return made.tolist()


def ours(model: Path, adapter: Path, bits: int) -> dict[str, Ask]:
    from tunewright.pipeline.inference.engine import Engine
    from tunewright.pipeline.inference.requests import Request, Sampling
    from tunewright.pipeline.inference.subject import Subject

    engine = Engine()
    engine.load(
        Subject(
            name="ad", base=str(model), adapter_id="ad", adapter_path=str(adapter), base_without=str(model),
            tokenizer_folder=str(model), load_in_4bit=bits == 4, context_tokens=40_960, enable_thinking=False,
            trust_remote_code=False,
        )
    )  # fmt: skip

    def asking(adapter_id: str | None, sampling: Sampling) -> Ask:
        def ask(rows: int, prompt: int, new: int) -> tuple[float, float]:
            requests = [Request(ids, new, frozenset(), sampling) for ids in prompts(rows, prompt)]
            began, first = time.perf_counter(), 0.0

            def on_token(index: int, token: int) -> bool:
                nonlocal first
                first = first or time.perf_counter() - began
                return True

            engine.generate(requests, adapter_id=adapter_id, on_token=on_token)
            return first, time.perf_counter() - began

        return ask

    drawn = Sampling(temperature=0.7, top_p=0.8, top_k=20)
    return {
        "adapter": asking("ad", Sampling()), "base": asking(None, Sampling()), "adapter, sampled": asking("ad", drawn),
    }  # fmt: skip


def unsloth(model: Path, adapter: Path, bits: int) -> dict[str, Ask]:
    from tunewright.pipeline.backend import FastLanguageModel

    tuned, _ = FastLanguageModel.from_pretrained(str(adapter), max_seq_length=4096, load_in_4bit=bits == 4)
    FastLanguageModel.for_inference(tuned)
    return {"adapter": generating(tuned), "base": generating(tuned, off=True)}


def peft(model: Path, adapter: Path, bits: int) -> dict[str, Ask]:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    how: dict[str, Any] = {}
    if bits == 4:
        how["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )  # fmt: skip
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16, device_map={"": 0}, **how)
    tuned = PeftModel.from_pretrained(base, str(adapter)).eval()
    return {"adapter": generating(tuned), "base": generating(tuned, off=True)}


def generating(model: Any, *, off: bool = False) -> Ask:
    """`model.generate` as its documentation has it."""
    import torch

    def ask(rows: int, prompt: int, new: int) -> tuple[float, float]:
        ids = torch.tensor(prompts(rows, prompt), device="cuda")

        def seconds(tokens: int) -> float:
            torch.cuda.synchronize()
            began = time.perf_counter()
            with torch.inference_mode(), model.disable_adapter() if off else nullcontext():
                made = model.generate(
                    input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=tokens,
                    min_new_tokens=tokens, pad_token_id=0, use_cache=True,
                )  # fmt: skip
            torch.cuda.synchronize()
            if made.shape[1] != prompt + tokens:
                raise RuntimeError(f"{made.shape[1] - prompt} tokens came, not {tokens}")
            return time.perf_counter() - began

        return seconds(1), seconds(new)

    return ask


def one(library: str, model: Path, adapter: Path, bits: int) -> None:
    began = time.perf_counter()
    importlib.import_module(IMPORTS[library])
    imported = time.perf_counter()
    ways = {"ours": ours, "unsloth": unsloth, "peft": peft}[library](model, adapter, bits)
    loaded = time.perf_counter()
    import torch

    first, _ = ways["adapter"](1, PROMPT, 2)
    report(
        library=library, bits=bits, start=True, import_s=round(imported - began, 2),
        load_s=round(loaded - imported, 2), first_s=round(first, 3),
        peak_gib=round(torch.cuda.max_memory_allocated() / 2**30, 2),
    )  # fmt: skip
    for who, ask in ways.items():
        for rows in ROWS if library == "ours" or who == "adapter" else ROWS[:1]:
            runs = [ask(rows, PROMPT, NEW) for _ in range(1 + TURNS)]
            for cold, measured in ((True, runs[:1]), (False, runs[1:])):
                report(
                    library=library, bits=bits, who=who, rows=rows, cold=cold,
                    tokens_per_s=round(rows * NEW / statistics.mean(last for _, last in measured), 1),
                    first_s=round(statistics.mean(first for first, _ in measured), 3),
                )  # fmt: skip
    for tokens in (900, 3000):
        report(
            library=library, bits=bits, who="adapter", rows=1, cold=True, prompt=tokens,
            first_s=round(ways["adapter"](1, tokens, 2)[0], 3),
        )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--adapter", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--one", nargs=2, metavar=("LIBRARY", "BITS"), help="only this, here and now")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        adapter = given.adapter or Path(folder)
        if given.adapter is None:
            make_adapter(given.model, adapter)
        if given.one:
            one(given.one[0], given.model, adapter, int(given.one[1]))
            return
        for bits in ("16", "4"):
            for library in IMPORTS:
                command = [sys.executable, "-P", __file__, str(given.model), "--adapter", str(adapter)]
                subprocess.run([*command, "--one", library, bits], check=True, timeout=TIMEOUT_S)


if __name__ == "__main__":
    main()
