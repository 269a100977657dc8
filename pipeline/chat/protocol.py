"""What the chat host and its clients agree on: where the host is found, and the messages.

One request per connection over a loopback socket, both ends proving that they know the home's secret (the HMAC
challenge of multiprocessing.connection); then JSON lines, never pickles: `{"event": "progress" | "result" | "error"}`.
"""

import json
import os
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tunewright.pipeline import files, processes
from tunewright.pipeline.workspace import Workspace


@dataclass(frozen=True)
class Address:
    """Where a live host listens, and the secret that proves a client may talk to it."""

    port: int
    secret: bytes
    pid: int


@dataclass(frozen=True)
class Answer:
    """`text` is the answer, `thinking` what stood before it; `stopped` is False where the limit cut it off."""

    text: str
    thinking: str
    tokens: int
    tokens_per_s: float
    stopped: bool


def address_file(workspace: Workspace) -> Path:
    return workspace.home.root / "chat.json"


def log_file(workspace: Workspace) -> Path:
    return workspace.home.root / "chat.log"


def find_host(workspace: Workspace) -> Address | None:
    """The address of the home's live chat host; None too where the file is damaged, which a live host soon mends."""
    try:
        found = files.read_json(address_file(workspace))
        address = Address(int(found["port"]), bytes.fromhex(found["secret"]), int(found["pid"]))
        alive = processes.is_alive(address.pid, found["pid_started"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    return address if alive else None


def announce(workspace: Workspace, port: int, secret: bytes) -> None:
    """Writes this process down as the home's chat host. The home is readable by its owner alone."""
    pid = os.getpid()
    files.write_json(
        address_file(workspace),
        {"port": port, "secret": secret.hex(), "pid": pid, "pid_started": processes.start_time(pid)},
    )


def send(connection: Connection, message: dict[str, Any]) -> None:
    connection.send_bytes(json.dumps(message).encode())


def receive(connection: Connection) -> dict[str, Any]:
    """The next message. Raises EOFError when the other side has closed."""
    return json.loads(connection.recv_bytes())
