"""What the chat host and its clients agree on: where the host is found, the messages, and the sampling defaults.

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

# Sampling for models that say nothing themselves.
FALLBACK = {"temperature": 0.7, "top_p": 0.9, "top_k": 40}
# Qwen3's model card; greedy decoding in thinking mode loops.
QWEN3 = {
    False: {"temperature": 0.7, "top_p": 0.8, "top_k": 20},
    True: {"temperature": 0.6, "top_p": 0.95, "top_k": 20},
}


@dataclass(frozen=True)
class Address:
    """Where a live host listens, and the secret that proves a client may talk to it."""

    port: int
    secret: bytes
    pid: int


def address_file(workspace: Workspace) -> Path:
    return workspace.home.root / "chat.json"


def log_file(workspace: Workspace) -> Path:
    return workspace.home.root / "chat.log"


def find_host(workspace: Workspace) -> Address | None:
    """The address of the home's live chat host, or None."""
    try:
        found = files.read_json(address_file(workspace))
    except (FileNotFoundError, ValueError):
        return None
    if not processes.is_alive(found["pid"], found["pid_started"]):
        return None
    return Address(found["port"], bytes.fromhex(found["secret"]), found["pid"])


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


def sampling_defaults(folder: Path, *, thinking: bool) -> dict[str, float]:
    """Temperature, top_p and top_k that the model of `folder` asks for, by thinking mode where it has one."""
    config = folder / "config.json"
    model_type = files.read_json(config).get("model_type", "") if config.is_file() else ""
    if model_type.startswith("qwen3"):
        return dict(QWEN3[thinking])
    generation = folder / "generation_config.json"
    own = files.read_json(generation) if generation.is_file() else {}
    return {key: own.get(key, value) for key, value in FALLBACK.items()}
