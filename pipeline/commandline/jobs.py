"""`tunewright status`, `logs`, `cancel` and `resume`: jobs as a person at a terminal sees and steers them.

Looking takes up jobs whose worker was killed, as a server's looking does. Piped, a watched job is one line for each
change, and a log is whole lines.
"""

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunewright.pipeline import jobs as pipeline_jobs
from tunewright.pipeline import status as pipeline_status
from tunewright.pipeline.commandline.console import console, duration, next_command, open_workspace, printable
from tunewright.pipeline.errors import NoSpace
from tunewright.pipeline.jobs import ACTIVE, State
from tunewright.pipeline.store import Row
from tunewright.pipeline.workspace import Workspace

if TYPE_CHECKING:
    from rich.console import RenderableType

POLL_S = 1.0
LOG_POLL_S = 0.3
EVENTS = 8
COLOURS = {
    State.QUEUED: "cyan", State.RUNNING: "blue", State.SUCCEEDED: "green", State.FAILED: "red",
    State.CANCELLED: "yellow", State.INTERRUPTED: "magenta",
}  # fmt: skip


def status(home: str | None, job_id: str | None, *, watch: bool) -> int:
    """Shows the newest jobs, or one; with `watch` until the job, or every job, has ended.

    Returns the exit status: 1 where a watched job ended otherwise than it should.
    """
    workspace = open_workspace(home)
    if not watch:
        _look_after(workspace)
        console().print(_view(workspace, job_id))
        return 0
    if sys.stdout.isatty():
        _watch_live(workspace, job_id)
    else:
        for line in _changes(workspace, job_id):
            sys.stdout.write(line + "\n")
            sys.stdout.flush()
    return 0 if job_id is None or workspace.store.job(job_id)["state"] == State.SUCCEEDED else 1


def _look_after(workspace: Workspace) -> None:
    try:
        pipeline_jobs.reconcile(workspace)
    except NoSpace as error:
        # What is stored is shown all the same.
        sys.stderr.write(f"A job's worker has ended. {error}\n")


def _rows(workspace: Workspace, job_id: str | None) -> list[Row]:
    return [workspace.store.job(job_id)] if job_id else pipeline_jobs.newest(workspace)


def _wait(workspace: Workspace, job_id: str | None) -> bool:
    """Waits a moment; returns whether something still goes on."""
    _look_after(workspace)
    if not any(row["state"] in ACTIVE for row in _rows(workspace, job_id)):
        return False
    time.sleep(POLL_S)
    return True


def _watch_live(workspace: Workspace, job_id: str | None) -> None:
    from rich.live import Live

    with Live(_view(workspace, job_id), console=console(), auto_refresh=False) as live:
        while _wait(workspace, job_id):
            live.update(_view(workspace, job_id), refresh=True)
        live.update(_view(workspace, job_id), refresh=True)


def _changes(workspace: Workspace, job_id: str | None) -> Iterator[str]:
    """A line for each job that has changed, until none goes on."""
    told: dict[str, str] = {}
    goes_on = True
    while goes_on:
        goes_on = _wait(workspace, job_id)
        for row in _rows(workspace, job_id):
            line = f"{row['id']} {row['kind']} {row['state']} {_progress(pipeline_status.summarise(row))}".rstrip()
            if told.get(row["id"]) != line:
                told[row["id"]] = line
                yield printable(f"{time.strftime('%H:%M:%S')} {line}")


def _view(workspace: Workspace, job_id: str | None) -> "RenderableType":
    if job_id:
        return _one(workspace, workspace.store.job(job_id))
    from rich.table import Table
    from rich.text import Text

    rows = pipeline_jobs.newest(workspace)
    if not rows:
        return f"No jobs yet in {workspace.home.root}."
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("JOB", "KIND", "STATE", "PROGRESS", "BEGUN"):
        table.add_column(name, no_wrap=name in ("JOB", "STATE"))
    for row in rows:
        state = Text(row["state"], style=COLOURS[row["state"]])
        begun = f"{duration(time.time() - row['created_at'])} ago"
        table.add_row(row["id"], row["kind"], state, printable(_progress(pipeline_status.summarise(row))), begun)
    return table


def _progress(summary: dict[str, Any]) -> str:
    """`training 40/200, 5 min 03 s left`, of a running job; of another what it had done."""
    parts = [summary["phase"] or ""]
    if summary["total"]:
        parts.append(f"{summary['done']:g}/{summary['total']:g}")
    left = f", {duration(summary['eta_s'])} left" if summary["eta_s"] is not None else ""
    return " ".join(filter(None, parts)) + left


def _one(workspace: Workspace, row: Row) -> "RenderableType":
    from rich.table import Table
    from rich.text import Text

    found = pipeline_status.describe(workspace, row, events=EVENTS)
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("job", f"{row['id']} ({row['kind']})")
    table.add_row("state", Text(row["state"], style=COLOURS[row["state"]]))
    for name, value in _facts(found):
        table.add_row(name, printable(value))
    return table


def _facts(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if progress := _progress(found):
        yield "progress", progress
    if found["elapsed_s"] is not None:
        yield "took", duration(found["elapsed_s"])
    numbers = [
        f"{label} {found[name]:.4g}{unit}"
        for name, label, unit in (
            ("loss", "loss", ""), ("eval_loss", "eval loss", ""), ("tokens_per_s", "", " tokens/s"),
            ("peak_gib", "peak", " GiB"),
        )
        if found[name] is not None
    ]  # fmt: skip
    if numbers:
        yield "training", ", ".join(number.strip() for number in numbers)
    for alert in found["alerts"]:
        yield "alert", f"{alert['message']} {alert['advice']}"
    for name, value in (found["result"] or {}).items():
        if isinstance(value, str | int | float):
            yield name, str(value)
    if error := found["error"]:
        yield "error", f"{error['code']}: {error['what']} {error['allowed']}"
        if command := next_command(error["next"]):
            yield "", command
    for number, event in enumerate(found["events"]):
        yield "" if number else "events", event
    yield "log", found["log"]


def logs(home: str | None, job_id: str, *, follow: bool, tail: int | None) -> int:
    """Prints the log of a job, or its last `tail` lines, and with `follow` what comes, until the job has ended."""
    workspace = open_workspace(home)
    job_id = workspace.store.job(job_id)["id"]
    path = pipeline_jobs.log_path(workspace, job_id)

    def is_over() -> bool:
        return not follow or workspace.store.job(job_id)["state"] not in ACTIVE

    is_empty = True
    for line in _lines(path, tail, is_over):
        is_empty = False
        sys.stdout.write(printable(line) + "\n")
        if follow:
            sys.stdout.flush()
    if is_empty and tail != 0:
        sys.stderr.write(f"The log of {job_id} is empty. What became of it: tunewright status {job_id}\n")
    return 0


def _lines(path: Path, tail: int | None, is_over: Callable[[], bool]) -> Iterator[str]:
    """The lines of a file that may grow, and may not be there yet, until `is_over` and nothing more has come.

    A progress bar draws itself anew after a carriage return: each drawing is a line. Reads what there is at once.
    """
    position, rest, skipped = 0, b"", False
    while True:
        # Asked before reading: what was written until the end is read once more.
        over = is_over()
        if path.is_file():
            with path.open("rb") as file:
                file.seek(position)
                rest += file.read()
                position = file.tell()
        *lines, rest = rest.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        if over and rest:
            lines.append(rest)
        if tail is not None and not skipped:
            lines = lines[max(0, len(lines) - tail) :]
            skipped = True
        yield from (line.decode("utf-8", "replace") for line in lines)
        if over:
            return
        time.sleep(LOG_POLL_S)


def cancel(home: str | None, job_id: str, *, discard: bool) -> int:
    """Asks the job to stop; raises what `pipeline.jobs.cancel` does."""
    row = pipeline_jobs.cancel(open_workspace(home), job_id, keep_checkpoint=not discard)
    waits = row["state"] in ACTIVE
    sys.stdout.write(f"{row['id']}: {'will stop at its next safe point' if waits else row['state']}\n")
    return 0


def resume(home: str | None, job_id: str) -> int:
    """Queues the job again; raises what `pipeline.jobs.resume` does."""
    workspace = open_workspace(home)
    row = pipeline_jobs.resume(workspace, job_id)
    point = pipeline_jobs.start_point(workspace, row)
    sys.stdout.write(f"{row['id']}: {row['state']}, goes on {point}\n")
    return 0
