"""The tasks extension (`io.modelcontextprotocol/tasks`, SEP-2663) over the same jobs, for clients that declare it.

A call that began a job answers such a client with a task instead of the job's id, and the client polls `tasks/get` by
itself; the task's id is the job's. All others get the id and call get_status. A job that failed is a task that
`completed` with `isError`, as SEP-2663 says of a tool's own failure; an interrupted job is still `working` while it may
go on by itself. Nothing is stored beside the jobs, so a task outlives every server, too.
"""

import json
from datetime import UTC, datetime
from typing import Any

from mcp.server.context import ServerRequestContext
from mcp.server.mcpserver import Extension, MethodBinding
from mcp.server.mcpserver.server import require_client_extension
from mcp.shared.exceptions import MCPError
from mcp.types import INVALID_PARAMS, CallToolRequestParams, CallToolResult, RequestParams, TextContent
from pydantic import ConfigDict, Field

from tunewright.pipeline import jobs, status
from tunewright.pipeline.errors import TunewrightError
from tunewright.pipeline.jobs import State
from tunewright.pipeline.store import Row
from tunewright.pipeline.workspace import Workspace

IDENTIFIER = "io.modelcontextprotocol/tasks"
# The extension belongs to this revision of the protocol; the older ones had another of the same name.
VERSIONS = frozenset({"2026-07-28"})
POLL_INTERVAL_MS = 5000
# Tools that ask about jobs or change them answer themselves, whatever the job's state.
ABOUT_JOBS = ("get_status", "cancel_job", "submit_judgements")
Answer = dict[str, Any]
Request = ServerRequestContext[Any, Any]


class TaskParams(RequestParams):
    model_config = ConfigDict(populate_by_name=True)

    task_id: str = Field(alias="taskId")


class Tasks(Extension):
    """Offers every active job that a call began as a task."""

    identifier = IDENTIFIER

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace

    def methods(self) -> list[MethodBinding]:
        return [
            MethodBinding("tasks/get", TaskParams, self._get, VERSIONS),
            MethodBinding("tasks/update", TaskParams, self._update, VERSIONS),
            MethodBinding("tasks/cancel", TaskParams, self._cancel, VERSIONS),
        ]

    async def intercept_tool_call(self, params: CallToolRequestParams, ctx: Request, call_next: Any) -> Any:
        answer = await call_next(ctx)
        if params.name in ABOUT_JOBS or not _declared(ctx) or not isinstance(answer, CallToolResult):
            return answer
        started = answer.structured_content or {}
        if answer.is_error or not started.get("job_id") or started.get("state") not in jobs.ACTIVE:
            return answer
        return {"resultType": "task", **_task(self._workspace.store.job(started["job_id"]))}

    async def _get(self, ctx: Request, params: TaskParams) -> Answer:
        row = self._job(ctx, params)
        task = _task(row)
        if task["status"] == "completed":
            task["result"] = _result(self._workspace, row).model_dump(mode="json", by_alias=True, exclude_none=True)
        return {"resultType": "complete", **task}

    async def _update(self, ctx: Request, params: TaskParams) -> Answer:
        # Answers to questions of a task: ours ask none, and what nobody asked for is to be ignored.
        self._job(ctx, params)
        return {"resultType": "complete"}

    async def _cancel(self, ctx: Request, params: TaskParams) -> Answer:
        row = self._job(ctx, params)
        if row["state"] in (*jobs.ACTIVE, State.INTERRUPTED):
            jobs.cancel(self._workspace, row["id"])
        return {"resultType": "complete"}

    def _job(self, ctx: Request, params: TaskParams) -> Row:
        require_client_extension(ctx, IDENTIFIER)
        jobs.reconcile(self._workspace)
        found = self._workspace.store.rows("SELECT * FROM jobs WHERE id=?", params.task_id)
        if not found:
            raise MCPError(code=INVALID_PARAMS, message=f"There is no task {params.task_id!r}.")
        return found[0]


def _declared(ctx: Request) -> bool:
    capabilities = ctx.session.client_capabilities
    return IDENTIFIER in ((capabilities.extensions if capabilities else None) or {})


def _task(row: Row) -> Answer:
    progress = row["progress"] or {}
    changed = row["ended_at"] or progress.get("at") or row["started_at"] or row["created_at"]
    ended = row["state"] in (State.SUCCEEDED, State.FAILED)
    is_cancelled = row["state"] == State.CANCELLED
    return {
        "taskId": row["id"],
        "status": "completed" if ended else "cancelled" if is_cancelled else "working",
        "statusMessage": f"{row['kind']} {row['state']}" + (f": {progress['phase']}" if "phase" in progress else ""),
        "createdAt": _time(row["created_at"]),
        "lastUpdatedAt": _time(changed),
        # A job is kept until it is deleted.
        "ttlMs": None,
        "pollIntervalMs": POLL_INTERVAL_MS,
    }


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _result(workspace: Workspace, row: Row) -> CallToolResult:
    """What get_status tells of the job that has ended, or its error."""
    if row["error"]:
        text = str(TunewrightError(**row["error"]))
        return CallToolResult(content=[TextContent(type="text", text=text)], is_error=True)
    told = status.describe(workspace, row, events=4)
    structured = {"job_id": row["id"], "state": row["state"], "next_steps": []}
    return CallToolResult(
        content=[TextContent(type="text", text=json.dumps(told, ensure_ascii=False))], structured_content=structured
    )
