"""A job outlives whatever is killed: its worker, the server, the client. Real processes, real training.

However a run was interrupted, it ends as an untouched one does: the same numbers at every step, the same weights.
"""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from chain.conftest import QUIET, write_shop
from mcp import Client
from safetensors.numpy import load_file

from tunewright.examples.session import Answer, call, connect, follow
from tunewright.pipeline import rerun, toy
from tunewright.pipeline.jobs import ACTIVE
from tunewright.pipeline.settings import Home
from tunewright.pipeline.workspace import Workspace

pytestmark = pytest.mark.anyio

# Not a whole number of epochs, and not a multiple of what is between two checkpoints.
STEPS = 41
KILLS = Path(__file__).parents[2] / "benchmarks" / "kills.py"
KILLS_S = 900
# Of a step's numbers these are the run's; speed and memory are the machine's.
RUN_NUMBERS = ("loss", "grad_norm", "learning_rate", "epoch")

Outcome = tuple[list[Any], dict[str, np.ndarray]]


async def start(client: Client, tmp_path: Path) -> str:
    """A job long enough to be killed in the middle, with dropout: its random numbers must go on where they were."""
    data = write_shop(tmp_path / "shop.json")
    dataset = await call(client, "prepare_dataset", source=str(data), eval_fraction=0.2)
    started = await call(
        client, "start_finetune", dataset_id=dataset["dataset_id"], model="toy", max_steps=STEPS, save_steps=5,
        eval_steps=10, batch_size=2, gradient_accumulation=2, lora_dropout=0.1, early_stopping_patience=0,
    )  # fmt: skip
    return started["job_id"]


async def until_step(client: Client, job_id: str, step: int) -> Answer:
    """The status once `step` has been logged."""
    while True:
        status = (await call(client, "get_status", job_id=job_id, wait_s=0.2))["job"]
        assert status["state"] in (*ACTIVE, "succeeded"), status["error"]
        if status["loss_curve"] and status["loss_curve"][-1][0] >= step:
            return status


def outcome(home: str, job_id: str) -> Outcome:
    """What came out of a run, exactly: the numbers of every step, and the adapter's weights."""
    store = Workspace.open(home).store
    numbers = [
        (row["split"], row["step"], *(row["numbers"].get(name) for name in RUN_NUMBERS))
        for row in store.metrics(job_id)
    ]
    (adapter,) = [row for row in store.artifacts("adapter") if row["job_id"] == job_id]
    return numbers, load_file(Path(adapter["document"]["path"]) / "adapter_model.safetensors")


def assert_same(one: Outcome, other: Outcome) -> None:
    assert one[0] == other[0]
    assert one[1].keys() == other[1].keys()
    for name, tensor in one[1].items():
        np.testing.assert_array_equal(tensor, other[1][name], err_msg=name)


@pytest.fixture(scope="module")
def untouched(trained_toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """The home and the id of a job that ran without interruption."""
    root = tmp_path_factory.mktemp("untouched")
    home = Home.open(root / "home")
    shutil.copytree(trained_toy, toy.folder(home))

    async def run() -> str:
        async with connect(str(home.root)) as client:
            job_id = await start(client, root)
            await follow(client, job_id)
        return job_id

    with pytest.MonkeyPatch.context() as patch:
        for name, value in QUIET.items():
            patch.setenv(name, value)
        yield str(home.root), asyncio.run(run())


async def test_an_untouched_run_logs_every_step_once_and_its_rerun_is_the_same(untouched: tuple[str, str]) -> None:
    home, job_id = untouched
    first = outcome(home, job_id)
    assert [row[1] for row in first[0] if row[0] == "train"] == list(range(1, STEPS + 1))
    again, differs = rerun.rerun(Workspace.open(home), job_id)
    assert differs == []
    async with connect(home) as client:
        await follow(client, again["id"])
    assert_same(first, outcome(home, again["id"]))


async def test_a_killed_worker_goes_on_from_its_checkpoint_as_if_nothing_had_been(
    home: str, tmp_path: Path, untouched: tuple[str, str]
) -> None:
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
    assert_same(outcome(home, job_id), outcome(*untouched))


async def test_a_job_goes_on_when_the_client_closes_and_when_the_server_is_killed(
    home: str, tmp_path: Path, untouched: tuple[str, str]
) -> None:
    async with connect(home) as client:
        job_id = await start(client, tmp_path)
        await until_step(client, job_id, 2)
    # The client has closed the server's stdin; the next one is killed under a client's hands.
    async with connect(home) as client:
        seen = await until_step(client, job_id, 5)
        assert seen["state"] == "running"
        alive = [child for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE]
        servers = [child for child in alive if "tunewright.server" in " ".join(child.cmdline())]
        assert len(servers) == 1
        servers[0].kill()
    async with connect(home) as client:
        assert (await follow(client, job_id))["state"] == "succeeded"
    assert Workspace.open(home).store.job(job_id)["restarts"] == 0
    assert_same(outcome(home, job_id), outcome(*untouched))


async def test_two_servers_on_one_home_see_and_cancel_the_same_job_and_it_can_be_resumed(
    home: str, tmp_path: Path, untouched: tuple[str, str]
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
    assert_same(outcome(home, job_id), outcome(*untouched))


def test_kills_at_random_moments_change_nothing(toy_workspace: Workspace) -> None:
    """The short form of the benchmark: while a checkpoint is written, while loading, while the adapter is stored."""
    command = [
        sys.executable,
        "-P",
        str(KILLS),
        "--kills",
        "3",
        "--steps",
        "23",
        "--home",
        str(toy_workspace.home.root),
    ]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=KILLS_S)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "identical: every step once" in done.stdout
    assert toy_workspace.store.rows("SELECT 1 FROM events WHERE code='interrupted'"), "nothing was killed"
