"""Exporting measured beside what it cannot beat: JSON lines.

    python benchmarks/export.py merge MODEL…     a random adapter merged into each, beside copying the same bytes
    python benchmarks/export.py convert MODEL    every GGUF from one conversion, beside llama.cpp's own command line

MODEL is the folder of a base model; its values do not matter. Everything is written under --folder (default: a new
temporary one), which should lie on the disk that is meant. A merge must take at most 1.5 × copying plus loading, and
2.5 × the largest shard plus 2 GiB of memory. Merging and copying take turns, both end with fsync, and no cache is
dropped: after the first turn the base is read from memory by both, if it has room there.
"""

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tunewright.pipeline import files
from tunewright.pipeline.context import JobContext
from tunewright.pipeline.exporting import gguf, pretokenizer, quantizer, toolchain, weights
from tunewright.pipeline.exporting.outputs import GGUF_TYPES
from tunewright.pipeline.workspace import Workspace

TURNS = 3
RANK = 16
NOT_LINEAR = re.compile(r"(embed_tokens|wte|wpe|lm_head|norm)[^.]*\.weight$")
MAX_TIME_FACTOR, MAX_SHARD_FACTOR, MAX_EXTRA_GIB = 1.5, 2.5, 2.0
UNKNOWN = "res = None"
READ_BYTES = 16 * 2**20
MERGE_ALONE = "merge-alone"
NAME = "benchmark"


def report(**numbers: Any) -> None:
    print(json.dumps(numbers), flush=True)


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def sync(folder: Path) -> None:
    for file in folder.glob("*.safetensors"):
        with file.open("rb") as opened:
            os.fsync(opened.fileno())


def random_adapter(base: Path, folder: Path) -> None:
    """An adapter of rank 16 on all linear layers, as peft stores it."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir()
    torch.manual_seed(0)
    tensors: dict[str, torch.Tensor] = {}
    for name, stored in weights.of_model(base).items():
        if len(stored.shape) == 2 and not NOT_LINEAR.search(name):
            module = f"base_model.model.{name.removesuffix('.weight')}"
            tensors[f"{module}.lora_A.weight"] = 0.02 * torch.randn(RANK, stored.shape[1])
            tensors[f"{module}.lora_B.weight"] = 0.02 * torch.randn(stored.shape[0], RANK)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": RANK}
    files.write_json(folder / "adapter_config.json", config | {"base_model_name_or_path": str(base)})


def copy(shards: list[Path], folder: Path) -> None:
    folder.mkdir()
    for shard in shards:
        shutil.copyfile(shard, folder / shard.name)
    sync(folder)


def read(shards: list[Path]) -> None:
    buffer = bytearray(READ_BYTES)
    for shard in shards:
        with shard.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def merge(base: Path, folder: Path) -> None:
    """Medians over the turns; the peaks are the highest."""
    random_adapter(base, folder / "adapter")
    shards = sorted({stored.file for stored in weights.of_model(base).values()})
    largest_gib = max(shard.stat().st_size for shard in shards) / 2**30
    load_s: list[float] = []
    copy_s: list[float] = []
    merges: list[dict[str, Any]] = []
    for turn in range(TURNS):
        load_s.append(seconds(lambda: read(shards)))
        copy_s.append(seconds(lambda: copy(shards, folder / "copy")))
        shutil.rmtree(folder / "copy")
        command = [sys.executable, "-P", __file__, MERGE_ALONE, str(base), "--folder", str(folder)]
        merges.append(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, encoding="utf-8").stdout))
        shutil.rmtree(folder / "merged")
        report(
            run="merge turn", model=base.name, turn=turn + 1, load_s=round(load_s[-1], 2), copy_s=round(copy_s[-1], 2),
            wall_s=round(merges[-1]["wall_s"], 2),
        )  # fmt: skip
    wall_s = statistics.median(one["wall_s"] for one in merges)
    allowed_s = MAX_TIME_FACTOR * statistics.median(copy_s) + statistics.median(load_s)
    peak_gib, bound_gib = max(one["peak_rss_gib"] for one in merges), MAX_SHARD_FACTOR * largest_gib + MAX_EXTRA_GIB
    report(
        run="merge", model=base.name, gib=round(sum(shard.stat().st_size for shard in shards) / 2**30, 2),
        largest_shard_gib=round(largest_gib, 2), device=merges[0]["device"], wall_s=round(wall_s, 2),
        copy_s=round(statistics.median(copy_s), 2), load_s=round(statistics.median(load_s), 2),
        allowed_s=round(allowed_s, 2), in_time=wall_s <= allowed_s, start_s=round(merges[0]["start_s"], 2),
        peak_rss_gib=round(peak_gib, 2), bound_gib=round(bound_gib, 2), in_bound=peak_gib <= bound_gib,
        peak_gpu_gib=round(max(one["peak_gpu_gib"] for one in merges), 2),
    )  # fmt: skip


def merge_alone(base: Path, folder: Path) -> None:
    """One merge in a process of its own, whose peak is the merge's; `start_s` is torch's import and the GPU's start."""
    began = time.perf_counter()
    import torch

    from tunewright.pipeline.exporting import merge

    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.zeros(1, device="cuda")
    start_s = time.perf_counter() - began
    workspace = Workspace.open(folder / "home")
    workspace.store.execute(
        "INSERT OR IGNORE INTO jobs(id, kind, state, needs_device, spec, created_at) "
        "VALUES ('job-merge', 'export', 'running', 0, '{}', 0)"
    )
    context = JobContext(workspace, "job-merge", {}, folder)
    target = folder / "merged"
    target.mkdir()

    def work() -> None:
        merge.merge(context, base, folder / "adapter", target)
        sync(target)

    wall_s = seconds(work)
    peak_kib = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text(encoding="utf-8"))
    report(
        wall_s=wall_s, start_s=start_s, device=torch.cuda.get_device_name() if on_gpu else "cpu",
        peak_rss_gib=int(peak_kib[1]) / 2**20 if peak_kib else None,
        peak_gpu_gib=torch.cuda.max_memory_allocated() / 2**30 if on_gpu else 0.0,
    )  # fmt: skip


def identical(one: Path, other: Path) -> bool:
    with one.open("rb") as first, other.open("rb") as second:
        while (content := first.read(READ_BYTES)) == second.read(READ_BYTES):
            if not content:
                return True
    return False


def never() -> None:
    """No cancel is asked for."""


def told(converter: Path, layout: Path, folder: Path) -> Path:
    """llama.cpp's own script in a copy that is told the pre-tokenizer, as it asks of whoever has an unknown one."""
    copied = folder / "llama.cpp"
    shutil.copytree(converter, copied, ignore=shutil.ignore_patterns("bin", "build"))
    module = copied / "conversion" / "base.py"
    named = f"res = {pretokenizer.recognise(layout)!r}"
    files.write_text(module, module.read_text(encoding="utf-8").replace(UNKNOWN, named, 1))
    return copied / "convert_hf_to_gguf.py"


def theirs(command: list[str], log: Path) -> float | None:
    """Seconds that a program of llama.cpp took, None where it failed."""
    began = time.perf_counter()
    with log.open("ab") as output:
        done = subprocess.run(command, stdout=output, stderr=output, check=False)
    return time.perf_counter() - began if done.returncode == 0 else None


def convert(model: Path, folder: Path) -> None:
    """One conversion to F16 and every other type from it, ours and theirs in turn; the two files are compared."""
    log = folder / "convert.log"
    converter = toolchain.provide(log)
    program = toolchain.provide_quantizer(log)
    layout = folder / "layout"
    layout.mkdir()
    gguf.lay_out(model, layout, enable_thinking=False)
    ours_f16, theirs_f16 = folder / "ours-f16.gguf", folder / "theirs-f16.gguf"
    ours_s = seconds(
        lambda: gguf.convert(converter, layout, ours_f16, "f16", name=NAME, log=log, check_cancelled=never)
    )
    script = [sys.executable, str(told(converter, layout, folder)), str(layout), "--model-name", NAME]
    theirs_s = theirs([*script, "--outfile", str(theirs_f16), "--outtype", "f16"], log)
    compared(model, "f16", ours_f16, theirs_f16, ours_s, theirs_s)
    all_ours_s, all_theirs_s = [ours_s], [theirs_s]
    source = theirs_f16 if theirs_s else ours_f16
    for kind in GGUF_TYPES:
        if kind in ("f16", "bf16"):
            continue
        ours, other = folder / f"ours-{kind}.gguf", folder / f"theirs-{kind}.gguf"
        began = time.perf_counter()
        quantizer.quantize(program, ours_f16, ours, kind, log=log, check_cancelled=never)
        ours_s = time.perf_counter() - began
        theirs_s = theirs([str(program), str(source), str(other), kind.upper()], log)
        compared(model, kind, ours, other, ours_s, theirs_s)
        all_ours_s.append(ours_s)
        all_theirs_s.append(theirs_s)
        ours.unlink()
        other.unlink(missing_ok=True)
    theirs_s = None if None in all_theirs_s else round(sum(one for one in all_theirs_s if one), 1)
    report(run="convert", model=model.name, type="all", ours_s=round(sum(all_ours_s), 1), theirs_s=theirs_s)


def compared(model: Path, kind: str, ours: Path, other: Path, ours_s: float, theirs_s: float | None) -> None:
    report(
        run="convert", model=model.name, type=kind, gib=round(ours.stat().st_size / 2**30, 2), ours_s=round(ours_s, 1),
        theirs_s=None if theirs_s is None else round(theirs_s, 1),
        identical=None if theirs_s is None else identical(ours, other),
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["merge", "convert", MERGE_ALONE])
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--folder", type=Path, default=None, help="where to write (default: a new temporary folder)")
    given = parser.parse_args()
    if given.what == MERGE_ALONE:
        merge_alone(given.models[0], given.folder)
        return
    measure = merge if given.what == "merge" else convert
    for model in given.models:
        with tempfile.TemporaryDirectory(prefix="tunewright-", dir=given.folder) as folder:
            measure(model.resolve(), Path(folder).resolve())


if __name__ == "__main__":
    main()
