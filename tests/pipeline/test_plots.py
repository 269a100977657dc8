"""The picture of a run: what is drawn where, for long, short, spiky, broken and resumed curves."""

import io
import math
import random
from itertools import pairwise
from typing import Any

import pytest
from matplotlib.axes import Axes
from matplotlib.image import imread
from matplotlib.lines import Line2D

from tunewright.pipeline import plots, series
from tunewright.pipeline.errors import NotFound
from tunewright.pipeline.workspace import Workspace

Rows = list[dict[str, Any]]


def rows(*numbers: dict[str, float]) -> Rows:
    return [{"step": step, "numbers": {"learning_rate": 1e-4, **row}} for step, row in enumerate(numbers, 1)]


def falling(count: int, noise: float = 0.1) -> Rows:
    draw = random.Random(1)
    return rows(*({"loss": 1.1 + 1.3 * math.exp(-4 * step / count) + draw.gauss(0, noise)} for step in range(count)))


def evaluations(*losses: float) -> Rows:
    return [{"step": 20 * place, "numbers": {"loss": loss}} for place, loss in enumerate(losses, 1)]


def panels(train: Rows, evaluation: Rows | None = None) -> tuple[Axes, Axes, Axes | None]:
    """The upper panel, the lower one, and what is drawn over the lower one by its own scale."""
    figure = plots.draw("job-1 (running)", train, evaluation or [])
    figure.canvas.draw()
    upper, lower, *beside = figure.axes
    return upper, lower, beside[0] if beside else None


def line(axes: Axes, label: str) -> Line2D:
    """The only line whose label begins so."""
    (found,) = [found for found in axes.get_lines() if str(found.get_label()).startswith(label)]
    return found


def values(drawn: Line2D) -> list[float]:
    return [float(value) for value in drawn.get_ydata()]  # type: ignore[union-attr]


def test_without_metrics_there_is_nothing_to_draw(workspace: Workspace) -> None:
    workspace.store.execute(
        "INSERT INTO jobs(id, kind, state, needs_device, spec, created_at) "
        "VALUES ('job-1', 'finetune', 'running', 1, '{}', 1)"
    )
    with pytest.raises(NotFound, match=r"no_metrics: job-1 has no metrics yet\."):
        plots.loss_png(workspace, "job-1")
    workspace.store.add_metric("job-1", "train", 1, {"loss": 1.0, "learning_rate": 1e-4})
    pixels = imread(io.BytesIO(plots.loss_png(workspace, "job")), format="png")
    assert pixels.shape == (660, 880, 4)
    assert (pixels[..., 3] == 1).all()  # opaque: the page behind it does not matter
    assert (pixels[[0, 0, -1, -1], [0, -1, 0, -1]] == 1).all()


def test_a_short_run_is_drawn_as_it_is_with_its_evaluations(workspace: Workspace) -> None:
    upper, lower, _ = panels(falling(8), evaluations(1.9, 1.6))
    assert values(line(upper, "train loss")) == [row["numbers"]["loss"] for row in falling(8)]
    assert line(upper, "train loss").get_marker() == "."
    assert values(line(upper, "eval loss")) == [1.9, 1.6]
    assert upper.get_title() == "job-1 (running)"
    assert values(lower.get_lines()[0]) == [1e-4] * 8
    assert all(tick == int(tick) for tick in lower.get_xticks())


def test_the_best_evaluation_is_marked_and_named() -> None:
    upper, _, _ = panels(falling(100), evaluations(2.0, 1.5, 1.25, 1.6, 1.9))
    best = line(upper, "best eval")
    assert (best.get_label(), list(best.get_xdata()), values(best)) == ("best eval: 1.25 at step 60", [60], [1.25])  # type: ignore[arg-type]
    assert "best eval" not in str([found.get_label() for found in panels(falling(100))[0].get_lines()])


def test_a_long_noisy_run_gets_its_median_over_a_pale_line() -> None:
    train = falling(400, noise=0.3)
    pale, *_ = panels(train)[0].get_lines()
    smooth = line(panels(train)[0], "train loss (median of 10)")
    assert pale.get_alpha() == 0.3 and smooth.get_alpha() is None
    assert len(values(smooth)) == 400

    def roughness(found: list[float]) -> float:
        return sum(abs(later - earlier) for earlier, later in pairwise(found))

    assert roughness(values(smooth)) < roughness(values(pale)) / 4


def test_one_spike_does_not_flatten_the_curve() -> None:
    train = falling(200)
    train[120]["numbers"]["loss"] = 90.0
    upper, _, _ = panels(train)
    assert upper.get_ylim()[0] == 0 and 2.4 < upper.get_ylim()[1] < 4
    assert list(line(upper, "higher, up to 90").get_xdata()) == [121]  # type: ignore[arg-type]
    assert max(values(line(upper, "train loss (median"))) < 3


def test_steps_without_a_finite_loss_are_a_marked_gap() -> None:
    train = falling(200)
    for step in range(80, 120):
        train[step]["numbers"] = {"not_finite": 1, "learning_rate": 1e-4}
    upper, _, _ = panels(train)
    gap = [step for step, value in enumerate(values(line(upper, "train loss")), 1) if math.isnan(value)]
    assert gap == list(line(upper, "not finite (40)").get_xdata()) == list(range(81, 121))  # type: ignore[arg-type]
    assert values(line(upper, "not finite (40)")) == [0.015] * 40


def test_a_run_that_never_was_finite_still_has_its_picture() -> None:
    upper, _, _ = panels(rows(*[{"not_finite": 1}] * 3))
    assert list(line(upper, "not finite (3)").get_xdata()) == [1, 2, 3]  # type: ignore[arg-type]
    assert len(upper.get_yticks()) == 0


def test_a_flat_curve_fills_a_fraction_of_its_panel() -> None:
    draw = random.Random(1)
    upper, _, _ = panels(rows(*({"loss": 11.9 + draw.gauss(0, 0.01)} for _ in range(200))))
    low, high = upper.get_ylim()
    assert high - low == pytest.approx(1.19, rel=0.02) and low < 11.85 < 11.95 < high


def test_negative_losses_are_not_cut_off() -> None:
    upper, _, _ = panels(rows(*({"loss": math.sin(step)} for step in range(30))))
    assert upper.get_ylim()[0] < -1


@pytest.mark.parametrize("name", ["reward", "margin"])
def test_what_a_method_is_after_is_drawn_below_without_gaps(name: str) -> None:
    train = rows(*({"loss": 0.1, "tokens_per_s": 100.0, name: step / 50} for step in range(30)))
    del train[7]["numbers"][name]
    _, lower, beside = panels(train)
    assert beside is not None and beside.get_ylabel() == name
    assert list(line(beside, name).get_xdata()) == [step for step in range(1, 31) if step != 8]  # type: ignore[arg-type]
    assert lower.get_ylabel() == "learning rate"


def test_otherwise_the_speed_is_drawn_from_zero() -> None:
    _, _, beside = panels(rows(*({"loss": 1.0, "tokens_per_s": 12000.0 + step % 3} for step in range(30))))
    assert beside is not None and beside.get_ylabel() == "tokens/s"
    assert beside.get_ylim()[0] == 0 and 12500 < beside.get_ylim()[1] < 15000


def test_of_many_thousand_steps_few_points_are_drawn_and_no_spike_is_lost() -> None:
    train = rows(*({"loss": 90.0 if step == 7777 else 1.0 + step % 2 / 10} for step in range(20_000)))
    pale, *_ = panels(train)[0].get_lines()
    assert len(values(pale)) <= plots.MAX_DRAWN
    drawn = list(zip(pale.get_xdata(), values(pale), strict=True))  # type: ignore[arg-type]
    assert (7778, 90.0) in drawn and drawn == sorted(drawn)


def test_the_running_median_is_of_the_values_around() -> None:
    points = [(float(step), float(value)) for step, value in enumerate([1, 1, 90, 1, 1, 5, 5, 5, 5])]
    smooth = series.running_median([*points[:4], (3.5, math.nan), *points[4:]], 3)
    assert [value for _, value in smooth[:4]] == [1, 1, 1, 1]
    assert math.isnan(smooth[4][1])
    assert [value for _, value in smooth[5:]] == [1, 5, 5, 5, 5]
