"""Tunewright on HTTP in a process of its own, as a service manager runs it, and the SDK's client on it."""

import os
import re
import ssl
import subprocess
import sys
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import httpx2
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

TIMEOUT_S = 60
COMMAND = [sys.executable, "-P", "-m", "tunewright.server"]


@dataclass(frozen=True)
class HttpProcess:
    process: "subprocess.Popen[bytes]"
    url: str
    home: Path
    stderr: Path

    @property
    def token(self) -> str:
        return (self.home / "http-token").read_text(encoding="utf-8").strip()

    @property
    def bearer(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}


@contextmanager
def serving_http(home: Path, *options: str, command: list[str] = COMMAND, **env: str) -> Generator[HttpProcess]:
    """`tunewright serve --http` on a free port, from the moment that it says where, to the end of the block."""
    stderr = home.with_name(f"{home.name}-http.txt")
    with (
        stderr.open("wb") as errors,
        subprocess.Popen(
            [*command, "--home", str(home), "serve", "--http", "--port", "0", *options], stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=errors, cwd=home.parent, env={**os.environ, **env},
        ) as process,
    ):  # fmt: skip
        try:
            yield HttpProcess(process, _address(process, stderr), home, stderr)
        finally:
            process.kill()


def _address(process: "subprocess.Popen[bytes]", stderr: Path) -> str:
    """What the server says once it listens. Between two looks its end is waited for: a failure shows at once."""
    for _ in range(TIMEOUT_S * 20):
        told = stderr.read_text(encoding="utf-8")
        if found := re.search(r"serves (\S+)/mcp\.[\s\S]*jobs, live.*\n", told):
            return found[1]
        try:
            raise RuntimeError(f"the server ended with {process.wait(0.05)}: {told}")
        except subprocess.TimeoutExpired:
            continue
    raise TimeoutError(stderr.read_text(encoding="utf-8"))


@asynccontextmanager
async def connected(
    url: str, headers: dict[str, str], mode: Literal["auto", "legacy"] = "auto", tls: ssl.SSLContext | None = None,
    **more: Any,
) -> AsyncGenerator[Client]:  # fmt: skip
    """The SDK's client over streamable HTTP, in the newest era or in that of the handshake."""
    async with httpx2.AsyncClient(headers=headers, timeout=TIMEOUT_S, verify=tls or True) as http:
        transport = streamable_http_client(f"{url}/mcp", http_client=http)
        async with Client(transport, mode=mode, **more) as client:
            yield client
