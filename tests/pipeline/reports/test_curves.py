"""Curves as SVG: what is drawn where, for short, long, spiky, flat and broken runs."""

import math
import random
import re
import time
from statistics import median
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunewright.pipeline import series
from tunewright.pipeline.reports import curves
from tunewright.pipeline.reports.curves import Panel

Rows = list[dict[str, Any]]
Path = list[tuple[float, float]]


def rows(*losses: float | None) -> Rows:
    return [{"step": step, "numbers": {} if loss is None else {"loss": loss}} for step, loss in enumerate(losses, 1)]


def drawn(panel: Panel, look: str) -> Path:
    (line,) = [line for line in panel.lines if line.look == look]
    return [(float(x), float(y)) for x, y in re.findall(r"[ML]([\d.-]+) ([\d.-]+)", line.path)]


def losses(train: Rows, evaluation: Rows | None = None) -> Panel:
    panel = curves.losses(train, evaluation or [], "nats per token")
    assert panel is not None
    return panel


def test_the_ends_of_a_short_curve_lie_in_the_corners() -> None:
    panel = losses(rows(2.0, 1.5, 1.0, 0.0))
    assert drawn(panel, "train") == [(0, 0), (333.3, 250), (666.7, 500), (1000, 1000)]
    # Each value of a short run is a dot too.
    assert drawn(panel, "train dots") == drawn(panel, "train")
    assert panel.y_ticks == [(0, "0"), (0.25, "0.5"), (0.5, "1"), (0.75, "1.5"), (1, "2")]
    assert panel.x_ticks[-1] == (1, "4")


def test_a_gap_breaks_the_line_and_is_marked() -> None:
    panel = losses(rows(2.0, 1.8, None, 1.4, None, 1.0, 0.9))
    (line,) = [line for line in panel.lines if line.look == "train"]
    assert line.path.count("M") == 3
    # What stands alone between two gaps would have no stroke: it is a dot.
    assert re.search(r"M500 [\d.]+h0M", line.path)
    assert panel.notes == ["2 steps without a finite loss, marked at the bottom"]
    assert [x for x, _ in drawn(panel, "gap dots")] == pytest.approx([333.3, 666.7])


def test_the_best_evaluation_is_marked_where_it_lies() -> None:
    evaluation = [{"step": step, "numbers": {"loss": loss}} for step, loss in ((2, 1.6), (4, 1.1), (6, 1.3))]
    panel = losses(rows(2.0, 1.8, 1.6, 1.4, 1.2, 1.0), evaluation)
    assert drawn(panel, "best dots") == [drawn(panel, "eval")[1]]
    assert "best eval loss: 1.1 at step 4" in {line.label for line in panel.lines}


def test_a_long_curve_is_thinned_without_losing_its_spike_and_covered_by_its_median() -> None:
    draw = random.Random(1)
    values = [1.0 + draw.random() for _ in range(100_000)]
    values[54_321] = 90.0
    began = time.process_time()
    panel = losses(rows(*values))
    assert time.process_time() - began < 5
    pale, line = drawn(panel, "pale"), drawn(panel, "train")
    assert len(pale) <= curves.MOST_POINTS + 2 and len(line) <= curves.MOST_POINTS + 2
    assert min(y for _, y in pale) == 0
    assert panel.notes == ["1 higher, up to 90, cut off"]
    # The median of uniform noise is flat: the spike moved nothing.
    assert max(y for _, y in line) - min(y for _, y in line) < 60


def test_a_flat_curve_is_not_filled_by_its_noise() -> None:
    panel = losses(rows(*(1.0 + 0.0001 * (step % 2) for step in range(30))))
    heights = [y for _, y in drawn(panel, "train")]
    assert max(heights) - min(heights) < 5


def test_without_a_loss_there_is_no_panel() -> None:
    assert curves.losses([], [], "") is None
    assert curves.losses(rows(None, None), [], "") is None


def test_small_panels_are_what_the_run_has_and_what_changed() -> None:
    train = [
        {"step": step, "numbers": {"loss": 1.0, "learning_rate": 1e-4 / step, "margin": 0.1 * step, "peak_gib": 6.9}}
        for step in range(1, 6)
    ]
    assert [panel.title for panel in curves.small(train)] == ["Reward margin", "Learning rate"]
    assert "1e-4" in {text for _, text in curves.small(train)[1].y_ticks}


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0002, "2e-4"), (0.5, "0.5"), (0.0, "0"), (12000, "12k"), (9500, "9500"), (0.30000000000000004, "0.3")],
)
def test_ticks_are_short(value: float, text: str) -> None:
    assert curves.tick_text(value) == text


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6), st.integers(2, 8))
def test_ticks_are_round_within_bounds_and_few(low: float, span: float, most: int) -> None:
    high = low + span
    found = series.ticks(low, high, most)
    assert len(found) <= most
    assert all(low - 1e-6 * span <= tick <= high + 1e-6 * span for tick in found)


@given(st.lists(st.floats(-100, 100) | st.just(math.nan), min_size=1, max_size=80), st.integers(5, 15))
def test_the_running_median_is_that_of_the_finite_values_around(values: list[float], width: int) -> None:
    points = [(float(step), value) for step, value in enumerate(values)]
    finite = [value for value in values if math.isfinite(value)]
    medians = [value for _, value in series.running_median(points, width) if math.isfinite(value)]
    assert len(medians) == len(finite)
    for place, found in enumerate(medians):
        around = sorted(finite[max(0, place - width // 2) : place + width // 2 + 1])
        assert found == around[len(around) // 2]
        assert abs(found - median(around)) <= around[-1] - around[0]


@given(st.lists(st.floats(-1e9, 1e9) | st.just(math.nan), max_size=50))
def test_limits_span_something_whatever_the_values_are(values: list[float]) -> None:
    shown = series.limits([(float(step), value) for step, value in enumerate(values)])
    assert shown.high > shown.low
    finite = [value for value in values if math.isfinite(value)]
    assert all(value >= shown.low for value in finite)
    assert shown.cut is None or shown.cut == max(finite)
