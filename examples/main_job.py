"""The main job on data of your own, step by step, as a script to read: `python examples/main_job.py FILE [MODEL]`.

Prepares the file, plans, fine-tunes, chats, validates, exports to GGUF, and prints what each step answered. Nothing is
published.
"""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from tunewright.examples.session import call, connect, follow


def show(title: str, answer: dict[str, Any], *keys: str) -> None:
    print(f"\n{title}\n  " + json.dumps({key: answer[key] for key in keys}, ensure_ascii=False))


async def main(source: str, model: str, max_steps: int = 60) -> None:
    # A server reads only below its working folder and what it is told.
    async with connect(None, "--allow-dir", str(Path(source).absolute().parent)) as client:
        dataset = await call(client, "prepare_dataset", source=source, model=model)
        show("prepare_dataset", dataset, "dataset_id", "format", "train_rows", "eval_rows", "dropped", "warnings")

        plan = await call(client, "plan_finetune", dataset_id=dataset["dataset_id"], model=model)
        show("plan_finetune", plan, "peak_gib", "time_s", "reasons", "warnings")

        planned = plan["next_steps"][0]["arguments"] | {"max_steps": max_steps}
        started = await call(client, "start_finetune", **planned)
        show("start_finetune", started, "job_id", "arguments")
        training = await follow(
            client, started["job_id"], lambda s: print(f"  {s['state']} {s['done']:g}/{s['total']:g}")
        )
        show("get_status", training, "result", "loss_curve")

        adapter_id = training["result"]["adapter_id"]
        answer = await call(
            client, "chat_with_adapter", adapter_id=adapter_id, prompt="Who are you?", compare_with_base=True
        )
        show("chat_with_adapter", answer, "tuned", "base")

        validating = await call(client, "validate_adapter", adapter_id=adapter_id)
        show("validate_adapter", (await follow(client, validating["job_id"]))["result"], "sentence", "metrics")

        exporting = await call(client, "merge_and_export", adapter_id=adapter_id, outputs=["lora", "gguf:q8_0"])
        export = await follow(client, exporting["job_id"])
        show("merge_and_export", export["result"], "export_id", "files", "parity")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    asyncio.run(main(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "toy"))
