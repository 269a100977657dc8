"""How long a job held the device, over the deaths of its workers."""

from collections.abc import Callable

import pytest

from tunewright.pipeline.reports import evidence
from tunewright.pipeline.store import Row
from tunewright.pipeline.workspace import Workspace

AddJob = Callable[..., Row]


@pytest.fixture
def told(workspace: Workspace, add_job: AddJob) -> Callable[..., Row]:
    """`told((at, code), …, metrics=[at, …])`: a job of which this was said."""

    def made(*said: tuple[float, str], metrics: tuple[float, ...] = ()) -> Row:
        job = add_job("finetune", "job-1", {})
        workspace.store.execute("DELETE FROM events")
        for at, code in said:
            workspace.store.execute(
                "INSERT INTO events(job_id, at, level, code, message) VALUES ('job-1',?,'info',?,'')", at, code
            )
        for step, at in enumerate(metrics):
            workspace.store.execute(
                "INSERT INTO metrics(job_id, split, step, at, numbers) VALUES ('job-1','train',?,?,'{}')", step, at
            )
        return job

    return made


def test_waiting_for_the_device_is_not_counted(workspace: Workspace, told: Callable[..., Row]) -> None:
    job = told((0, "submitted"), (500, "started"), (560, "succeeded"))
    assert evidence.device_s(workspace, job) == 60


def test_a_worker_that_was_found_dead_counts_until_its_last_word(
    workspace: Workspace, told: Callable[..., Row]
) -> None:
    job = told(
        (100, "started"), (110, "encoded"), (9000, "interrupted"), (9000, "restarted"), (9010, "started"),
        (9100, "succeeded"), metrics=(120, 150, 9050),
    )  # fmt: skip
    assert evidence.device_s(workspace, job) == 50 + 90


def test_a_resumed_job_counts_each_of_its_runs(workspace: Workspace, told: Callable[..., Row]) -> None:
    job = told((100, "started"), (130, "cancelled"), (900, "resumed"), (1000, "started"), (1005, "failed"))
    assert evidence.device_s(workspace, job) == 35


def test_a_job_that_never_began_held_nothing(workspace: Workspace, told: Callable[..., Row]) -> None:
    assert evidence.device_s(workspace, told((0, "submitted"), (10, "cancelled"))) is None
