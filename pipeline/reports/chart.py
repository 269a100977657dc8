"""The loss curves of several runs over each other, as a PNG. matplotlib is imported when first asked for.

Opaque, black on white, as `plots.py` draws a single run.
"""

import io
from bisect import bisect_right
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tunewright.pipeline import series
from tunewright.pipeline.errors import NotFound, call
from tunewright.pipeline.series import Points
from tunewright.pipeline.store import Row
from tunewright.pipeline.workspace import Workspace

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH_IN, HEIGHT_IN, DPI = 9, 6.5, 110
MOST_POINTS = 1500


def png(workspace: Workspace, rows: Sequence[Row], labels: Sequence[str]) -> bytes:
    """The figure of `draw` as a PNG. Raises NotFound where no run has a loss yet."""
    buffer = io.BytesIO()
    draw(workspace, rows, labels).savefig(buffer, format="png")
    return buffer.getvalue()


def draw(workspace: Workspace, rows: Sequence[Row], labels: Sequence[str]) -> "Figure":
    """Training losses above, eval losses below where there are any, a colour a run.

    By epochs where every run has logged them, so that runs with other batches lie over each other; else by steps.
    """
    # The object interface: pyplot keeps global state and is not safe in threads.
    from matplotlib.figure import Figure

    train, evaluation = ([workspace.store.metrics(row["id"], split) for row in rows] for split in ("train", "eval"))
    by = "epoch" if all("epoch" in row["numbers"] for run in train for row in run) else None
    trained = [series.of(run, "loss", by) for run in train]
    evaluated = [_evaluated(run, rows_of, by) for run, rows_of in zip(evaluation, train, strict=True)]
    if not any(series.finite(points) for points in trained):
        named = ", ".join(row["id"] for row in rows)
        raise NotFound(
            "no_metrics", f"None of {named} has a loss yet.", next=call("get_status", job_id=rows[0]["id"], wait_s=50)
        )
    panels = [("train loss", trained)] + ([("eval loss", evaluated)] if any(evaluated) else [])
    figure = Figure(figsize=(WIDTH_IN, HEIGHT_IN), dpi=DPI, layout="constrained", facecolor="white")
    drawn = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (title, curves) in zip(drawn, panels, strict=True):
        _draw_panel(axes, title, curves, labels)
    drawn[0].legend(loc="upper right", fontsize=8)
    drawn[-1].set_xlabel(by or "step")
    return figure


def _evaluated(evaluation: Sequence[Row], train: Sequence[Row], by: str | None) -> Points:
    """An evaluation has no epoch of its own: it is that of its step, or of the last one logged before."""
    points = series.finite(series.of(evaluation, "loss"))
    if by is None:
        return points
    steps = [row["step"] for row in train]
    epochs = [0.0, *(row["numbers"][by] for row in train)]
    return [(epochs[bisect_right(steps, step)], value) for step, value in points]


def _draw_panel(axes: "Axes", title: str, curves: Sequence[Points], labels: Sequence[str]) -> None:
    for number, (points, label) in enumerate(zip(curves, labels, strict=True)):
        if not series.finite(points):
            continue
        color, smoothed = f"C{number}", points
        if len(points) >= series.SMOOTHED_FROM:
            steps, values = zip(*series.thinned(points, MOST_POINTS), strict=True)
            axes.plot(steps, values, color=color, alpha=0.2, linewidth=0.6)
            smoothed = series.running_median(points, series.median_width(len(points)))
        steps, values = zip(*series.thinned(smoothed, MOST_POINTS), strict=True)
        axes.plot(
            steps, values, color=color, linewidth=1.6, marker="" if len(steps) > 20 else "o", markersize=4, label=label
        )
    shown = series.limits(*curves)
    margin = 0.03 * (shown.high - shown.low)
    axes.set_ylim(shown.low - (margin if shown.low else 0), shown.high + margin)
    axes.set_ylabel(title)
    axes.grid(alpha=0.3)
