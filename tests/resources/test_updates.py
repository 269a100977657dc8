"""A client that subscribed hears that a job's resources changed, in both eras, and of nothing else."""

import json
import time
from collections.abc import AsyncIterator

import anyio
import pytest
from mcp import Client
from mcp.server.subscriptions import ResourceUpdated
from mcp.types import ResourceUpdatedNotification

from tunewright.pipeline.workspace import Workspace
from tunewright.resources import updates
from tunewright.server import build_server

pytestmark = pytest.mark.anyio
TIMEOUT_S = 20


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(updates, "POLL_S", 0.02)


def _progress(workspace: Workspace, job_id: str, at: float) -> None:
    workspace.store.execute(
        "UPDATE jobs SET progress=? WHERE id=?",
        json.dumps({"phase": "training", "done": at, "total": 9, "at": at}),
        job_id,
    )


async def _keep_changing(workspace: Workspace, job_id: str) -> None:
    """A change is told to those who listened before it; so it goes on until somebody has heard."""
    while True:
        _progress(workspace, job_id, time.time())
        await anyio.sleep(0.05)


async def test_a_listener_of_the_newest_era_hears_of_its_job_alone(workspace: Workspace, job_id: str) -> None:
    async with Client(build_server(workspace)) as client, anyio.create_task_group() as tasks:
        tasks.start_soon(_keep_changing, workspace, job_id)
        with anyio.fail_after(TIMEOUT_S):
            async with client.listen(resource_subscriptions=[f"tw://jobs/{job_id}/metrics"]) as changes:
                async for event in changes:
                    assert event == ResourceUpdated(f"tw://jobs/{job_id}/metrics")
                    break
        tasks.cancel_scope.cancel()


@pytest.fixture
async def heard() -> AsyncIterator[list[str]]:
    yield []


@pytest.mark.filterwarnings("ignore:resources/(un)?subscribe is removed")
async def test_a_subscriber_of_the_older_era_hears_until_it_unsubscribes(
    workspace: Workspace, job_id: str, heard: list[str]
) -> None:
    arrived = anyio.Event()

    async def on_message(message: object) -> None:
        nonlocal arrived
        if isinstance(message, ResourceUpdatedNotification):
            heard.append(str(message.params.uri))
            arrived.set()

    async with Client(build_server(workspace), mode="legacy", message_handler=on_message) as client:
        assert client.server_capabilities.resources and client.server_capabilities.resources.subscribe
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_keep_changing, workspace, job_id)
            await client.subscribe_resource(f"tw://jobs/{job_id}")
            with anyio.fail_after(TIMEOUT_S):
                await arrived.wait()
            await client.unsubscribe_resource(f"tw://jobs/{job_id}")
            # What was under way arrives before the answer to another call.
            await client.list_resources()
            heard.clear()
            await client.subscribe_resource("tw://jobs")
            arrived = anyio.Event()
            with anyio.fail_after(TIMEOUT_S):
                await arrived.wait()
            tasks.cancel_scope.cancel()
    assert set(heard) == {"tw://jobs"}


async def test_the_store_is_not_looked_at_while_nobody_listens(workspace: Workspace) -> None:
    bus = updates.Updates(workspace)
    looked = 0

    def look() -> updates.Seen:
        nonlocal looked
        looked += 1
        return {}

    bus._look = look  # type: ignore[method-assign]
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(bus.watch)
        await anyio.sleep(0.1)
        assert looked == 0
        leave = bus.subscribe(lambda event: None)
        with anyio.fail_after(TIMEOUT_S):
            while not looked:
                await anyio.sleep(0.01)
        leave()
        leave()
        assert bus._streams == 0
        tasks.cancel_scope.cancel()
