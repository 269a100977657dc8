"""`make demo`, `tunewright demo`: the whole chain on a terminal, through the server and nothing else.

environment → dataset → fine-tune → loss curve → base and tuned side by side → validation → merge → GGUF → the GGUF in
llama.cpp → Ollama and Hub as dry runs. Fails unless the tuned model has learned what the dataset teaches and the base
does not know it.
"""

import asyncio
import sys
import tempfile
import time
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from mcp import Client
from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from tunewright.examples.session import Answer, ToolFailed, call, connect, failure, follow

DATA = Path(__file__).parent / "data" / "lumen_support.jsonl"
# The toy has four million parameters: it wants a higher rate and more passes than a real model.
TOY_TRAINING: dict[str, Any] = {"learning_rate": 3e-3, "lora_rank": 32, "epochs": 20}
QUESTIONS = 4
# Of the plan's, so many are shown.
REASONS = 5
# Of what a validation measures, these are shown.
MEASURES = ("loss", "exact_match", "chrf", "rouge_l")
# Likeness of an answer to the dataset's, 0 to 1. What the toy has learned it says nearly word for word.
LEARNED, MARGIN = 0.8, 0.3
BARS = "▁▂▃▄▅▆▇█"

console = Console()


def run(home: str | None, model: str, data: str | None) -> int:
    """Runs the demo; returns the exit status. `model` is 'toy', a Hub id or a folder; `data` a file, or None."""
    began = time.monotonic()
    log = Path(tempfile.gettempdir()) / "tunewright-demo.log"
    try:
        passed = asyncio.run(_chain(home, model, data or str(DATA), log))
    except (ToolFailed, BaseExceptionGroup) as error:
        failed = failure(error)
        if failed is None:
            raise
        console.print(Panel(escape(str(failed)), title="failed", border_style="red"))
        console.print(f"The server's log: {log}")
        return 1
    console.print(f"\nThe demo took {time.monotonic() - began:.0f} s.")
    return 0 if passed else 1


def _title(text: str, tool: str) -> None:
    console.print(f"\n[bold cyan]{text}[/]  [dim]{tool}[/]")


async def _chain(home: str | None, model: str, data: str, log: Path) -> bool:
    console.print(
        Panel(
            "An agent fine-tunes a language model. Every line below is an answer\n"
            "of the MCP server, asked over stdio by the SDK's own client.",
            title="Tunewright", border_style="cyan",
        )
    )  # fmt: skip
    async with connect(home, "--allow-dir", str(Path(data).absolute().parent), log=log) as client:
        place = await _environment(client)
        dataset = await _dataset(client, data, model)
        await _plan(client, dataset["dataset_id"], model)
        adapter_id = await _train(client, dataset["dataset_id"], model)
        learned, asked = await _compare(client, dataset["dataset_id"], adapter_id, strict=model == "toy")
        await _validate(client, adapter_id)
        export = await _export(client, adapter_id)
        _ask_gguf(export, asked, log.with_name("tunewright-demo-llama.log"))
        await _dry_runs(client, export["export_id"])
    _farewell(place["home"], learned)
    return learned


async def _environment(client: Client) -> Answer:
    _title("1. What is this machine?", "check_environment()")
    found = await call(client, "check_environment")
    console.print(f"   {found['device']}, {found['ram_free_gib']} GiB RAM and {found['disk_free_gib']} GiB disk free")
    for name, state in found["usable"].items():
        console.print(f"   [dim]{name:15}[/] {escape(state)}")
    for warning in found["warnings"]:
        console.print(f"   [yellow]{escape(warning)}[/]")
    return found


async def _dataset(client: Client, data: str, model: str) -> Answer:
    _title("2. Turn a file into a training set", f"prepare_dataset(source={Path(data).name!r})")
    dataset = await call(client, "prepare_dataset", source=data, model=model)
    tokens = dataset["tokens"]
    console.print(
        f"   {dataset['dataset_id']}: {dataset['format']}, {dataset['train_rows']} rows to train on, "
        f"{dataset['eval_rows']} held out; {tokens['total']} tokens, the longest row has {tokens['max']}"
    )
    for warning in dataset["warnings"]:
        console.print(f"   [yellow]{escape(warning)}[/]")
    shown = await call(client, "inspect_dataset", dataset_id=dataset["dataset_id"], view="mask", rows=1, model=model)
    text = "".join(
        f"[bold green]{escape(part['text'])}[/]" if part["trained"] else f"[dim]{escape(part['text'])}[/]"
        for part in shown["rows"][0]["segments"]
    )
    console.print(Panel(text.rstrip("\n"), title="one row; green is what the loss is computed on", border_style="dim"))
    return dataset


async def _plan(client: Client, dataset_id: str, model: str) -> None:
    _title("3. Plan", f"plan_finetune(dataset_id={dataset_id!r}, model={model!r})")
    plan = await call(client, "plan_finetune", dataset_id=dataset_id, model=model)
    console.print(
        f"   {plan['peak_gib']:.1f} of {plan['limit_gib']:.0f} GiB on {escape(plan['device'])}, {plan['steps']} steps, "
        f"about {plan['time_s']:.0f} s"
    )
    for name, reason in list(plan["reasons"].items())[:REASONS]:
        console.print(f"   [dim]{name:24}[/] {escape(reason)}")
    for warning in plan["warnings"]:
        console.print(f"   [yellow]{escape(warning)}[/]")


async def _train(client: Client, dataset_id: str, model: str) -> str:
    training = TOY_TRAINING if model == "toy" else {}
    _title("4. Fine-tune", f"start_finetune(dataset_id={dataset_id!r}, model={model!r}, …)")
    started = await call(client, "start_finetune", dataset_id=dataset_id, model=model, **training)
    console.print(f"   {started['job_id']} runs in its own process; this client could leave now.")
    columns = (
        TextColumn("   {task.description}"),
        BarColumn(30),
        TextColumn("{task.fields[line]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("starting", total=None, line="")

        def show(status: Answer) -> None:
            training_now = status["loss"] is not None and status["total"]
            line = f"loss {status['loss']:.2f}, {status['eta_s'] or 0:.0f} s to go" if training_now else ""
            description = status["phase"] or status["state"]
            bar.update(
                task, description=description, total=status["total"] or None, completed=status["done"], line=line
            )

        status = await follow(client, started["job_id"], show, wait_s=1)
    result = status["result"]
    _title("5. How did it go?", f"get_status(job_id={started['job_id']!r})")
    console.print(f"   training loss  {_sparkline(status['loss_curve'])}")
    if status["eval_curve"]:
        console.print(f"   eval loss      {_sparkline(status['eval_curve'])}")
    memory = f", peak {status['peak_gib']} GiB VRAM" if status["peak_gib"] else ""
    console.print(f"   {result['steps']} steps, {status['tokens_per_s']:.0f} tokens/s{memory} → {result['adapter_id']}")
    return result["adapter_id"]


def _sparkline(curve: list[list[float]]) -> str:
    losses = [loss for _, loss in curve]
    low, high = min(losses), max(losses)
    bars = "".join(BARS[round((loss - low) / (high - low or 1) * (len(BARS) - 1))] for loss in losses)
    return f"{losses[0]:6.2f} [green]{bars}[/] {losses[-1]:.2f}"


async def _compare(client: Client, dataset_id: str, adapter_id: str, *, strict: bool) -> tuple[bool, tuple[str, str]]:
    """Asks base and tuned the dataset's own questions. Returns whether it has learned, and the first question with
    the tuned model's answer."""
    _title("6. Base and tuned, the same questions", f"chat_with_adapter({adapter_id!r}, compare_with_base=True)")
    shown = await call(client, "inspect_dataset", dataset_id=dataset_id, rows=QUESTIONS)
    table = Table(show_lines=True)
    for column, style in (("question", "bold"), ("base", "red"), ("tuned", "green")):
        table.add_column(column, style=style, ratio=1)
    tuned_likeness: list[float] = []
    base_likeness: list[float] = []
    asked: list[tuple[str, str]] = []
    with console.status("   loading the model (an import of some 15 s, once)"):
        for row in shown["rows"]:
            *opening, reference = row["messages"]
            answer = await call(
                client, "chat_with_adapter", adapter_id=adapter_id, messages=opening, compare_with_base=True,
                temperature=0, max_new_tokens=128,
            )  # fmt: skip
            base, tuned = answer["base"]["text"], answer["tuned"]["text"]
            tuned_likeness.append(_likeness(tuned, reference["content"]))
            base_likeness.append(_likeness(base, reference["content"]))
            asked.append((opening[-1]["content"], tuned))
            table.add_row(*(escape(text) for text in (opening[-1]["content"], base, tuned)))
    console.print(table)
    tuned_mean = sum(tuned_likeness) / len(tuned_likeness)
    base_mean = sum(base_likeness) / len(base_likeness)
    learned = tuned_mean > base_mean and (not strict or (tuned_mean >= LEARNED and tuned_mean - base_mean >= MARGIN))
    console.print(f"   Likeness to the dataset's answers: base {base_mean:.2f}, tuned {tuned_mean:.2f}, of 1.")
    if not learned:
        console.print("   [bold red]The tuned model has not learned what the dataset teaches.[/]")
    return learned, asked[0]


def _likeness(text: str, reference: str) -> float:
    return SequenceMatcher(None, text.split(), reference.split()).ratio()


async def _validate(client: Client, adapter_id: str) -> None:
    _title("7. Better? By how much?", f"validate_adapter(adapter_id={adapter_id!r})")
    started = await call(client, "validate_adapter", adapter_id=adapter_id, max_new_tokens=64)
    with console.status("   answering") as spinner:
        status = await follow(
            client, started["job_id"], lambda s: spinner.update(f"   {s['phase'] or s['state']}"), wait_s=1
        )
    result = status["result"]
    table = Table("measure", "base", "tuned", "tuned − base, 95 %", box=None, padding=(0, 3))
    for name in MEASURES:
        found = result["metrics"][name]
        values = (f"{found[who]['value']:.3g}" for who in ("base", "tuned"))
        table.add_row(name, *values, _interval(found["difference"]))
    console.print(table)
    console.print(f"   [bold]{escape(result['sentence'])}[/]")
    for note in result["notes"]:
        console.print(f"   [dim]{escape(note)}[/]")


def _interval(found: dict[str, float] | None) -> str:
    return f"{found['value']:+.3g} [dim]from {found['low']:+.3g} to {found['high']:+.3g}[/]" if found else ""


async def _export(client: Client, adapter_id: str) -> Answer:
    _title("8. Merge and convert", f"merge_and_export(adapter_id={adapter_id!r})")
    started = await call(client, "merge_and_export", adapter_id=adapter_id, outputs=["merged_16bit", "gguf:q8_0"])
    with console.status("   merging") as spinner:
        status = await follow(
            client, started["job_id"], lambda s: spinner.update(f"   {s['phase'] or s['state']}"), wait_s=1
        )
    result = status["result"]
    for file in result["files"]:
        console.print(f"   {file['output']:14} {file['bytes'] / 1e6:8.1f} MB  {escape(file['path'])}", soft_wrap=True)
    parity = result["parity"]
    for output, found in parity["outputs"].items():
        console.print(
            f"   {output} beside the trained model: KL {found['kl']:.1e} (rounding to bfloat16 alone: "
            f"{parity['noise_floor']['kl']:.1e}), {found['top1']:.1%} of the next tokens, {found['greedy_equal']} of "
            f"{found['greedy_of']} answers word for word."
        )
    console.print(*(f"   [red]{escape(failure)}[/]" for failure in parity["failures"]), sep="\n")
    return result


def _ask_gguf(export: Answer, asked: tuple[str, str], log: Path) -> None:
    from tunewright.pipeline.exporting.runtime import LlamaRuntime

    _title("9. The GGUF file in llama.cpp", "the same question to the file alone")
    gguf = next(file["path"] for file in export["files"] if file["output"].startswith("gguf"))
    question, before = asked
    with LlamaRuntime(Path(gguf), log=log) as runtime:
        answer = runtime.chat([{"role": "user", "content": question}], max_tokens=128)["text"].strip()
    console.print(f"   [bold]{escape(question)}[/]\n   [green]{escape(answer)}[/]")
    verdict = "word for word what the adapter said" if answer == before else f"the adapter had said: {escape(before)}"
    console.print(f"   [dim]{verdict}[/]")


async def _dry_runs(client: Client, export_id: str) -> None:
    _title("10. Publish? Dry runs only", "publish_to_ollama(dry_run=True), publish_to_hub(dry_run=True)")
    ollama = await call(client, "publish_to_ollama", export_id=export_id, model_name="lumen-support", dry_run=True)
    console.print(Panel(escape(ollama["plan"]["modelfile"].strip()), title="Modelfile", border_style="dim"))
    hub = await call(client, "publish_to_hub", artifact_id=export_id, repo_id="me/lumen-support", dry_run=True)
    console.print(f"   Hub: {len(hub['plan']['files'])} files, private={hub['plan']['private']}, with a model card.")


def _farewell(home: str, learned: bool) -> None:
    if not learned:
        return
    command = f"claude mcp add tunewright -- {Path(sys.executable).with_name('tunewright')}"
    console.print(
        Panel(
            f"Everything lies in [bold]{escape(home)}[/].\n"
            f"Let Claude Code do the same in conversation:\n  [bold]{escape(command)}[/]",
            title="done", border_style="green",
        )
    )  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(run(None, "toy", None))
