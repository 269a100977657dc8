"""What reading the store costs and keeps: no scan at any look, every number to its last bit, text that is no UTF-8."""

import json
import math
import os
import struct
from random import Random
from typing import Any

import pytest

from tunewright.pipeline import jobs, status
from tunewright.pipeline.store import Store
from tunewright.pipeline.workspace import Workspace

# Virtual instructions of SQLite between two looks at the count.
STEP = 100


def cost(workspace: Workspace, look: Any) -> int:
    """About how many instructions of SQLite a look takes, in hundreds: the same on every machine, however busy."""
    counted = 0

    def count() -> int:
        nonlocal counted
        counted += 1
        return 0

    connection = workspace.store._connection()  # pyright: ignore[reportPrivateUsage]
    connection.set_progress_handler(count, STEP)
    look()
    connection.set_progress_handler(None, STEP)
    return counted


def add_history(store: Store, count: int) -> None:
    with store.transaction() as db:
        db.executemany(
            "INSERT INTO jobs(id, kind, state, needs_device, spec, created_at) "
            "VALUES (?,'finetune','succeeded',1,'{}',1)",
            [(f"job-{number}",) for number in range(count)],
        )
        db.execute("UPDATE jobs SET state='running' WHERE id='job-7'")
        db.executemany(
            "INSERT INTO artifacts(id, kind, name, created_at, parents, document) VALUES (?,?,'a',?,'[]','{}')",
            [(f"x-{number}", ("dataset", "adapter")[number % 2], number) for number in range(count)],
        )
        events = [("job-7" if number % 2 else "job-8", number) for number in range(count)]
        db.executemany("INSERT INTO events(job_id, at, level, code, message) VALUES (?,?,'info','x','m')", events)


@pytest.mark.parametrize("look", ["newest", "artifacts", "every artifact", "job", "events", "reconcile"])
def test_a_look_costs_the_same_after_years_of_work(workspace: Workspace, look: str) -> None:
    store = workspace.store
    looks = {
        "newest": lambda: jobs.newest(workspace),
        "artifacts": lambda: store.artifacts("dataset", limit=20),
        "every artifact": lambda: store.artifacts(limit=20),
        "job": lambda: store.job("job-7"),
        "events": lambda: store.events("job-7", 4),
        "reconcile": lambda: store.rows("SELECT * FROM jobs WHERE state IN ('queued','running')"),
    }
    add_history(store, 10_000)
    assert cost(workspace, looks[look]) < 20
    assert cost(workspace, lambda: store.rows("SELECT count(*) FROM jobs WHERE kind='x'")) > 100


def test_what_runs_comes_first_and_then_the_newest(workspace: Workspace) -> None:
    add_history(workspace.store, 50)
    assert [row["id"] for row in jobs.newest(workspace, 3)] == ["job-7", "job-49", "job-48"]
    assert [row["id"] for row in workspace.store.artifacts("adapter", 2)] == ["x-49", "x-47"]
    assert [row["id"] for row in workspace.store.artifacts(None, 2, 1)] == ["x-48", "x-47"]


def test_every_number_comes_back_to_its_last_bit(workspace: Workspace) -> None:
    random = Random(1)
    numbers = [struct.unpack("d", random.randbytes(8))[0] for _ in range(2000)] + [math.inf, -math.inf, 5e-324, -0.0]
    numbers = [number for number in numbers if number == number]
    workspace.store.add_metric("job-1", "train", 1, {str(place): number for place, number in enumerate(numbers)})
    workspace.store.add_metric("job-1", "train", 2, {"loss": math.nan})
    first, second = workspace.store.metrics("job-1", "train")
    assert [struct.pack("d", number) for number in first["numbers"].values()] == [struct.pack("d", n) for n in numbers]
    assert math.isnan(second["numbers"]["loss"])


def test_a_file_name_that_is_no_utf_8_comes_back_as_it_was(workspace: Workspace) -> None:
    name = os.fsdecode(b"/data/caf\xe9.jsonl")
    workspace.store.add_artifact("ds-1", "dataset", "a", {"source": name}, parents=[])
    assert os.fsencode(workspace.store.artifact("ds-1")["document"]["source"]) == b"/data/caf\xe9.jsonl"


def test_all_numbers_that_are_told_are_rounded_and_nothing_else_is_changed() -> None:
    told: dict[str, Any] = {
        "third": 1 / 3, "small": -1.23456789e-9, "large": 1234567.89, "whole": 123456789.0, "count": 123456789,
        "on": True, "text": "0.123456789", "none": None, "pairs": [(1, 2 / 3)], "deep": {"deeper": [math.pi]},
    }  # fmt: skip
    assert status.rounded(told) == {
        **told, "third": 0.33333, "small": -1.2346e-9, "large": 1234600.0, "pairs": [(1, 0.66667)],
        "deep": {"deeper": [3.1416]},
    }  # fmt: skip
    assert status.rounded([math.inf, -math.inf]) == [math.inf, -math.inf]
    assert json.dumps(status.rounded(math.nan)) == "NaN"
