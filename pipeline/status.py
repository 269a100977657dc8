"""A job as a person or an agent wants to see it: where it is, how it goes, what it made, what went wrong. Light."""

from typing import Any

from tunewright.pipeline import jobs
from tunewright.pipeline.store import Row
from tunewright.pipeline.workspace import Workspace

CURVE_POINTS = 20


def curve(rows: list[Row], points: int = CURVE_POINTS) -> list[tuple[int, float]]:
    """(step, loss) of at most `points` metrics, evenly taken, first and last always among them."""
    if len(rows) > points:
        rows = [rows[round(i * (len(rows) - 1) / (points - 1))] for i in range(points)]
    return [(row["step"], round(row["numbers"]["loss"], 4)) for row in rows if "loss" in row["numbers"]]


def describe(workspace: Workspace, row: Row, *, events: int) -> dict[str, Any]:
    """One job with its curves and last `events`; numbers that it does not have are None."""
    train, evaluation = (workspace.store.metrics(row["id"], split) for split in ("train", "eval"))
    return {
        **summarise(row),
        "elapsed_s": elapsed_s(row),
        "loss": train[-1]["numbers"].get("loss") if train else None,
        "eval_loss": evaluation[-1]["numbers"].get("loss") if evaluation else None,
        "tokens_per_s": train[-1]["numbers"].get("tokens_per_s") if train else None,
        "peak_gib": train[-1]["numbers"].get("peak_gib") if train else None,
        "loss_curve": curve(train),
        "eval_curve": curve(evaluation),
        "result": row["result"],
        "error": row["error"],
        "events": [f"{e['level']} {e['code']}: {e['message']}" for e in workspace.store.events(row["id"], events)],
        "log": str(jobs.log_path(workspace, row["id"])),
    }


def summarise(row: Row) -> dict[str, Any]:
    """One line of the overview."""
    progress = row["progress"] or {}
    running = row["state"] == jobs.State.RUNNING
    return {
        "job_id": row["id"],
        "kind": row["kind"],
        "state": row["state"],
        "phase": progress.get("phase") if running else None,
        "done": progress.get("done", 0),
        "total": progress.get("total", 0),
        "eta_s": progress.get("eta_s") if running else None,
    }


def elapsed_s(row: Row) -> float | None:
    """Seconds from the (last) start to the end or, while running, to the last word of the worker."""
    end = row["ended_at"] or (row["progress"] or {}).get("at")
    return round(end - row["started_at"], 1) if row["started_at"] and end else None
