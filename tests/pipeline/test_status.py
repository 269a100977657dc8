"""A job as it is shown: its curve in a few numbers, alerts, the plan beside what came, counters, within a size."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunewright.pipeline import status
from tunewright.pipeline.training import alerts
from tunewright.pipeline.workspace import Workspace

AddJob = Callable[..., dict[str, Any]]
PLAN = {"tokens_per_s": 1000.0, "peak_gib": 12.0, "time_s": 90.0, "steps": 40}


@pytest.fixture
def add_job(workspace: Workspace) -> AddJob:
    def added(state: str = "running", kind: str = "finetune", spec: Any = None, **columns: Any) -> dict[str, Any]:
        values = {
            "id": "job-1", "kind": kind, "state": state, "needs_device": 1, "spec": json.dumps(spec or {}),
            "created_at": 100.0, "started_at": 110.0, **columns,
        }  # fmt: skip
        marks = ",".join("?" * len(values))
        workspace.store.execute(f"INSERT INTO jobs({','.join(values)}) VALUES ({marks})", *values.values())
        return workspace.store.job("job-1")

    return added


def rows(*values: float | None, name: str = "loss") -> list[dict[str, Any]]:
    return [
        {"step": 10 * place, "numbers": {} if value is None else {name: value}} for place, value in enumerate(values, 1)
    ]


def test_a_curve_in_a_few_numbers() -> None:
    assert status.shape(rows(5, 4, 1, *(2 + 0.5 * place for place in range(status.SLOPE_VALUES)))) == {
        "first": 5, "last": 11.5, "best": 1, "best_step": 30, "slope_per_100_steps": 5,
    }  # fmt: skip
    assert status.shape(rows(None, 3, None, 2)) == {"first": 3, "last": 2, "best": 2, "best_step": 40}
    assert status.shape(rows(None)) == status.shape([]) == {}


def test_of_a_reward_more_is_better() -> None:
    assert status.shape(rows(0.1, 0.9, 0.4, name="reward"), "reward")["best_step"] == 20


@given(st.lists(st.floats(0.01, 20), min_size=3, max_size=200), st.floats(-3, 3))
def test_a_straight_last_quarter_has_its_own_slope(before: list[float], per_step: float) -> None:
    length = max(status.SLOPE_VALUES, len(before))
    straight = [50 + 10 * per_step * place for place in range(length)]
    shape = status.shape(rows(*before, *straight, *()))
    assert shape["slope_per_100_steps"] == pytest.approx(100 * per_step, abs=1e-3)
    assert shape["last"] == pytest.approx(straight[-1], abs=1e-3)


def test_a_long_run_is_judged_as_by_all_its_rows_though_few_are_read(
    workspace: Workspace, add_job: AddJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, row = workspace.store, add_job(spec={"method": "sft", "arguments": {"learning_rate": 1e-3}})
    # It falls, is best at an odd place, and has blown up at the end.
    losses = [2 + 1 / (1 + step / 50) + (9 if step > 6000 else 0) for step in range(1, 6006)]
    losses[3210] = 0.3
    with store.transaction() as db:
        db.executemany(
            "INSERT INTO metrics(job_id, split, step, at, numbers) VALUES ('job-1','train',?,0,?)",
            [(step, json.dumps({"loss": loss, "grad_norm": 1.0})) for step, loss in enumerate(losses, 1)],
        )
    everything = store.metrics("job-1", "train")
    read: list[int] = []

    def counted(sql: str, *values: Any, rows: Any = store.rows) -> Any:
        found = rows(sql, *values)
        read.append(len(found))
        return found

    monkeypatch.setattr(store, "rows", counted)
    seen = status.describe(workspace, row, events=4, points=300)
    assert sum(read) < 2000
    assert [alert["code"] for alert in seen["alerts"]] == [
        alert.code for alert in alerts.find(alerts.Seen.of(row["spec"], everything, [], {}))
    ]
    assert seen["alerts"][0]["code"] == "exploding"
    exact = status.rounded(status.shape(everything))
    assert {**seen["shape"]["loss"], "slope_per_100_steps": 0} == {**exact, "slope_per_100_steps": 0}
    assert (seen["shape"]["loss"]["best_step"], seen["shape"]["loss"]["best"]) == (3211, 0.3)
    curve = seen["loss_curve"]
    assert len(curve) == 300 and curve[0][0] == 1 and curve[-1] == (6005, status.rounded(losses[-1]))


def test_a_running_job_shows_plan_beside_reality_and_all_numbers_of_the_last_step(
    workspace: Workspace, add_job: AddJob
) -> None:
    progress = {"phase": "training", "done": 20, "total": 50, "eta_s": 60, "at": 140.0, "loss": 2.0}
    row = add_job(spec={"method": "grpo", "plan": PLAN}, progress=json.dumps(progress))
    last = {"loss": 0.02, "reward": 0.7, "kl": 0.1, "tokens_per_s": 800.0, "peak_gib": 12.5}
    workspace.store.add_metric("job-1", "run", 0, {"max_steps": 50})
    workspace.store.add_metric("job-1", "train", 10, {"loss": 0.01, "reward": 0.2})
    workspace.store.add_metric("job-1", "train", 20, last)
    workspace.store.add_metric("job-1", "eval", 20, {"loss": 0.5, "reward": 0.6})
    seen = status.describe(workspace, row, events=4)
    assert seen["plan"] == {
        "tokens_per_s": {"planned": 1000.0, "actual": 800.0}, "peak_gib": {"planned": 12.0, "actual": 12.5},
        "time_s": {"planned": 90.0, "actual": 90.0}, "steps": {"planned": 40, "actual": 50},
    }  # fmt: skip
    assert seen["metrics"] == {**last, "eval_loss": 0.5, "eval_reward": 0.6}
    assert set(seen["shape"]) == {"loss", "reward", "eval_loss"}
    assert seen["shape"]["reward"] == {"first": 0.2, "last": 0.7, "best": 0.7, "best_step": 20}
    assert seen["loss_curve"] == [(10, 0.01), (20, 0.02)]


def test_an_ended_job_is_compared_with_what_it_took(workspace: Workspace, add_job: AddJob) -> None:
    progress = json.dumps({"phase": "saving", "at": 200.0})
    planned = {"time_s": 90.0, "steps": 40, "tokens_per_s": 1000.0}
    result = json.dumps({"tokens_per_s": 900.0})
    row = add_job("succeeded", spec={"plan": planned}, ended_at=210.0, progress=progress, result=result)
    workspace.store.add_metric("job-1", "train", 30, {"loss": 1.0, "tokens_per_s": 400.0})
    assert status.describe(workspace, row, events=4)["plan"] == {
        "time_s": {"planned": 90.0, "actual": 100.0}, "steps": {"planned": 40, "actual": 30},
        "tokens_per_s": {"planned": 1000.0, "actual": 900.0},
    }  # fmt: skip


def test_a_job_without_a_plan_shows_none(workspace: Workspace, add_job: AddJob) -> None:
    seen = status.describe(workspace, add_job(), events=4)
    assert (seen["plan"], seen["shape"], seen["metrics"], seen["alerts"]) == ({}, {}, {}, [])


def test_alerts_are_those_that_hold_now_with_advice(workspace: Workspace, add_job: AddJob) -> None:
    row = add_job(spec={"method": "sft", "arguments": {"max_seq_length": 512}, "plan": PLAN})
    workspace.store.add_metric("job-1", "run", 0, {"max_steps": 3, "truncated_share": 0.2, "limit_gib": 16.0})
    ill = {"loss": 1.0, "grad_norm": 0.0, "peak_gib": 15.9}
    for step in (1, 2, 3):
        workspace.store.add_metric("job-1", "train", step, ill)
    found = status.describe(workspace, row, events=4)["alerts"]
    assert [alert["code"] for alert in found] == ["no_gradient", "truncation", "gpu_nearly_full"]
    assert all(alert["message"] and alert["advice"] for alert in found)
    workspace.store.add_metric("job-1", "train", 3, {**ill, "grad_norm": 0.5})
    found = status.describe(workspace, row, events=4)["alerts"]
    assert [alert["code"] for alert in found] == ["truncation", "gpu_nearly_full"]


def test_a_full_gpu_is_no_matter_once_the_job_has_ended(workspace: Workspace, add_job: AddJob) -> None:
    row = add_job("succeeded")
    workspace.store.add_metric("job-1", "run", 0, {"truncated_share": 0.2, "limit_gib": 16.0, "host_total_gib": 64})
    workspace.store.add_metric("job-1", "train", 1, {"loss": 1.0, "peak_gib": 15.9, "host_free_gib": 0.1})
    assert [alert["code"] for alert in status.describe(workspace, row, events=4)["alerts"]] == ["truncation"]


def test_a_job_without_steps_shows_what_it_counts(workspace: Workspace, add_job: AddJob) -> None:
    progress = {
        "phase": "asking the teacher", "done": 3, "total": 9, "at": 120.0, "eta_s": 5, "requests": 14,
        "rejected": {"no_answer": 2},
    }  # fmt: skip
    seen = status.describe(workspace, add_job(kind="generate_examples", progress=json.dumps(progress)), events=4)
    assert seen["metrics"] == {"requests": 14, "rejected": {"no_answer": 2}}
    assert seen["eta_s"] == 5


def test_many_long_events_are_cut_to_the_newest(workspace: Workspace, add_job: AddJob) -> None:
    row = add_job()
    for number in range(60):
        workspace.store.add_event("job-1", "warning", "note", f"{number} " + "x" * 300)
    events = status.describe(workspace, row, events=50)["events"]
    assert 10 < len(events) < 20 and sum(map(len, events)) <= status.EVENTS_CHARACTERS
    assert events[-1].startswith("warning note: 59 ") and events[0].startswith(f"warning note: {60 - len(events)} ")
    workspace.store.add_event("job-1", "warning", "note", "y" * 9000)
    assert len(status.describe(workspace, row, events=50)["events"]) == 1
