"""A run's curves as inline SVG: paths in a square of 1,000 units, stretched by the page to whatever width it has.

Guarantees that a curve of any length becomes at most about 1,300 points, that no spike is lost and that gaps stay
gaps. Texts (ticks, legends) are no part of the SVG, which would stretch them: the page sets them in HTML around it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from tunewright.pipeline import series
from tunewright.pipeline.series import Limits, Points
from tunewright.pipeline.store import Row

# Two for each of the about 650 pixels that the widest panel shows a line with: a column's lowest and highest value.
MOST_POINTS = 1300
UNITS = 1000
X_TICKS, Y_TICKS = 6, 5
# What the small panels show, the first ones that the run has: name, title, unit.
SMALL = (
    ("reward", "Reward", ""),
    ("margin", "Reward margin", "chosen − rejected"),
    ("learning_rate", "Learning rate", ""),
    ("tokens_per_s", "Speed", "tokens/s"),
    ("grad_norm", "Gradient norm", ""),
    ("peak_gib", "Peak memory", "GiB"),
)
SHOWN_SMALL = 4


@dataclass(frozen=True)
class Line:
    """`path` is SVG's `d`; `look` the class that draws it; `label` stands in the legend, "" leaves it out."""

    look: str
    path: str
    label: str = ""


@dataclass(frozen=True)
class Panel:
    """One chart. Ticks are (share of the width or height from the left or the bottom, text)."""

    title: str
    unit: str
    lines: list[Line]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    said: str  # what a person who cannot see it is told
    notes: list[str] = field(default_factory=list[str])

    @property
    def grid(self) -> str:
        return "".join(f"M0 {_number(UNITS * (1 - share))}h{UNITS}" for share, _ in self.y_ticks)


@dataclass(frozen=True)
class Frame:
    """Where a point lies in the square."""

    first: float
    last: float
    limits: Limits

    def x(self, step: float) -> float:
        return UNITS * (step - self.first) / (self.last - self.first or 1)

    def y(self, value: float) -> float:
        low, high = self.limits.low, self.limits.high
        return UNITS * (1 - (min(value, high) - low) / (high - low))

    def line(self, points: Points) -> str:
        """Straight from point to point, anew after each gap; a point alone between two gaps is a dot."""
        parts: list[str] = []
        pen_is_down = False
        for place, (step, value) in enumerate(points):
            if not math.isfinite(value):
                pen_is_down = False
                continue
            parts.append(f"{'L' if pen_is_down else 'M'}{_number(self.x(step))} {_number(self.y(value))}")
            is_alone = not pen_is_down and not (place + 1 < len(points) and math.isfinite(points[place + 1][1]))
            parts += ["h0"] if is_alone else []
            pen_is_down = True
        return "".join(parts)

    def dots(self, points: Points) -> str:
        """Strokes of no length: with round ends they are dots, however the square is stretched."""
        return "".join(f"M{_number(self.x(step))} {_number(self.y(value))}h0" for step, value in series.finite(points))


def losses(train: Sequence[Row], evaluation: Sequence[Row], unit: str) -> Panel | None:
    """Training and evaluation loss in `unit` by step, the best evaluation marked; None without a loss."""
    trained, evaluated = series.of(train, "loss"), series.of(evaluation, "loss")
    if not series.finite(trained) and not series.finite(evaluated):
        return None
    frame = Frame(*_span(trained, evaluated), series.limits(trained, evaluated))
    lines = _lines(frame, trained, "train loss")
    said, notes = [_said("train loss", trained)], _spikes(frame.limits, trained)
    if series.finite(evaluated):
        step, best = min(series.finite(evaluated), key=lambda point: point[1])
        lines.append(Line("eval", frame.line(evaluated), "eval loss"))
        lines.append(Line("eval dots", frame.dots(evaluated)))
        lines.append(Line("best dots", frame.dots([(step, best)]), f"best eval loss: {best:.4g} at step {step:,.0f}"))
        said.append(_said("eval loss", evaluated))
    gaps = [step for step, value in trained if not math.isfinite(value)]
    if gaps:
        lines.append(Line("gap dots", "".join(f"M{_number(frame.x(step))} {UNITS - 10}h0" for step in gaps[:200])))
        notes.append(f"{len(gaps):,} steps without a finite loss, marked at the bottom")
    return Panel("Loss", unit, lines, *_ticks(frame), "; ".join(said), notes)


def small(train: Sequence[Row]) -> list[Panel]:
    """What else the run logged at each step, one panel each, but for what never changed."""
    panels: list[Panel] = []
    for name, title, unit in SMALL:
        points = series.of(train, name)
        values = series.finite(points)
        if len({value for _, value in values}) < 2:  # the page tells a constant among its figures
            continue
        frame = Frame(*_span(points), series.limits(points))
        lines = _lines(frame, points if len(values) == len(points) else values, "", smooth=name != "learning_rate")
        panels.append(Panel(title, unit, lines, *_ticks(frame, 3), _said(title, points), _spikes(frame.limits, points)))
    return panels[:SHOWN_SMALL]


def _lines(frame: Frame, points: Points, label: str, *, smooth: bool = True) -> list[Line]:
    """The points as a line; many of them pale, with their running median over them."""
    drawn = series.thinned(points, MOST_POINTS)
    if len(points) < series.SMOOTHED_FROM or not smooth:
        dots = [Line("train dots", frame.dots(points))] if len(points) < series.SMOOTHED_FROM / 2 else []
        return [Line("train", frame.line(drawn), label), *dots]
    width = series.median_width(len(points))
    median = series.thinned(series.running_median(points, width), MOST_POINTS)
    told = f"{label}, median of {width}" if label else ""
    return [Line("pale", frame.line(drawn)), Line("train", frame.line(median), told)]


def _span(*curves: Points) -> tuple[float, float]:
    steps = [step for curve in curves for step, _ in curve]
    return min(steps), max(steps)


def _ticks(frame: Frame, most: int = Y_TICKS) -> tuple[list[tuple[float, str]], list[tuple[float, str]]]:
    low, high = frame.limits.low, frame.limits.high
    x_most = X_TICKS if most == Y_TICKS else 4
    steps = [step for step in series.ticks(frame.first, frame.last, x_most) if step == round(step)]
    across = [(frame.x(step) / UNITS, f"{step:,.0f}") for step in steps or [frame.first]]
    values = series.ticks(low, high, most)
    return across, [((value - low) / (high - low), tick_text(value)) for value in values]


def tick_text(value: float) -> str:
    """Short, and without a float's tail: 0.0002 as 2e-4, 12000 as 12k."""
    if value and abs(value) < 1e-3:
        mantissa, _, power = f"{value:.2e}".partition("e")
        return f"{float(mantissa):g}e{int(power)}"
    return f"{value / 1000:g}k" if abs(value) >= 10_000 else f"{float(f'{value:.6g}'):g}"


def _spikes(limits: Limits, points: Points) -> list[str]:
    above = sum(value > limits.high for _, value in series.finite(points))
    return [f"{above:,} higher, up to {limits.cut:.3g}, cut off"] if limits.cut is not None and above else []


def _said(name: str, points: Points) -> str:
    values = [value for _, value in series.finite(points)]
    return f"{name} from {values[0]:.4g} to {values[-1]:.4g} over {len(points):,} points" if values else name


def _number(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
