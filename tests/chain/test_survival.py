"""A job outlives whatever is killed: its worker, the server, the client. Real processes, real training."""

import os
import signal
from pathlib import Path

import psutil
import pytest
from chain.conftest import write_shop
from mcp import Client

from tunewright.examples.session import Answer, call, connect, follow
from tunewright.pipeline.jobs import ACTIVE
from tunewright.pipeline.workspace import Workspace

pytestmark = pytest.mark.anyio

STEPS = 40
LEARNING_S = 240


async def start(client: Client, tmp_path: Path) -> str:
    """A job long enough to be killed in the middle."""
    data = write_shop(tmp_path / "shop.json")
    dataset = await call(client, "prepare_dataset", source=str(data), eval_fraction=0)
    started = await call(
        client, "start_finetune", dataset_id=dataset["dataset_id"], model="toy", max_steps=STEPS, save_steps=5
    )
    return started["job_id"]


async def until_step(client: Client, job_id: str, step: int) -> Answer:
    """The status once `step` has been logged."""
    while True:
        status = (await call(client, "get_status", job_id=job_id, wait_s=0.2))["job"]
        assert status["state"] in (*ACTIVE, "succeeded"), status["error"]
        if status["loss_curve"] and status["loss_curve"][-1][0] >= step:
            return status


def assert_every_step_once(home: str, job_id: str) -> None:
    store = Workspace.open(home).store
    assert [row["step"] for row in store.metrics(job_id, "train")] == list(range(1, STEPS + 1))


async def test_a_killed_worker_goes_on_from_its_checkpoint(home: str, tmp_path: Path) -> None:
    store = Workspace.open(home).store
    async with connect(home) as client:
        job_id = await start(client, tmp_path)
        await until_step(client, job_id, 12)
        os.kill(store.job(job_id)["pid"], signal.SIGKILL)
        status = await follow(client, job_id)
    codes = [event["code"] for event in store.events(job_id)]
    assert [code for code in codes if code in ("interrupted", "restarted", "resumed_from", "succeeded")] == [
        "interrupted", "restarted", "resumed_from", "succeeded",
    ]  # fmt: skip
    assert status["state"] == "succeeded"
    assert len(store.artifacts("adapter")) == 1
    assert_every_step_once(home, job_id)


async def test_a_job_goes_on_when_the_client_closes_and_when_the_server_is_killed(home: str, tmp_path: Path) -> None:
    async with connect(home) as client:
        job_id = await start(client, tmp_path)
        await until_step(client, job_id, 2)
    # The client has closed the server's stdin; the next one is killed under a client's hands.
    async with connect(home) as client:
        seen = await until_step(client, job_id, 5)
        assert seen["state"] == "running"
        servers = [child for child in psutil.Process().children() if "tunewright.server" in " ".join(child.cmdline())]
        assert len(servers) == 1
        servers[0].kill()
    async with connect(home) as client:
        assert (await follow(client, job_id))["state"] == "succeeded"
    assert Workspace.open(home).store.job(job_id)["restarts"] == 0
    assert_every_step_once(home, job_id)


async def test_two_servers_on_one_home_see_and_cancel_the_same_job_and_it_can_be_resumed(
    home: str, tmp_path: Path
) -> None:
    async with connect(home) as one, connect(home) as other:
        job_id = await start(one, tmp_path)
        await until_step(other, job_id, 7)
        await call(other, "cancel_job", job_id=job_id)
        while (await call(one, "get_status", job_id=job_id, wait_s=5))["job"]["state"] in ACTIVE:
            pass
        cancelled = (await call(one, "get_status", job_id=job_id))["job"]
        assert cancelled["state"] == "cancelled"
        assert list((Path(home) / "jobs" / job_id / "checkpoints").glob("checkpoint-*"))
        assert not Workspace.open(home).store.artifacts("adapter")
        await call(one, "resume_job", job_id=job_id)
        assert (await follow(other, job_id))["state"] == "succeeded"
    assert_every_step_once(home, job_id)
