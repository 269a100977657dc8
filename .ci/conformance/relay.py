"""A relay on loopback that adds the bearer token, for a client that cannot send one: the suite has no option for it.

Guarantees: every request passes byte for byte but for two headers, Authorization, which is added, and Connection,
which ends it with its answer, so that the next one comes here anew; Host and Origin pass too, as the suite tests what
the server makes of them. An answer passes as it comes. Does not guard: who reaches the port is let in.
"""

import asyncio
import re
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress

LOOPBACK = "127.0.0.1"
PIECE_BYTES = 65536
CONNECTION = re.compile(rb"^connection:.*\r\n", re.IGNORECASE | re.MULTILINE)


@asynccontextmanager
async def adding_token(port: int, token: str) -> AsyncGenerator[int]:
    """Gives the port of a relay to `port`, for the length of the block."""

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Cancelled is what is left when everything ends early; asyncio would complain of each.
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            request, _, headers = (await reader.readuntil(b"\r\n\r\n")).partition(b"\r\n")
            onward_reader, onward = await asyncio.open_connection(LOOPBACK, port)
            added = f"\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n".encode()
            onward.write(request + added + CONNECTION.sub(b"", headers))
            ways = [asyncio.create_task(_pass(reader, onward)), asyncio.create_task(_pass(onward_reader, writer))]
            # Whoever hangs up first, the other side has nobody left to talk to.
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            for way in ways:
                way.cancel()
            onward.close()
        writer.close()

    async with await asyncio.start_server(relay, LOOPBACK, 0) as server:
        yield server.sockets[0].getsockname()[1]


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while piece := await reader.read(PIECE_BYTES):
            writer.write(piece)
            await writer.drain()
