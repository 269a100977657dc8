"""A client on the server in memory, in both eras of the protocol, and a job to read about."""

from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from mcp import Client
from mcp.types import BlobResourceContents, TextResourceContents

from tunewright.pipeline import jobs
from tunewright.pipeline.workspace import Workspace
from tunewright.server import build_server

Content = TextResourceContents | BlobResourceContents
JOB_ID = "job-numbers-0001"
STEPS = 60


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(params=["auto", "legacy"])
async def client(request: pytest.FixtureRequest, workspace: Workspace) -> AsyncIterator[Client]:
    async with Client(build_server(workspace), mode=request.param) as connected:
        yield connected


@pytest.fixture
def read(client: Client) -> Callable[[str], Awaitable[Content]]:
    """The one content of a resource, which bears the URI that was asked for."""

    async def content(uri: str) -> Content:
        (found,) = (await client.read_resource(uri)).contents
        assert str(found.uri) == uri
        return found

    return content


@pytest.fixture
def job_id(workspace: Workspace) -> str:
    """A finished fine-tune: sixty steps with falling loss, six evaluations, a log of 300 lines."""
    store = workspace.store
    (workspace.home.jobs / JOB_ID).mkdir()
    store.execute(
        "INSERT INTO jobs(id, kind, state, needs_device, spec, created_at, started_at, ended_at) "
        "VALUES (?, 'finetune', 'succeeded', 1, '{}', 1000, 1001, 1061)",
        JOB_ID,
    )
    for step in range(1, STEPS + 1):
        store.add_metric(JOB_ID, "train", step, {"loss": 3 * 0.96**step + 0.1 * (step % 3), "learning_rate": 2e-4})
    for step in range(10, STEPS + 1, 10):
        store.add_metric(JOB_ID, "eval", step, {"loss": 3.2 * 0.97**step})
    lines = [f"line {number} Zürich" for number in range(1, 301)]
    jobs.log_path(workspace, JOB_ID).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return JOB_ID
