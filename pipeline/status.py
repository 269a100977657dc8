"""A job as a person or an agent wants to see it: where it is, how it goes, what it made, what went wrong. Light."""

import threading
from statistics import linear_regression
from typing import Any, cast

from tunewright.pipeline import jobs
from tunewright.pipeline.store import Row, Store
from tunewright.pipeline.training import alerts
from tunewright.pipeline.training.alerts import Numbers, Seen
from tunewright.pipeline.workspace import Workspace

CURVE_POINTS = 20
# Of a long run so many steps are read for its curves: twice what the live page shows, enough for a steady slope.
EVEN_ROWS = 600
# Of every number that is told: more are tokens, not knowledge.
DIGITS = 5
SLOPE_VALUES = 20
# Events beyond this are left out, the oldest first: an answer stays under 4,000 tokens whatever happened.
EVENTS_CHARACTERS = 5000
# A curve is told by its loss, and by what the method is after where that is not the loss; of these more is better.
RISING = ("margin", "reward")
# A look holds some 1,100 steps at most; a server's threads together would grow by theirs, and keep what they grew.
# Nobody waits longer for it: the interpreter runs one of them at a time anyway.
ONE_LOOK = threading.Lock()
# What every progress holds; the rest counts something, in the words of the job's kind.
COMMON_PROGRESS = {"phase", "done", "total", "at", "eta_s"}


def rounded(value: Any) -> Any:
    """The same with every number that is no whole one to DIGITS digits, also inside lists and objects."""
    if isinstance(value, float):
        return value if value.is_integer() else float(f"{value:.{DIGITS}g}")
    if isinstance(value, dict):
        return {key: rounded(inner) for key, inner in cast("Row", value).items()}
    if isinstance(value, list | tuple):
        parts = cast("list[Any]", value)
        return type(parts)(map(rounded, parts))
    return value


def curve(rows: list[Row], points: int = CURVE_POINTS) -> list[tuple[int, float]]:
    """(step, loss) of at most `points` metrics, evenly taken, first and last always among them."""
    if len(rows) > points:
        rows = [rows[round(i * (len(rows) - 1) / (points - 1))] for i in range(points)]
    return [(row["step"], row["numbers"]["loss"]) for row in rows if "loss" in row["numbers"]]


def shape(rows: list[Row], name: str = "loss", best: tuple[int, float] | None = None) -> dict[str, float]:
    """The curve of `name` in a few numbers: first, last, best with its step, and how it changes per 100 steps over its
    last quarter (least squares; left out below SLOPE_VALUES of them, whose noise would be all of it). Empty without
    values.

    `best` is the best step and value where `rows` are not all there are.
    """
    points = [(row["step"], row["numbers"][name]) for row in rows if name in row["numbers"]]
    if not points:
        return {}
    best_step, best_value = best or (max if name in RISING else min)(points, key=lambda point: point[1])
    found = {"first": points[0][1], "last": points[-1][1], "best": best_value, "best_step": best_step}
    quarter = points[-max(SLOPE_VALUES, len(points) // 4) :]
    if len(quarter) >= SLOPE_VALUES:
        found["slope_per_100_steps"] = 100 * linear_regression(*zip(*quarter, strict=True)).slope
    return found


def describe(workspace: Workspace, row: Row, *, events: int, points: int = CURVE_POINTS) -> dict[str, Any]:
    """One job with its curves of at most `points` and last `events`; numbers that it does not have are None.

    Of the steps of a long run it holds a bounded number; SQLite looks at the others for the best.
    """
    with ONE_LOOK:
        told = {**_line(row), "elapsed_s": elapsed_s(row), **_course(workspace.store, row, points)}
    told |= {
        "result": row["result"],
        "error": row["error"],
        "events": _events(workspace, row, events),
        "log": str(jobs.log_path(workspace, row["id"])),
    }
    return rounded(told)


def _course(store: Store, row: Row, points: int) -> dict[str, Any]:
    """How a job goes, by its metrics."""
    evaluation, facts = store.metrics(row["id"], "eval"), store.metrics(row["id"], "run")
    train = store.metrics_at_ends(row["id"], "train", alerts.HEAD, alerts.LAST)
    seen = Seen.of(row["spec"], train, evaluation, facts[-1]["numbers"] if facts else {})
    last = seen.last
    told = {
        "loss": last.get("loss"),
        "eval_loss": evaluation[-1]["numbers"].get("loss") if evaluation else None,
        "tokens_per_s": last.get("tokens_per_s"),
        "peak_gib": last.get("peak_gib") or None,
        "alerts": _alerts(row, seen),
        "plan": _plan(row, seen),
        "metrics": _metrics(last, evaluation)
        or {key: value for key, value in (row["progress"] or {}).items() if key not in COMMON_PROGRESS},
        "eval_curve": curve(evaluation, points),
    }
    best: dict[str, tuple[int, float] | None] = {}
    if len(train) == alerts.HEAD + alerts.LAST:
        del seen
        train = store.metrics_evenly(row["id"], "train", EVEN_ROWS)
        names = [name for name in ("loss", *RISING) if name in last]
        best = {name: store.best_metric(row["id"], "train", name, highest=name in RISING) for name in names}
    return {**told, "shape": _shapes(train, best, evaluation), "loss_curve": curve(train, points)}


def _metrics(last: Numbers, evaluation: list[Row]) -> dict[str, float]:
    """Every number of the last step and of the last evaluation."""
    evaluated = evaluation[-1]["numbers"] if evaluation else {}
    return {**last, **{f"eval_{name}": value for name, value in evaluated.items()}}


def _alerts(row: Row, seen: Seen) -> list[dict[str, str]]:
    """Those that hold; of a job that no longer runs only what says something about its run."""
    if row["kind"] != "finetune":
        return []
    running = row["state"] == jobs.State.RUNNING
    return [vars(alert) for alert in alerts.find(seen) if running or alert.code not in alerts.MOMENTARY]


def _shapes(
    train: list[Row], best: dict[str, tuple[int, float] | None], evaluation: list[Row]
) -> dict[str, dict[str, float]]:
    shapes = {name: shape(train, name, best.get(name)) for name in ("loss", *RISING)}
    shapes["eval_loss"] = shape(evaluation)
    return {name: found for name, found in shapes.items() if found}


def _plan(row: Row, seen: Seen) -> dict[str, dict[str, float | None]]:
    """What was planned beside what came. While the job runs, its time is that until now and the time left."""
    elapsed, left_s = elapsed_s(row), (row["progress"] or {}).get("eta_s")
    running = row["state"] == jobs.State.RUNNING
    come = {
        # Of a run that is over its usual speed, not that of its last moment.
        "tokens_per_s": (row["result"] or {}).get("tokens_per_s") or seen.last.get("tokens_per_s"),
        "peak_gib": seen.last.get("peak_gib") or None,
        "time_s": elapsed + left_s if running and elapsed is not None and left_s is not None else elapsed,
        "steps": seen.facts.get("max_steps") if running else seen.train[-1]["step"] if seen.train else None,
    }
    return {name: {"planned": seen.plan[name], "actual": actual} for name, actual in come.items() if name in seen.plan}


def _events(workspace: Workspace, row: Row, limit: int) -> list[str]:
    """The newest `limit`, oldest first, within EVENTS_CHARACTERS."""
    told: list[str] = []
    for event in reversed(workspace.store.events(row["id"], limit)):
        line = f"{event['level']} {event['code']}: {event['message']}"
        if told and sum(map(len, told)) + len(line) > EVENTS_CHARACTERS:
            break
        told.append(line)
    return told[::-1]


def summarise(row: Row) -> dict[str, Any]:
    """One line of the overview."""
    return rounded(_line(row))


def _line(row: Row) -> dict[str, Any]:
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
