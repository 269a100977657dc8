"""The chain on this machine's device, measured: `python benchmarks/chain.py MODEL DATA [--max-steps 60] [--home DIR]`.

Drives the server over stdio: prepare, fine-tune (QLoRA and 16-bit LoRA where there is a GPU, LoRA on a CPU),
compare the runs, chat, validate on held-out rows and by a domain pack, export and, where `--exam DIR` names a folder
in C-Eval's layout, benchmark base, tuned model and GGUF. Prints one JSON line per stage: tokens per second of real
tokens, peak memory in GiB, wall seconds from the call to the job's end, and what was planned beside them.
"""

import argparse
import asyncio
import json
import time
from typing import Any

from tunewright.examples.session import call, connect, follow


def report(stage: str, **numbers: Any) -> None:
    print(json.dumps({"stage": stage, **numbers}), flush=True)


async def main(home: str | None, model: str, data: str, max_steps: int, exam: str | None) -> None:
    async with connect(home) as client:
        place = await call(client, "check_environment")
        report("environment", device=place["device"], versions=place["versions"])
        began = time.monotonic()
        dataset = await call(client, "prepare_dataset", source=data, model=model)
        report(
            "prepare", wall_s=round(time.monotonic() - began, 2), rows=dataset["train_rows"], tokens=dataset["tokens"]
        )
        jobs: list[str] = []
        adapters: list[str] = []
        for load_in_4bit in (True, False) if place["gpus"] else (False,):
            job_id, adapter_id = await train(client, dataset["dataset_id"], model, max_steps, load_in_4bit)
            jobs.append(job_id)
            adapters.append(adapter_id)
        if len(jobs) > 1:
            report("compare", **(await call(client, "compare_runs", job_ids=jobs))["comparison"])
        for adapter_id in adapters:
            await talk(client, adapter_id)
        tuned = adapters[0]
        await measured(client, "validate", "validate_adapter", adapter_id=tuned, max_samples=32, max_new_tokens=64)
        await measured(
            client, "validate, domain pack", "validate_adapter", adapter_id=tuned, domain="medicine", max_new_tokens=64
        )
        outputs = ["merged_16bit", "gguf:f16", "gguf:q8_0", "gguf:q4_k_m"]
        export = await measured(client, "export", "merge_and_export", adapter_id=tuned, outputs=outputs)
        if exam:
            await measured(
                client, "benchmark", "benchmark_adapter", adapter_id=tuned, task_dir=exam,
                export_id=export["export_id"],
            )  # fmt: skip


async def measured(client: Any, stage: str, tool: str, **arguments: Any) -> Any:
    """The result of the job that the tool starts, reported under the stage's name."""
    began = time.monotonic()
    started = await call(client, tool, **arguments)
    result = (await follow(client, started["job_id"]))["result"]
    report(stage, wall_s=round(time.monotonic() - began, 1), **result)
    return result


async def train(client: Any, dataset_id: str, model: str, max_steps: int, load_in_4bit: bool) -> tuple[str, str]:
    began = time.monotonic()
    started = await call(
        client, "start_finetune", dataset_id=dataset_id, model=model, max_steps=max_steps, load_in_4bit=load_in_4bit
    )
    status = await follow(client, started["job_id"])
    chosen = ("batch_size", "gradient_accumulation", "max_seq_length", "packing", "lora_rank", "load_in_4bit")
    report(
        "train",
        wall_s=round(time.monotonic() - began, 1),
        arguments={key: started["arguments"][key] for key in chosen},
        plan=started["plan"],
        events=status["events"],
        **status["result"],
    )
    return started["job_id"], status["result"]["adapter_id"]


async def talk(client: Any, adapter_id: str) -> None:
    for attempt in ("first, loading", "resident"):
        began = time.monotonic()
        answer = await call(
            client, "chat_with_adapter", adapter_id=adapter_id, prompt="Tell me about yourself.",
            compare_with_base=True, max_new_tokens=128,
        )  # fmt: skip
        speed = {which: answer[which]["tokens_per_s"] for which in ("tuned", "base")}
        report("chat", call=attempt, wall_s=round(time.monotonic() - began, 1), tokens_per_s=speed)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--max-steps", type=int, default=60)
    parser.add_argument("--home")
    parser.add_argument("--exam")
    given = parser.parse_args()
    asyncio.run(main(given.home, given.model, given.data, given.max_steps, given.exam))
