"""What packing does to each example, on every attention backend that this machine has.

`python benchmarks/packing.py` prints a line of JSON per backend, architecture, precision and layout, then a Markdown
table; its exit status is 1 where an example packed differs from the same example alone by more than rounding, or where
the control does not show a leak. Random models of 4 layers with LoRA, through TRL's trainer as the jobs use it. Each
set of switches of Unsloth runs in a process of its own, since it reads them at import. On a CPU: Unsloth's CPU backend
with transformers' attention, in about three minutes on two cores.

Per line: `loss`, the largest relative difference over the examples; `gradient`, that of the adapter's whole gradient;
`control_*`, the same differences where each row was declared to be one example; `exchange`, what other neighbours of
the same lengths change in one example's gradient, and `repeated` what the same ones do; `ran`, the calls of each of
Unsloth's kernels; `proof`, what `tunewright.pipeline.training.packing` says at a run's start, with its seconds.
"""

import argparse
import collections
import functools
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Switches that Unsloth reads at import. Its own order is torch's varlen kernel, one SDPA per example, one dense mask;
# the first is as in the jobs, which give it that kernel on torch 2.11 too (training/attention.py).
AS_IN_JOBS = "unsloth"
UNSLOTH: dict[str, dict[str, str]] = {
    AS_IN_JOBS: {},
    "unsloth, an SDPA per example": {"UNSLOTH_TORCH_VARLEN": "0"},
    "unsloth, a dense mask": {
        "UNSLOTH_TORCH_VARLEN": "0", "UNSLOTH_SDPA_PACKED_SEGMENTS": "0", "UNSLOTH_HF_PACKED_VARLEN": "0",
    },
}  # fmt: skip
TRANSFORMERS = "transformers"
WINDOW = 16
VOCABULARY = 1200
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {}, "qwen2": {}, "qwen3": {},
    "gemma3_text": {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"] * 2},
    "mistral": {"sliding_window": WINDOW},
}  # fmt: skip
# Of each row the lengths of its examples: unequal, all equal, longer than the window and the shortest that can be.
LAYOUTS: dict[str, list[list[int]]] = {
    "unequal": [[24, 12], [9]],
    "equal": [[20, 20], [20, 20]],
    "long": [[300, 40, 2, 150], [5, 260]],
}
GPU_LAYOUTS = {"very long": [[1900, 37, 1700]]}
# Relative; bf16 rounds to 1/256, and the sums of kernels of other shapes go apart by a few of those.
LIMITS = {"float32": 1e-4, "bfloat16": 5e-2}
CPU_LIMIT = 1e-5
# Of an example's gradient by exchanging its neighbours, on kernels of the same shapes: this, or three times what a
# repetition changes where kernels add up in no fixed order.
EXCHANGE, REPETITIONS = 1e-3, 3
# The control's gradient must differ by this, and by this many times what packing does.
CONTROL, CONTROL_RATIO = 0.1, 5
KERNELS = (
    "_torch_varlen_packed", "_sdpa_packed_segments", "build_sdpa_packed_attention_mask", "flash_attn_varlen_func",
    "xformers_attention",
)  # fmt: skip
FAILURES = (RuntimeError, ValueError, TypeError, ImportError, NotImplementedError, AttributeError, LookupError)
Rows = list[list[list[int]]]


def write_model(folder: Path, architecture: str) -> None:
    """A random model whose attention is sharp: at the usual scale of 0.02 it would be almost uniform."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from tunewright.pipeline import toy
    from tunewright.pipeline.settings import Home

    config = AutoConfig.for_model(
        architecture, vocab_size=VOCABULARY, hidden_size=256, intermediate_size=512, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, head_dim=64, initializer_range=0.1, max_position_embeddings=4096,
        **ARCHITECTURES[architecture],
    )  # fmt: skip
    torch.manual_seed(7)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer = toy.prepare(Home.open(folder.parent / "home"))
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / name).write_bytes((tokenizer / name).read_bytes())


def load(folder: Path, dtype: str, attention: str | None) -> tuple[Any, Any]:
    """A model with a LoRA adapter whose B is not zero, by Unsloth or, where `attention` is named, by transformers."""
    import torch

    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    if attention is None:
        from tunewright.pipeline.backend import FastLanguageModel

        model, tokenizer = FastLanguageModel.from_pretrained(
            str(folder), max_seq_length=4096, load_in_4bit=False, dtype=getattr(torch, dtype)
        )
        model = FastLanguageModel.get_peft_model(
            model, r=8, lora_alpha=16, lora_dropout=0, target_modules=targets, use_gradient_checkpointing=False
        )
    else:
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM, AutoTokenizer

        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, dtype), attn_implementation=attention
        ).to("cuda" if torch.cuda.is_available() else "cpu")
        model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=targets, task_type="CAUSAL_LM"))
        tokenizer = AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(8)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter.data, std=0.05)
    return model, tokenizer


def trainer_of(model: Any, tokenizer: Any, dtype: str, output: Path) -> Any:
    from datasets import Dataset
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling, SFTTrainer

    on_cpu = next(model.parameters()).device.type == "cpu"
    ids = list(range(5, VOCABULARY))
    rows = Dataset.from_list([{"input_ids": ids, "labels": ids, "seq_lengths": [len(ids)]}])
    config = SFTConfig(
        output_dir=str(output), dataset_kwargs={"skip_prepare_dataset": True}, max_length=4096, packing=not on_cpu,
        gradient_checkpointing=False, bf16=dtype == "bfloat16", fp16=False, report_to="none", disable_tqdm=True,
    )  # fmt: skip
    # Unsloth turns packing off on a CPU; TRL's collator is given what it would be given with it.
    collator = DataCollatorForLanguageModeling(tokenizer.pad_token_id, padding_free=True) if on_cpu else None
    return SFTTrainer(
        model=model, processing_class=tokenizer, train_dataset=rows, args=config, data_collator=collator
    )  # fmt: skip


def draw(layout: list[list[int]], seed: int) -> Rows:
    source = random.Random(seed)
    return [[[source.randrange(5, VOCABULARY) for _ in range(n)] for n in row] for row in layout]


def collated(rows: Rows, only: int | None, apart: bool = True) -> list[dict[str, list[int]]]:
    """Packed rows with loss on every example or on `only` one. Unless `apart`, each row is declared as one example."""
    features: list[dict[str, list[int]]] = []
    number = 0
    for row in rows:
        labels: list[int] = []
        for ids in row:
            carries = only is None or number == only
            # Where examples are apart the collator has to leave out their first tokens by itself.
            labels += [ids[0] if apart else -100, *ids[1:]] if carries else [-100] * len(ids)
            number += 1
        tokens = [token for ids in row for token in ids]
        lengths = [len(ids) for ids in row] if apart else [len(tokens)]
        features.append({"input_ids": tokens, "labels": labels, "seq_lengths": lengths})
    return features


def loss_of(trainer: Any, features: list[dict[str, list[int]]], targets: int) -> Any:
    import torch

    batch = trainer._prepare_inputs(trainer.data_collator(features))
    count = torch.tensor(targets, device=batch["input_ids"].device)
    with trainer.compute_loss_context_manager():
        return trainer.compute_loss(trainer.model, batch, num_items_in_batch=count)


def gradient_of(trainer: Any) -> Any:
    import torch

    parts = [p.grad.flatten().double().cpu() for p in trainer.model.parameters() if p.grad is not None]
    trainer.model.zero_grad(set_to_none=True)
    return torch.cat(parts)


def measure(trainer: Any, layout: list[list[int]]) -> dict[str, float]:
    """Losses of the single examples and the gradient of all, packed and declared as one, against each example alone."""
    rows = draw(layout, 9)
    examples = [ids for row in rows for ids in row]
    counts = [len(ids) - 1 for ids in examples]
    total = sum(counts)
    alone = [float(loss_of(trainer, collated([[ids]], 0), n)) for ids, n in zip(examples, counts, strict=True)]
    for ids, n in zip(examples, counts, strict=True):
        (loss_of(trainer, collated([[ids]], None), n) * (n / total)).backward()
    gradient = gradient_of(trainer)
    result: dict[str, float] = {}
    for prefix, apart in (("", True), ("control_", False)):
        losses = [float(loss_of(trainer, collated(rows, i, apart), n)) for i, n in enumerate(counts)]
        result[f"{prefix}loss"] = max(abs(a - b) / abs(a) for a, b in zip(alone, losses, strict=True))
        loss_of(trainer, collated(rows, None, apart), total).backward()
        result[f"{prefix}gradient"] = float((gradient_of(trainer) - gradient).norm() / gradient.norm())
    result |= exchanged(trainer, layout)
    return {name: float(f"{value:.3g}") for name, value in result.items()}


def exchanged(trainer: Any, layout: list[list[int]]) -> dict[str, float]:
    """What changes in the gradient of the first row's last example with other neighbours, and with the same again."""
    rows, others = draw(layout, 9), draw(layout, 10)
    others[0][-1] = rows[0][-1]
    gradients: list[Any] = []
    for packed in (rows, rows, others):
        loss_of(trainer, collated(packed, len(rows[0]) - 1), len(rows[0][-1]) - 1).backward()
        gradients.append(gradient_of(trainer))
    first, again, other = gradients
    return {
        "exchange": float((other - first).norm() / first.norm()),
        "repeated": float((again - first).norm() / first.norm()),
    }


def count_kernels() -> "collections.Counter[str]":
    """Counts from now on what Unsloth's dispatch calls; empty under its CPU backend, which has no kernels."""
    import torch

    ran: collections.Counter[str] = collections.Counter()
    if not torch.cuda.is_available():
        return ran
    from unsloth.utils import attention_dispatch

    def counting(name: str, kernel: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(kernel)
        def counted(*arguments: Any, **named: Any) -> Any:
            ran[name] += 1
            return kernel(*arguments, **named)

        return counted

    for name in KERNELS:
        kernel = getattr(attention_dispatch, name, None)
        if kernel is not None:
            setattr(attention_dispatch, name, counting(name, kernel))
    return ran


def attentions(dtype: str) -> list[str]:
    import torch
    from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available

    found = ["sdpa", "eager"]
    if torch.cuda.is_available():
        # It has no backward pass on a CPU.
        found.append("flex_attention")
    if dtype == "bfloat16" and torch.cuda.is_available():
        found += ["flash_attention_2"] * is_flash_attn_2_available()
        found += ["flash_attention_3"] * is_flash_attn_3_available()
    return found


def measured(backend: str, folder: Path, architectures: list[str]) -> Iterator[dict[str, Any]]:
    """Every line of one process. What a backend refuses to do is a line with its `error`."""
    # First, as in the jobs.
    from tunewright.pipeline.backend import on_gpu

    import torch

    from tunewright.pipeline.training import attention as one_kernel
    from tunewright.pipeline.training.packing import keeps_examples_apart

    if backend == AS_IN_JOBS:
        one_kernel.use_one_kernel_for_packed_rows()
    torch.set_float32_matmul_precision("highest")
    ran = count_kernels()
    for architecture in architectures:
        write_model(folder / architecture, architecture)
        for dtype in ("float32", "bfloat16") if on_gpu() else ("float32",):
            limit = LIMITS[dtype] if on_gpu() else CPU_LIMIT
            for attention in attentions(dtype) if backend == TRANSFORMERS else [None]:
                about = {"backend": f"{backend} {attention}" if attention else backend, "model": architecture}
                about["dtype"] = dtype
                try:
                    trainer = trainer_of(*load(folder / architecture, dtype, attention), dtype, folder / "output")
                    proof = keeps_examples_apart(trainer)
                    getattr(trainer.model, "for_training", trainer.model.train)()
                    for name, layout in (LAYOUTS | GPU_LAYOUTS if on_gpu() else LAYOUTS).items():
                        ran.clear()
                        numbers = measure(trainer, layout)
                        yield about | {"layout": name, **numbers, "ran": dict(ran), "ok": is_apart(numbers, limit)}
                except FAILURES as error:
                    yield about | {"error": f"{type(error).__name__}: {str(error)[:300]}"}
                else:
                    yield about | {"proof": vars(proof), "ok": proof.apart, "reason": proof.reason}


def is_apart(numbers: dict[str, float], limit: float) -> bool:
    """Whether packing changed no example by more than `limit`, by a measure that would have shown a leak."""
    # Every number in a comparison of its own: NaN must fail.
    still = numbers["exchange"] <= max(EXCHANGE, REPETITIONS * numbers["repeated"])
    same = numbers["loss"] <= limit and numbers["gradient"] <= limit
    return still and same and numbers["control_gradient"] >= max(CONTROL, CONTROL_RATIO * numbers["gradient"])


def report(lines: list[dict[str, Any]]) -> bool:
    """Prints the table, the worst layout of each; returns whether all were apart. A refusal is no failure."""
    print("\n| backend | model | precision | loss | gradient | exchange | control | apart |\n" + "|---" * 8 + "|")
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = collections.defaultdict(list)
    for line in lines:
        groups[line["backend"], line["model"], line["dtype"]].append(line)
    for about, group in groups.items():
        layouts = [line for line in group if "layout" in line]
        errors = [line["error"] for line in group if "error" in line]
        if errors or not layouts:
            print(f"| {' | '.join(about)} | | | | | {errors[0] if errors else 'nothing measured'} |")
            continue
        worst = [max(line[name] for line in layouts) for name in ("loss", "gradient", "exchange")]
        numbers = " | ".join(f"{value:.2g}" for value in (*worst, min(line["control_gradient"] for line in layouts)))
        print(f"| {' | '.join(about)} | {numbers} | {'yes' if all(line['ok'] for line in group) else 'NO'} |")
    return any("layout" in line for line in lines) and all(line.get("ok", True) for line in lines)


def main() -> int:
    backends = [*UNSLOTH, TRANSFORMERS]
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--backends", nargs="+", choices=backends, default=backends)
    parser.add_argument("--architectures", nargs="+", choices=list(ARCHITECTURES), default=list(ARCHITECTURES))
    parser.add_argument("--here", action="store_true", help="the first backend alone, in this process, without a table")
    arguments = parser.parse_args()
    if arguments.here:
        with tempfile.TemporaryDirectory(prefix="tunewright-benchmark-") as scratch:
            for line in measured(arguments.backends[0], Path(scratch), arguments.architectures):
                print(json.dumps(line), flush=True)
        return 0
    lines: list[dict[str, Any]] = []
    for backend in arguments.backends:
        command = [sys.executable, __file__, "--here", "--backends", backend, "--architectures"]
        process = subprocess.Popen(
            command + arguments.architectures, stdout=subprocess.PIPE, encoding="utf-8",
            # TF32 would be the larger part of what is measured in float32.
            env=os.environ | {"NVIDIA_TF32_OVERRIDE": "0"} | UNSLOTH.get(backend, {}),
        )  # fmt: skip
        for text in process.stdout or ():
            # Unsloth's banners are on the same stream.
            if text.startswith('{"backend"'):
                print(text, end="", flush=True)
                lines.append(json.loads(text))
        if process.wait():
            lines.append({"backend": backend, "model": "", "dtype": "", "ok": False, "error": "its process failed"})
    return 0 if report(lines) else 1


if __name__ == "__main__":
    sys.exit(main())
