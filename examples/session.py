"""A client's side of a conversation with the server: start it over stdio, call tools, follow jobs.

This is all that an MCP client in plain Python needs; demo.py and main_job.py are built on it.
"""

import os
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client

JOB_WAIT_S = 50
ENDED = ("succeeded", "failed", "cancelled", "interrupted")
Answer = dict[str, Any]


class ToolFailed(RuntimeError):
    """A tool answered with an error; the text is what an agent would read."""


@asynccontextmanager
async def connect(home: str | None = None, *options: str, log: Path | None = None) -> AsyncGenerator[Client]:
    """Starts `tunewright` as a child and speaks MCP with it over its standard streams; its log goes to `log`."""
    arguments = ["-P", "-m", "tunewright.server", *(["--home", home] if home else []), *options]
    # The SDK passes on a short list of variables only; the server wants HF_TOKEN, OLLAMA_HOST and their like.
    server = StdioServerParameters(command=sys.executable, args=arguments, env=dict(os.environ))
    with (log or Path(os.devnull)).open("w", encoding="utf-8") as errors:
        async with Client(stdio_client(server, errlog=errors)) as client:
            yield client


def failure(error: BaseException) -> ToolFailed | None:
    """The ToolFailed that `error` is, or that went through the task groups of a connection; None for anything else."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error if isinstance(error, ToolFailed) else None


async def call(client: Client, tool: str, on_progress: Callable[[str], None] | None = None, **arguments: Any) -> Answer:
    """A tool's structured answer. Raises ToolFailed."""

    async def report(progress: float, total: float | None, message: str | None) -> None:
        if on_progress:
            on_progress(message or "")

    result = await client.call_tool(tool, arguments, progress_callback=report)
    if result.is_error or result.structured_content is None:
        raise ToolFailed("".join(getattr(part, "text", "") for part in result.content))
    return result.structured_content


async def follow(
    client: Client, job_id: str, on_status: Callable[[Answer], None] | None = None, wait_s: float = JOB_WAIT_S
) -> Answer:
    """Waits until a job has ended; `on_status` sees every answer on the way. Raises ToolFailed unless it succeeded."""
    while True:
        status = (await call(client, "get_status", job_id=job_id, wait_s=wait_s))["job"]
        if on_status:
            on_status(status)
        if status["state"] in ENDED:
            break
    if status["state"] != "succeeded":
        raise ToolFailed(f"{job_id} {status['state']}: {status['error']}")
    return status
