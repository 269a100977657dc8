"""A run as a picture. matplotlib is imported when first asked for; it is the field's own plotting library.

Opaque, black on white, so that it reads the same on a light and on a dark page.
"""

import io
import math
from typing import TYPE_CHECKING

from tunewright.pipeline import series
from tunewright.pipeline.errors import NotFound, call
from tunewright.pipeline.series import Points
from tunewright.pipeline.store import Row
from tunewright.pipeline.workspace import Workspace

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH_IN, HEIGHT_IN, DPI = 8, 6, 110
TRAIN, EVAL, RATE, SECOND = "tab:blue", "tab:orange", "tab:gray", "tab:green"
# More points than the panel has pixels cost seconds and show nothing.
MAX_DRAWN = 2000
# What the lower panel shows beside the rate: the first of these that the run has.
SECONDS = {"reward": "reward", "margin": "margin", "tokens_per_s": "tokens/s"}


def loss_png(workspace: Workspace, job_id: str) -> bytes:
    """A PNG of training and eval loss by step, and below the learning rate with reward, margin or tokens/s.

    Raises NotFound where the job has no metrics yet.
    """
    row = workspace.store.job(job_id)
    job_id = row["id"]
    train, evaluation = (workspace.store.metrics(job_id, split) for split in ("train", "eval"))
    if not train:
        raise NotFound("no_metrics", f"{job_id} has no metrics yet.", next=call("get_status", job_id=job_id, wait_s=50))
    buffer = io.BytesIO()
    draw(f"{job_id} ({row['state']})", train, evaluation).savefig(buffer, format="png")
    return buffer.getvalue()


def draw(title: str, train: list[Row], evaluation: list[Row]) -> "Figure":
    """The figure of these metrics: the losses above, the learning rate and what goes with it below."""
    # The object interface: pyplot keeps global state and is not safe in threads.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH_IN, HEIGHT_IN), dpi=DPI, layout="constrained", facecolor="white")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[2.4, 1])
    upper.set_title(title, fontsize=11)
    _draw_losses(upper, series.of(train, "loss"), series.of(evaluation, "loss"))
    _draw_rate(lower, train)
    return figure


def _draw_losses(axes: "Axes", train: Points, evaluation: Points) -> None:
    _draw_line(axes, train, TRAIN, "train loss")
    if evaluation:
        axes.plot(*zip(*evaluation, strict=True), color=EVAL, marker="o", markersize=4, label="eval loss")
    if series.finite(evaluation):
        step, best = min(series.finite(evaluation), key=lambda point: point[1])
        axes.plot(
            [step], [best], linestyle="", marker="*", markersize=14, color=EVAL, markeredgecolor="black",
            label=f"best eval: {best:.4g} at step {step:g}",
        )  # fmt: skip
    _limit(axes, train, evaluation)
    gaps = [step for step, value in train if not math.isfinite(value)]
    if gaps:
        _mark(axes, gaps, 0.015, f"not finite ({len(gaps)})", marker="x", color="tab:red")
    axes.set_ylabel("loss")
    axes.grid(alpha=0.3)
    axes.legend(loc="upper right", fontsize=9)


def _mark(axes: "Axes", steps: list[float], height: float, label: str, *, marker: str, color: str) -> None:
    """Marks at `steps`, at that share of the panel's height, whatever its values are."""
    heights = [height] * len(steps)
    place = axes.get_xaxis_transform()
    axes.plot(steps, heights, transform=place, linestyle="", marker=marker, color=color, label=label)


def _draw_line(axes: "Axes", points: Points, color: str, label: str) -> None:
    """The points as a line; many of them pale, with their running median over them."""
    steps, values = zip(*series.thinned(points, MAX_DRAWN), strict=True)
    if len(points) < series.SMOOTHED_FROM:
        axes.plot(
            steps, values, color=color, marker="." if len(points) < series.SMOOTHED_FROM // 2 else "", label=label
        )
        return
    axes.plot(steps, values, color=color, alpha=0.3, linewidth=0.8)
    width = series.median_width(len(points))
    steps, values = zip(*series.running_median(points, width), strict=True)
    axes.plot(steps, values, color=color, linewidth=1.8, label=f"{label} (median of {width})")


def _limit(axes: "Axes", train: Points, evaluation: Points) -> None:
    """Cuts off single spikes, each marked at the edge: one value of 100 would flatten all others. Where the values are
    all but one, the panel spans a tenth of it: filled by its noise a flat curve would look like a wild one.
    """
    values = sorted(value for _, value in series.finite(train) + series.finite(evaluation))
    if not values:
        axes.set_yticks([])
        return
    lowest, usual = values[0], values[math.ceil(0.98 * (len(values) - 1))]
    least = 0.1 * abs(usual)
    highest = usual + 0.5 * max(usual - lowest, least)
    if values[-1] > highest:
        axes.set_ylim(top=highest)
        spikes = [step for step, value in series.finite(train) if value > highest]
        _mark(axes, spikes, 0.975, f"higher, up to {values[-1]:.3g}", marker="^", color=TRAIN)
    elif values[-1] - lowest < least:
        axes.set_ylim((lowest + values[-1] - least) / 2, (lowest + values[-1] + least) / 2)
    if 0 <= lowest < 0.5 * min(values[-1], highest):
        axes.set_ylim(bottom=0)


def _draw_rate(axes: "Axes", train: list[Row]) -> None:
    from matplotlib.ticker import MaxNLocator

    rates = series.thinned(series.of(train, "learning_rate"), MAX_DRAWN)
    axes.plot(*zip(*rates, strict=True), color=RATE, marker="." if len(rates) == 1 else "")
    axes.set_ylabel("learning rate", color=RATE)
    axes.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("step")
    axes.grid(alpha=0.3)
    name = next((name for name in SECONDS if series.finite(series.of(train, name))), None)
    if name:
        beside = axes.twinx()
        # A batch without pairs has no margin: no gap in the run.
        _draw_line(beside, series.finite(series.of(train, name)), SECOND, SECONDS[name])
        beside.set_ylabel(SECONDS[name], color=SECOND)
        if name == "tokens_per_s":
            beside.set_ylim(0, 1.15 * beside.get_ylim()[1])
