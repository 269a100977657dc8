"""Tells clients that subscribed that a job's resources have changed, in both eras of the protocol.

Newest era: `subscriptions/listen` streams, fed by the SDK's bus. Older ones: `resources/subscribe`, which the SDK
leaves to the low-level server (`_lowlevel_server` and a session's `_connection`, both private;
tests/resources/test_updates.py holds them). Nothing is looked at while nobody listens. A change is told within POLL_S,
changes in between once.
"""

from collections.abc import Callable
from typing import Any

import anyio
import anyio.to_thread
from mcp.server import MCPServer
from mcp.server.connection import Connection
from mcp.server.context import ServerRequestContext
from mcp.server.subscriptions import InMemorySubscriptionBus, ResourceUpdated, ServerEvent
from mcp.types import EmptyResult, SubscribeRequestParams, UnsubscribeRequestParams

from tunewright.pipeline import jobs
from tunewright.pipeline.workspace import Workspace

POLL_S = 1.0
LOOKED_AT = 50
# What a job's progress or end changes, below tw://jobs/{id}.
PARTS = ("", "/metrics", "/log", "/loss.png", "/report.html")
Request = ServerRequestContext[Any, Any]
Seen = dict[str, tuple[str, float | None]]


class Updates(InMemorySubscriptionBus):
    """The server's bus of changes: give it as `subscriptions=`, call `offer` once, and run `watch` while serving."""

    def __init__(self, workspace: Workspace) -> None:
        super().__init__()
        self._workspace = workspace
        self._streams = 0
        self._subscribed: dict[Connection, set[str]] = {}

    def subscribe(self, listener: Callable[[ServerEvent], None]) -> Callable[[], None]:
        leave, self._streams = super().subscribe(listener), self._streams + 1
        has_left = False

        def unsubscribe() -> None:
            nonlocal has_left
            if not has_left:
                has_left = True
                self._streams -= 1
            leave()

        return unsubscribe

    def offer(self, server: MCPServer[Any]) -> None:
        """Adds `resources/subscribe` and `resources/unsubscribe` for clients of the older eras."""

        async def subscribe(ctx: Request, params: SubscribeRequestParams) -> EmptyResult:
            connection = _connection(ctx)
            if connection not in self._subscribed:
                self._subscribed[connection] = set()
                connection.exit_stack.callback(self._subscribed.pop, connection)
            self._subscribed[connection].add(str(params.uri))
            return EmptyResult()

        async def unsubscribe(ctx: Request, params: UnsubscribeRequestParams) -> EmptyResult:
            self._subscribed.get(_connection(ctx), set()).discard(str(params.uri))
            return EmptyResult()

        lowlevel = server._lowlevel_server  # pyright: ignore[reportPrivateUsage]
        lowlevel.add_request_handler("resources/subscribe", SubscribeRequestParams, subscribe)
        lowlevel.add_request_handler("resources/unsubscribe", UnsubscribeRequestParams, unsubscribe)

    async def watch(self) -> None:
        """Looks for changed jobs as long as it runs, while somebody listens."""
        seen: Seen | None = None
        while True:
            await anyio.sleep(POLL_S)
            if not self._streams and not any(self._subscribed.values()):
                seen = None
                continue
            now = await anyio.to_thread.run_sync(self._look)
            if seen is not None:
                await self._tell([job_id for job_id in now if seen.get(job_id) != now[job_id]])
            seen = now

    def _look(self) -> Seen:
        rows = jobs.newest(self._workspace, LOOKED_AT)
        return {row["id"]: (row["state"], (row["progress"] or {}).get("at")) for row in rows}

    async def _tell(self, changed: list[str]) -> None:
        uris = [f"tw://jobs/{job_id}{part}" for job_id in changed for part in PARTS]
        for uri in (["tw://jobs"] if changed else []) + uris:
            await self.publish(ResourceUpdated(uri))
            for connection, wanted in list(self._subscribed.items()):
                if uri in wanted:
                    await connection.send_resource_updated(uri)


def _connection(ctx: Request) -> Connection:
    """A session is made anew for each request; what lives as long as the client is its connection."""
    return ctx.session._connection  # pyright: ignore[reportPrivateUsage]
