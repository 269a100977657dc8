"""The tasks extension: the same jobs as tasks for clients that declare it, and nothing new for all others."""

from typing import Any, Literal

import anyio
import jsonschema
import pytest
from mcp import Client, MCPError
from mcp.client.extension import ClaimContext, ClientExtension, ResultClaim
from mcp.types import CallToolResult, Request, RequestParams, Result
from pydantic import ConfigDict, Field

from tunewright.pipeline.workspace import Workspace
from tunewright.server import build_server
from tunewright.tools import tasks

pytestmark = pytest.mark.anyio
METHOD_NOT_FOUND, INVALID_PARAMS, MISSING_CAPABILITY = -32601, -32602, -32021
TIMEOUT_S = 60
# The form of a task in SEP-2663.
TASK = {
    "type": "object",
    "required": ["taskId", "status", "createdAt", "lastUpdatedAt", "ttlMs"],
    "properties": {
        "taskId": {"type": "string"},
        "status": {"enum": ["working", "input_required", "completed", "failed", "cancelled"]},
        "statusMessage": {"type": "string"},
        "createdAt": {"type": "string", "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$"},
        "lastUpdatedAt": {"type": "string", "pattern": r"Z$"},
        "ttlMs": {"type": ["integer", "null"]},
        "pollIntervalMs": {"type": "integer"},
    },
}


class Started(Result):
    result_type: Literal["task"] = Field("task", alias="resultType")
    task_id: str = Field(alias="taskId")
    status: str


class Params(RequestParams):
    task_id: str = Field(alias="taskId")


class Asked(Request[Params, str]):
    pass


class Anything(Result):
    model_config = ConfigDict(extra="allow")


async def ask(client: Client, method: str, task_id: str) -> dict[str, Any]:
    answer = await client.session.send_request(Asked(method=method, params=Params(taskId=task_id)), Anything)
    return answer.model_dump(by_alias=True)


class Follows(ClientExtension):
    """A client that polls its tasks by itself and hands out their results."""

    identifier = tasks.IDENTIFIER

    def __init__(self) -> None:
        self.began: list[str] = []
        self.client: Client | None = None

    def claims(self) -> list[ResultClaim[Any]]:
        return [ResultClaim(result_type="task", model=Started, resolve=self._resolve)]

    async def _resolve(self, started: Started, context: ClaimContext) -> CallToolResult:
        assert self.client is not None
        self.began.append(started.task_id)
        with anyio.fail_after(TIMEOUT_S):
            while True:
                task = await ask(self.client, "tasks/get", started.task_id)
                jsonschema.validate(task, TASK)
                if task["status"] == "completed":
                    return CallToolResult.model_validate(task["result"])
                if task["status"] != "working":
                    raise AssertionError(task)
                await anyio.sleep(0.05)


@pytest.fixture
def follows() -> Follows:
    return Follows()


async def test_a_job_that_ends_is_the_answer_of_the_call_that_began_it(
    workspace: Workspace, follows: Follows, held_device: Any, dataset_id: str
) -> None:
    async with Client(build_server(workspace), extensions=[follows]) as client:
        follows.client = client
        answers: list[CallToolResult] = []

        async def train() -> None:
            answers.append(await client.call_tool("start_finetune", {"dataset_id": dataset_id, "model": "toy"}))

        async with anyio.create_task_group() as group:
            group.start_soon(train)
            with anyio.fail_after(TIMEOUT_S):
                while not follows.began:
                    await anyio.sleep(0.02)
            (job_id,) = follows.began
            task = await ask(client, "tasks/get", job_id)
            assert (task["taskId"], task["status"]) == (job_id, "working")
            workspace.store.execute("UPDATE jobs SET state='succeeded', ended_at=created_at+5 WHERE id=?", job_id)
    (answer,) = answers
    assert not answer.is_error
    assert answer.structured_content == {"job_id": job_id, "state": "succeeded", "next_steps": []}


async def test_a_cancelled_task_is_a_cancelled_job(
    workspace: Workspace, follows: Follows, held_device: Any, dataset_id: str
) -> None:
    async with Client(build_server(workspace), extensions=[follows]) as client:
        started = await client.session.call_tool(
            "start_finetune", {"dataset_id": dataset_id, "model": "toy"}, allow_claimed=True
        )
        assert isinstance(started, Started)
        await ask(client, "tasks/update", started.task_id)
        await ask(client, "tasks/cancel", started.task_id)
        with anyio.fail_after(TIMEOUT_S):
            while (await ask(client, "tasks/get", started.task_id))["status"] != "cancelled":
                await anyio.sleep(0.05)
        assert workspace.store.job(started.task_id)["state"] == "cancelled"
        await ask(client, "tasks/cancel", started.task_id)


async def test_a_failed_job_is_a_completed_task_whose_result_is_an_error(
    workspace: Workspace, follows: Follows, ended_job: Any
) -> None:
    error = {"code": "no_metrics", "what": "Nothing.", "allowed": "", "next": "", "done": ""}
    job_id = ended_job("export", "failed", error=error)
    async with Client(build_server(workspace), extensions=[follows]) as client:
        task = await ask(client, "tasks/get", job_id)
        assert (task["status"], task["result"]["isError"]) == ("completed", True)
        assert task["result"]["content"][0]["text"].startswith("no_metrics: Nothing.")
        with pytest.raises(MCPError) as refused:
            await ask(client, "tasks/get", job_id[:6])
        assert refused.value.error.code == INVALID_PARAMS


@pytest.mark.parametrize(("mode", "code"), [("auto", MISSING_CAPABILITY), ("legacy", METHOD_NOT_FOUND)])
async def test_a_client_that_declares_nothing_gets_ids_and_no_tasks(
    workspace: Workspace, held_device: Any, dataset_id: str, mode: Any, code: int
) -> None:
    async with Client(build_server(workspace), mode=mode) as client:
        answer = await client.call_tool("start_finetune", {"dataset_id": dataset_id, "model": "toy"})
        assert answer.structured_content and answer.structured_content["state"] == "queued"
        job_id = answer.structured_content["job_id"]
        with pytest.raises(MCPError) as refused:
            await ask(client, "tasks/get", job_id)
        assert refused.value.error.code == code
        await client.call_tool("cancel_job", {"job_id": job_id})
