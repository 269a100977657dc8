"""Waiting for a job inside a call: for a while, with progress, never past the time at which hosts give up (60 s)."""

import time
from contextlib import suppress
from typing import Any

import anyio
import anyio.to_thread

from tunewright.pipeline import jobs
from tunewright.pipeline.errors import Conflict, NoSpace, TunewrightError
from tunewright.pipeline.store import Row
from tunewright.pipeline.workspace import Workspace
from tunewright.tools.framework import AppContext

MAX_WAIT_S = 50
# Of calls that do their work as a job and would rather answer with its result.
USUAL_WAIT_S = 40.0
POLL_S = 0.1
RECONCILE_EVERY_S = 2.0


async def look_after(workspace: Workspace) -> NoSpace | None:
    """Finds jobs whose worker has died (`jobs.reconcile`). Returns what keeps them from being started again or marked:
    a full disk leaves them as they are, still to be read.
    """
    try:
        await anyio.to_thread.run_sync(jobs.reconcile, workspace)
    except NoSpace as error:
        return error
    return None


async def wait_for(ctx: AppContext, workspace: Workspace, job_id: str, wait_s: float) -> Row:
    """The job once it has ended, or as it is after `wait_s`; progress goes out meanwhile."""
    deadline = time.monotonic() + wait_s
    told, looked = None, time.monotonic()
    while True:
        row = workspace.store.job(job_id)
        progress: dict[str, Any] = row["progress"] or {}
        if row["state"] not in jobs.ACTIVE or time.monotonic() >= deadline:
            return row
        if progress.get("at") != told:
            told = progress.get("at")
            message = f"{progress.get('phase', row['state'])} {progress.get('done', 0):g}/{progress.get('total', 0):g}"
            # Time always grows, as the protocol asks of progress; a new phase begins its count again.
            await ctx.report_progress(round(wait_s - (deadline - time.monotonic()), 2), wait_s, message)
        if time.monotonic() - looked > RECONCILE_EVERY_S:
            looked = time.monotonic()
            await look_after(workspace)
        await anyio.sleep(POLL_S)


async def outcome(ctx: AppContext, workspace: Workspace, job_id: str) -> Row:
    """The job's row after `USUAL_WAIT_S` at most. Raises its failure; a cancelled call cancels the job."""
    try:
        row = await wait_for(ctx, workspace, job_id, USUAL_WAIT_S)
    except anyio.get_cancelled_exc_class():
        with suppress(Conflict):  # it has ended meanwhile
            jobs.cancel(workspace, job_id)
        raise
    if row["error"]:
        raise TunewrightError(**row["error"])
    return row
