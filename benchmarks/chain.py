"""The chain on this machine's device, measured: `python benchmarks/chain.py MODEL DATA [--max-steps 60] [--home DIR]`.

Drives the server over stdio: prepare, fine-tune (QLoRA and 16-bit LoRA where there is a GPU, LoRA on a CPU), chat,
export. Prints one JSON line per stage: tokens per second of real tokens, peak memory in GiB, wall seconds.
"""

import argparse
import asyncio
import json
import time
from typing import Any

from tunewright.examples.session import call, connect, follow


def report(stage: str, **numbers: Any) -> None:
    print(json.dumps({"stage": stage, **numbers}), flush=True)


async def main(home: str | None, model: str, data: str, max_steps: int) -> None:
    async with connect(home) as client:
        place = await call(client, "check_environment")
        report("environment", device=place["device"], versions=place["versions"])
        began = time.monotonic()
        dataset = await call(client, "prepare_dataset", source=data, model=model)
        report(
            "prepare", wall_s=round(time.monotonic() - began, 2), rows=dataset["train_rows"], tokens=dataset["tokens"]
        )
        adapters: list[str] = []
        for load_in_4bit in (True, False) if place["gpus"] else (False,):
            adapters.append(await train(client, dataset["dataset_id"], model, max_steps, load_in_4bit))
        for adapter_id in adapters:
            await talk(client, adapter_id)
        began = time.monotonic()
        started = await call(client, "merge_and_export", adapter_id=adapters[0], outputs=["merged_16bit", "gguf:q8_0"])
        export = (await follow(client, started["job_id"]))["result"]
        sizes = {file["output"]: file["bytes"] for file in export["files"]}
        report("export", wall_s=round(time.monotonic() - began, 1), bytes=sizes, parity=export["parity"]["outputs"])


async def train(client: Any, dataset_id: str, model: str, max_steps: int, load_in_4bit: bool) -> str:
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
        events=status["events"],
        **status["result"],
    )
    return status["result"]["adapter_id"]


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
    given = parser.parse_args()
    asyncio.run(main(given.home, given.model, given.data, given.max_steps))
