"""What a million rows cost: `prepare` with everything, without near duplicates, and four times as many rows.

`python benchmarks/data.py [--rows 1000000] [--folder DIR]` writes Alpaca rows of realistic length as JSONL, prepares
them, and prints each measurement as a line of JSON, then a Markdown table; its exit status is 1 where a target is
missed. Beside it, in the same run, `datasets` does the conversion alone (`load_dataset`, `map` to messages,
`to_parquet`): no cleaning, no duplicates, no split, no report. Every measurement is a process of its own; its memory is
the sum over it and its children of what they hold alone plus their part of what they share (PSS), sampled.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil

# The targets for a million rows on two cores; other numbers of rows are measured without them.
TARGET_ROWS = 1_000_000
MAX_ALL_S, MAX_WITHOUT_NEAR_S, MAX_GIB, MAX_FOURFOLD = 240.0, 90.0, 2.0, 4.4
SAMPLE_EVERY_S = 0.25
# Of alpaca_en_demo: 790 characters a row, two thirds of them the answer; log-normal as such lengths are.
MEAN_WORDS, SIGMA = 120, 0.7
VOCABULARY = 30_000
DUPLICATES, NEAR_DUPLICATES, DIRTY = 0.02, 0.02, 0.01
DIRT = ("<p>", "&nbsp;", "<br/>", "<|im_end|>", "Ã©", " jane.roe@mailbox.org ", "{{name}}")
SEED = 7


def write_rows(path: Path, count: int) -> None:
    """`count` Alpaca rows, deterministic: words drawn by Zipf's law, with duplicates, near duplicates and debris."""
    generator = np.random.default_rng(SEED)
    letters = np.array(list("etaoinshrdlucmfwypvbgk"))
    lengths = generator.integers(2, 11, VOCABULARY)
    words = np.array(["".join(generator.choice(letters, length)) for length in lengths], dtype=object)
    before: list[dict[str, str]] = []
    with path.open("w", encoding="utf-8") as file:
        for _ in range(0, count, 10_000):
            sizes = np.clip(generator.lognormal(np.log(MEAN_WORDS) - SIGMA**2 / 2, SIGMA, 10_000), 8, 4000).astype(int)
            ids = np.minimum(generator.zipf(1.25, int(sizes.sum())) - 1, VOCABULARY - 1)
            text = np.split(words[ids], np.cumsum(sizes)[:-1])
            fates = generator.random(10_000)
            for said, fate in zip(text, fates, strict=True):
                row = _row(said.tolist(), fate, before, generator)
                before = [*before[-99:], row]
                file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _row(said: list[str], fate: float, before: list[dict[str, str]], generator: np.random.Generator) -> dict[str, str]:
    if before and fate < DUPLICATES:
        return before[int(generator.integers(len(before)))]
    if before and fate < DUPLICATES + NEAR_DUPLICATES:
        row = before[int(generator.integers(len(before)))]
        return {**row, "output": f"{row['output']} {said[0]}"}
    third = len(said) // 3
    if fate > 1 - DIRTY:
        said.insert(third + 1, DIRT[int(generator.integers(len(DIRT)))])
    half = third // 2
    with_input = fate < 0.4
    return {
        "instruction": " ".join(said[: half if with_input else third]).capitalize() + ".",
        "input": " ".join(said[half:third]) if with_input else "",
        "output": " ".join(said[third:]).capitalize() + ".",
    }


def prepare(source: Path, folder: Path, near: bool) -> dict[str, Any]:
    from tunewright.pipeline.data.prepare import prepare as make
    from tunewright.pipeline.workspace import Workspace

    workspace = Workspace.open(folder / "home")
    row = make(workspace, str(source), cleaning=None if near else {"near_duplicate": "ignore"})
    document = row["document"]
    counts = {name: entry["count"] for group in ("dropped", "mended") for name, entry in document[group].items()}
    return {"rows": document["train_rows"] + document["eval_rows"], **counts}


def convert(source: Path, folder: Path) -> dict[str, Any]:
    from datasets import load_dataset

    def to_messages(row: dict[str, str]) -> dict[str, Any]:
        question = "\n".join(part for part in (row["instruction"], row["input"]) if part)
        return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": row["output"]}]}

    rows = load_dataset("json", data_files=str(source), split="train", cache_dir=str(folder / "cache"))
    rows = rows.map(to_messages, remove_columns=rows.column_names, num_proc=2)
    rows.to_parquet(str(folder / "converted.parquet"))
    return {"rows": len(rows)}


def _measure(name: str, source: Path) -> dict[str, Any]:
    """Runs one measurement in a process of its own; wall seconds, from start to end, and the peak of its memory."""
    with tempfile.TemporaryDirectory(dir=source.parent) as folder:
        begun = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, __file__, "--child", name, "--folder", folder, "--source", str(source)],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        peak = [0]
        stop = threading.Event()
        watcher = threading.Thread(target=_watch, args=(process.pid, peak, stop))
        watcher.start()
        output = process.communicate()[0]
        stop.set()
        watcher.join()
        wall_s = time.monotonic() - begun
    if process.returncode:
        raise SystemExit(f"{name} failed")
    result = json.loads(output.splitlines()[-1])
    return {
        "run": name,
        "source_rows": None,
        "wall_s": round(wall_s, 1),
        "peak_gib": round(peak[0] / 2**30, 2),
        **result,
    }


def _watch(pid: int, peak: list[int], stop: threading.Event) -> None:
    while not stop.wait(SAMPLE_EVERY_S):
        held = 0
        try:
            family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
        except psutil.NoSuchProcess:
            return
        for process in family:
            try:
                held += process.memory_full_info().pss
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        peak[0] = max(peak[0], held)


CHILDREN: dict[str, Callable[[Path, Path], dict[str, Any]]] = {
    "everything": lambda source, folder: prepare(source, folder, near=True),
    "without near duplicates": lambda source, folder: prepare(source, folder, near=False),
    "datasets, conversion alone": convert,
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=TARGET_ROWS)
    parser.add_argument("--folder", type=Path, help="where to write (about 6 GB a million rows, for a while)")
    parser.add_argument("--no-fourfold", action="store_true", help="leave out the run with four times as many rows")
    parser.add_argument("--child", choices=CHILDREN)
    parser.add_argument("--source", type=Path)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(CHILDREN[arguments.child](arguments.source, arguments.folder)))
        return
    folder = Path(tempfile.mkdtemp(dir=arguments.folder))
    try:
        sys.exit(_run(folder, arguments.rows, fourfold=not arguments.no_fourfold))
    finally:
        shutil.rmtree(folder)


def _run(folder: Path, count: int, *, fourfold: bool) -> int:
    results: list[dict[str, Any]] = []
    source = folder / "alpaca.jsonl"
    write_rows(source, count)
    for name in CHILDREN:
        results.append(_measure(name, source) | {"source_rows": count, "source_mb": source.stat().st_size // 10**6})
        print(json.dumps(results[-1]), flush=True)
    if fourfold:
        write_rows(source, 4 * count)
        results.append(_measure("everything", source) | {"source_rows": 4 * count})
        print(json.dumps(results[-1]), flush=True)
    print("\n| run | rows | wall s | peak GiB |\n|---|---|---|---|")
    for result in results:
        print(f"| {result['run']} | {result['source_rows']:,} | {result['wall_s']} | {result['peak_gib']} |")
    everything, without, conversion = (result["wall_s"] for result in results[:3])
    print(f"\neverything / conversion alone: {everything / conversion:.2f}")
    missed = count == TARGET_ROWS and (
        everything > MAX_ALL_S or without > MAX_WITHOUT_NEAR_S or results[0]["peak_gib"] > MAX_GIB
    )
    if fourfold:
        ratio = results[3]["wall_s"] / everything
        print(f"four times the rows: {ratio:.2f} times the time")
        missed |= ratio > MAX_FOURFOLD
    return int(missed)


if __name__ == "__main__":
    main()
