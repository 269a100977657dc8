"""Alerts: none on a healthy run, exactly the right one for each illness, and when a run must stop itself."""

import math
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunewright.pipeline.training import alerts
from tunewright.pipeline.training.alerts import Seen

Numbers = dict[str, Any]
Rows = list[dict[str, Any]]
METHODS = ("sft", "cpt", "dpo", "orpo", "kto", "grpo")
PLAN = {"tokens_per_s": 10_000.0, "peak_gib": 14.0}
FACTS = {"truncated_share": 0.01, "limit_gib": 16.0, "host_total_gib": 64.0}


def healthy(
    method: str, count: int, *, start: float = 2.4, floor: float = 1.1, noise: float = 0.05, seed: int = 0
) -> Rows:
    """Rows of a run whose loss falls from `start` to `floor`, noise a share of it; margin and reward rise by method."""
    draw = random.Random(seed)
    rows: Rows = []
    for step in range(1, count + 1):
        way = 1 - math.exp(-5 * step / count)
        numbers = {
            "loss": (start + (floor - start) * way) * (1 + draw.gauss(0, noise)), "grad_norm": draw.uniform(0.3, 1.5),
            "loss_share": 0.4, "tokens_per_s": 9500 * draw.uniform(0.9, 1.1), "peak_gib": 13.5, "host_free_gib": 30.0,
        }  # fmt: skip
        if method in ("dpo", "orpo", "kto"):
            numbers["margin"] = 3 * way + draw.gauss(0, noise)
        if method == "grpo":
            numbers |= {"reward": 0.1 + way + draw.gauss(0, noise), "loss": draw.gauss(0, 0.02)}
        rows.append({"step": step, "numbers": numbers})
    return rows


def evaluations(*losses: float) -> Rows:
    return [{"step": 10 * place, "numbers": {"loss": loss}} for place, loss in enumerate(losses, 1)]


def seen(method: str, train: Rows, evaluation: Rows | None = None, **changed: Any) -> Seen:
    arguments = {"learning_rate": 2e-4, "rewards": [{"kind": "regex", "weight": 2.0}], **changed.pop("arguments", {})}
    spec = {"method": method, "arguments": arguments, "plan": PLAN}
    return Seen.of(spec, train, evaluation or [], {"max_steps": len(train), **FACTS, **changed})


def codes(found: Seen) -> list[str]:
    return [alert.code for alert in alerts.find(found)]


@given(
    method=st.sampled_from(METHODS), count=st.integers(1, 400), start=st.floats(1.5, 12), fall=st.floats(0.3, 0.7),
    noise=st.floats(0, 0.05), seed=st.integers(0, 1000),
)  # fmt: skip
def test_a_healthy_run_raises_no_alert_at_any_step(
    method: str, count: int, start: float, fall: float, noise: float, seed: int
) -> None:
    floor = start * (1 - fall)
    rows = healthy(method, count, start=start, floor=floor, noise=noise, seed=seed)
    falling = evaluations(*(floor + (start - floor) * 0.7**place for place in range(6)))
    for length in range(1, count + 1, max(1, count // 12)):
        at = seen(method, rows[:length], falling[: length % 7], max_steps=count)
        assert alerts.find(at) == []
        assert alerts.divergence(at) is None


def at_the_end(count: int, **numbers: float) -> Callable[[Rows], Rows]:
    """Changes the last `count` rows; None takes a number out."""

    def change(rows: Rows) -> Rows:
        for row in rows[-count:]:
            row["numbers"] |= numbers
            row["numbers"] = {key: value for key, value in row["numbers"].items() if value is not None}
        return rows

    return change


def flat(name: str, value: float, noise: float) -> Callable[[Rows], Rows]:
    def change(rows: Rows) -> Rows:
        draw = random.Random(3)
        for row in rows:
            row["numbers"][name] = value + draw.gauss(0, noise)
        return rows

    return change


def everywhere(**numbers: float) -> Callable[[Rows], Rows]:
    return lambda rows: at_the_end(len(rows), **numbers)(rows)


ILL_ROWS: dict[str, tuple[str, Callable[[Rows], Rows]]] = {
    "all_labels_masked": ("sft", everywhere(loss_share=0.0, loss=0.0, grad_norm=0.0)),
    "not_finite": ("cpt", at_the_end(1, loss=None, not_finite=1)),  # type: ignore[arg-type]
    "exploding": ("sft", at_the_end(1, loss=7.0)),
    "no_gradient": ("sft", at_the_end(3, grad_norm=0.0)),
    "loss_low": ("sft", at_the_end(10, loss=0.15)),
    "loss_not_falling": ("sft", everywhere(loss=2.5)),
    "margin_not_rising": ("dpo", everywhere(margin=0.0)),
    "reward_not_rising": ("grpo", everywhere(reward=0.3)),
    "gpu_nearly_full": ("kto", at_the_end(1, peak_gib=15.4)),
    "slow": ("orpo", at_the_end(5, tokens_per_s=5500.0)),
    "host_memory_low": ("grpo", at_the_end(1, host_free_gib=3.0)),
}


@pytest.mark.parametrize("code", ILL_ROWS)
def test_each_illness_raises_exactly_its_alert(code: str) -> None:
    method, plant = ILL_ROWS[code]
    (alert,) = alerts.find(seen(method, plant(healthy(method, 120))))
    assert alert.code == code
    assert alert.message.endswith(".") and alert.advice.endswith(".")


def test_an_exploding_gradient_is_an_alert_though_the_loss_looks_well() -> None:
    assert codes(seen("sft", at_the_end(3, grad_norm=80.0)(healthy("sft", 120)))) == ["exploding"]
    assert codes(seen("sft", at_the_end(2, grad_norm=80.0)(healthy("sft", 120)))) == []


@given(st.sampled_from(["loss", "margin", "reward"]), st.floats(0, 0.02), st.integers(40, 400))
def test_what_goes_the_wrong_way_is_always_seen(name: str, noise: float, count: int) -> None:
    method, code = {
        "loss": ("sft", "loss_not_falling"), "margin": ("dpo", "margin_not_rising"),
        "reward": ("grpo", "reward_not_rising"),
    }[name]  # fmt: skip
    rows = healthy(method, count)
    draw = random.Random(count)
    for row in rows:
        away = row["step"] / count if name == "loss" else -row["step"] / count
        row["numbers"][name] = 1 + 0.3 * away + draw.gauss(0, noise)
    assert codes(seen(method, rows)) == [code]


def test_rising_eval_loss_is_overfitting_only_from_the_second_worse_evaluation() -> None:
    rows = healthy("sft", 120)
    assert codes(seen("sft", rows, evaluations(1.5, 1.3, 1.4))) == []
    (alert,) = alerts.find(seen("sft", rows, evaluations(1.5, 1.3, 1.4, 1.45)))
    assert alert.code == "eval_rising"
    assert "1.450, best 1.300 at step 20" in alert.message and "5e-05" in alert.advice
    assert codes(seen("sft", rows, evaluations(1.5, 1.3, 1.4, 1.45, 1.29))) == []
    assert codes(seen("sft", rows, evaluations(1.3, 1.31, 1.32))) == []


def test_truncation_is_said_before_the_first_step() -> None:
    (alert,) = alerts.find(seen("sft", [], truncated_share=0.12, arguments={"max_seq_length": 512}))
    assert (alert.code, alert.message[:3]) == ("truncation", "12%")
    assert "512" in alert.advice
    assert codes(seen("sft", [], truncated_share=0.05)) == []


def test_a_trend_is_not_judged_in_the_first_tenth_of_a_run() -> None:
    rows = everywhere(loss=2.5)(healthy("sft", 90))
    assert codes(seen("sft", rows, max_steps=1000)) == []
    assert codes(seen("sft", rows, max_steps=900)) == ["loss_not_falling"]


@pytest.mark.parametrize(("fall", "expected"), [(0.005, ["loss_not_falling"]), (0.03, [])])
def test_a_fall_of_less_than_a_hundredth_is_none(fall: float, expected: list[str]) -> None:
    rows = healthy("sft", 200, start=2.0, floor=2.0 * (1 - fall), noise=0)
    assert codes(seen("sft", rows)) == expected


@given(st.integers(0, 300))
def test_a_loss_that_fell_and_came_back_asks_for_a_lower_rate(seed: int) -> None:
    draw = random.Random(seed)
    rows = healthy("sft", 120)
    for row in rows:
        row["numbers"]["loss"] = (2.4 if 6 <= row["step"] <= 12 else 5.0) * (1 + draw.gauss(0, 0.02))
    (alert,) = alerts.find(seen("sft", rows))
    assert alert.code == "loss_not_falling" and "from 0.0002 to 5e-05" in alert.advice
    for row in rows:
        row["numbers"]["loss"] = 5 * (1 + draw.gauss(0, 0.05))
    assert all("Raise learning_rate" in alert.advice for alert in alerts.find(seen("sft", rows)))


def test_a_reward_near_its_highest_need_not_rise() -> None:
    rows = everywhere(reward=1.9)(healthy("grpo", 120))
    assert codes(seen("grpo", rows)) == []
    more = [{"kind": "regex", "weight": 2.0}, {"kind": "length", "weight": 1.0}]
    assert codes(seen("grpo", rows, arguments={"rewards": more})) == ["reward_not_rising"]


def test_without_a_plan_or_a_device_nothing_is_compared_with_them() -> None:
    rows = at_the_end(5, tokens_per_s=10.0, peak_gib=0.0)(healthy("sft", 120))
    assert alerts.find(Seen.of({"method": "sft"}, rows, [], {})) == []


def test_throughput_is_not_judged_while_it_warms_up() -> None:
    slow = everywhere(tokens_per_s=100.0)(healthy("sft", 19))
    assert codes(seen("sft", slow, max_steps=1000)) == []
    assert codes(seen("sft", everywhere(tokens_per_s=100.0)(healthy("sft", 20)), max_steps=1000)) == ["slow"]


# When a run stops itself


def test_a_loss_that_is_not_finite_stops_the_run_at_once() -> None:
    rows = at_the_end(1, loss=None, not_finite=1)(healthy("sft", 5))  # type: ignore[arg-type]
    assert alerts.divergence(seen("sft", rows)) == "The loss is not a finite number at step 5"


def test_a_gradient_norm_that_is_not_finite_stops_the_run_the_second_time_in_a_row() -> None:
    once = at_the_end(1, grad_norm=None, not_finite=1)  # type: ignore[arg-type]
    twice = at_the_end(2, grad_norm=None, not_finite=1)  # type: ignore[arg-type]
    assert alerts.divergence(seen("sft", once(healthy("sft", 9)))) is None
    assert codes(seen("sft", once(healthy("sft", 9)))) == ["not_finite"]
    assert "2 times in a row" in str(alerts.divergence(seen("sft", twice(healthy("sft", 9)))))


def test_fp16_may_halve_its_loss_scale_sixteen_times() -> None:
    fp16 = {"precision": "fp16"}
    for count, stops in ((16, False), (17, False), (18, True)):
        rows = at_the_end(count, grad_norm=None, not_finite=1)(healthy("sft", 30))  # type: ignore[arg-type]
        assert (alerts.divergence(seen("sft", rows, arguments=fp16)) is not None) == stops
        assert codes(seen("sft", rows, arguments=fp16)) == ([] if count == 16 else ["not_finite"])


@given(best=st.floats(0.05, 4), over=st.floats(1.05, 3), count=st.integers(16, 200))
def test_a_loss_far_above_its_best_stops_the_run_after_five_rows(best: float, over: float, count: int) -> None:
    limit = best + min(4, 2 * best + 1)
    for bad, stops in ((4, False), (5, True)):
        rows = at_the_end(bad, loss=limit * over)(everywhere(loss=best)(healthy("sft", count)))
        assert (alerts.divergence(seen("sft", rows)) is not None) == stops
    spikes = everywhere(loss=best)(healthy("sft", count))
    for row in spikes[::3]:
        row["numbers"]["loss"] = limit * over
    assert alerts.divergence(seen("sft", spikes)) is None


def test_the_loss_of_grpo_is_no_measure() -> None:
    rows = at_the_end(8, loss=50.0)(healthy("grpo", 60))
    assert alerts.divergence(seen("grpo", rows)) is None
    assert codes(seen("grpo", rows)) == []


@given(st.integers(1, 3000), st.integers(0, 5))
def test_what_lies_between_the_first_and_the_last_rows_changes_nothing(middle: int, seed: int) -> None:
    rows = healthy("sft", alerts.HEAD + middle + alerts.TAIL, noise=0.3, seed=seed)
    shortened = rows[: alerts.HEAD] + rows[-alerts.TAIL - alerts.DIVERGED_ROWS :]
    facts = {"max_steps": len(rows)}
    assert alerts.find(seen("sft", shortened, **facts)) == alerts.find(seen("sft", rows, **facts))
    assert alerts.divergence(seen("sft", shortened)) == alerts.divergence(seen("sft", rows))
