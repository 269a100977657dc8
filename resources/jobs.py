"""tw://environment, tw://jobs and what lies below."""

import json
from typing import Any

from mcp.server import MCPServer
from mcp.server.mcpserver.exceptions import ResourceNotFoundError

from tunewright.pipeline import environment, files, jobs, plots, redact, status
from tunewright.pipeline.errors import InvalidInput, TunewrightError
from tunewright.pipeline.store import Row
from tunewright.pipeline.workspace import Workspace

MAX_TAIL_LINES, MAX_TAIL_BYTES = 2000, 1_000_000


def register(server: MCPServer[Any], workspace: Workspace) -> None:
    """Adds these resources to the server."""

    @server.resource("tw://environment", mime_type="application/json", description="What this machine is.")
    def environment_resource() -> str:
        return json.dumps(environment.check(workspace), indent=2)

    @server.resource("tw://jobs", mime_type="application/json", description="The last twenty jobs.")
    def jobs_resource() -> str:
        return json.dumps([status.summarise(row) for row in jobs.newest(workspace)], indent=2)

    @server.resource("tw://jobs/{job_id}", mime_type="application/json", description="One job with its curves.")
    def job_resource(job_id: str) -> str:
        return json.dumps(status.describe(workspace, _job(workspace, job_id), events=50), indent=2)

    @server.resource("tw://jobs/{job_id}/metrics", mime_type="application/json", description="Every stored step.")
    def metrics_resource(job_id: str) -> str:
        rows = workspace.store.metrics(_job(workspace, job_id)["id"])
        return json.dumps([{"split": r["split"], "step": r["step"], **r["numbers"]} for r in rows])

    @server.resource("tw://jobs/{job_id}/log{?tail}", mime_type="text/plain", description="The worker's log, its end.")
    def log_resource(job_id: str, tail: str = "200") -> str:
        job_id = _job(workspace, job_id)["id"]
        lines = files.log_end(jobs.log_path(workspace, job_id), MAX_TAIL_BYTES).splitlines()
        # What a program wrote to the log itself has passed no filter.
        return redact.without_secrets("\n".join(lines[-_tail_lines(job_id, tail) :]))

    @server.resource("tw://jobs/{job_id}/loss.png", mime_type="image/png", description="The loss curve.")
    def loss_resource(job_id: str) -> bytes:
        try:
            return plots.loss_png(workspace, job_id)
        except TunewrightError as error:
            raise ResourceNotFoundError(str(error)) from error

    @server.resource("tw://jobs/{job_id}/report.html", mime_type="text/html", description="A job as a page.")
    def report_resource(job_id: str) -> str:
        # Not with the server: it is as large as all the rest of this, and most clients never ask.
        from tunewright.pipeline import reports

        try:
            return reports.page(workspace, job_id)
        except TunewrightError as error:
            raise ResourceNotFoundError(str(error)) from error


def _tail_lines(job_id: str, tail: str) -> int:
    """How many lines `?tail=` asks for: a number beyond the limits is taken to the nearest."""
    try:
        return max(1, min(int(tail), MAX_TAIL_LINES))
    except ValueError:
        refused = InvalidInput(
            "invalid_tail", f"tail={tail[:40]!r} is no whole number of lines.", allowed=f"1 to {MAX_TAIL_LINES}.",
            next=f"read tw://jobs/{job_id}/log?tail=200",
        )  # fmt: skip
        raise ResourceNotFoundError(str(refused)) from None


def _job(workspace: Workspace, job_id: str) -> Row:
    try:
        return workspace.store.job(job_id)
    except TunewrightError as error:
        raise ResourceNotFoundError(str(error)) from error
