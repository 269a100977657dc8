"""Asking the chat host, starting it where there is none. Light: what the server calls."""

import secrets
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import asdict
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection
from pathlib import Path
from typing import Any

from filelock import FileLock

from tunewright.pipeline import processes
from tunewright.pipeline.chat import protocol
from tunewright.pipeline.chat_template import ChatTemplate, Message
from tunewright.pipeline.errors import Cancelled, Conflict, InvalidInput, TunewrightError, Unavailable, call
from tunewright.pipeline.inference import subject
from tunewright.pipeline.workspace import Workspace

HOST_MODULE = "tunewright.pipeline.chat.host"
START_TIMEOUT_S = 30.0
POLL_S = 0.1
OnProgress = Callable[[int, str], None]


def prepare(
    workspace: Workspace, *, adapter_id: str | None, model: str | None, messages: list[Message], thinking: bool,
    compare_with_base: bool, max_new_tokens: int, sampling: dict[str, float | None], seed: int | None,
) -> dict[str, Any]:  # fmt: skip
    """The request to the host: ids and names resolved, sampling defaults filled in. Raises InvalidInput, NotFound."""
    found = subject.resolve(workspace, adapter_id=adapter_id, model=model)
    tokenizer_folder = Path(found.tokenizer_folder)
    # An adapter's folder has its tokenizer, but not the settings of its base, which may be on the Hub alone.
    settings = Path(found.base) if Path(found.base).is_dir() else tokenizer_folder
    defaults = subject.sampling_defaults(settings, thinking=thinking)
    template = ChatTemplate(tokenizer_folder, enable_thinking=thinking)
    prompt_tokens = len(template.ids(template.render(messages, add_generation_prompt=True)))
    if prompt_tokens + max_new_tokens > found.context_tokens:
        raise InvalidInput(
            "prompt_too_long",
            f"The prompt has {prompt_tokens} tokens; with max_new_tokens={max_new_tokens} that is more than the "
            f"{found.context_tokens} that {found.name} reads.",
            allowed=f"Together at most {found.context_tokens}: shorten the messages or lower max_new_tokens.",
            done="No answer was made.",
        )  # fmt: skip
    return {
        "subject": asdict(found),
        "messages": messages,
        "thinking": thinking,
        "compare_with_base": compare_with_base,
        "max_new_tokens": max_new_tokens,
        "sampling": {**defaults, **{key: value for key, value in sampling.items() if value is not None}},
        "seed": secrets.randbelow(2**31) if seed is None else seed,
    }


def ask(
    workspace: Workspace, request: dict[str, Any], on_progress: OnProgress, stop: threading.Event
) -> dict[str, Any]:
    """Sends a prepared request and waits for the answers `tuned` and `base` (each text, thinking, tokens, …, or None).

    Starts the host where none lives. `stop` set by another thread gives up (raises Cancelled) and the host stops
    generating. Raises Conflict while a job holds the device, Unavailable where the host does not come up.
    """
    with _connect(workspace, on_progress) as connection:
        protocol.send(connection, request)
        while True:
            while not connection.poll(POLL_S):
                if stop.is_set():
                    raise Cancelled("chat")
            try:
                message = protocol.receive(connection)
            except EOFError as error:
                raise _host_died(workspace) from error
            match message.pop("event"):
                case "progress":
                    on_progress(message["tokens"], message["phase"])
                case "error":
                    raise TunewrightError(
                        message["code"], message["what"], allowed=message["allowed"],
                        next=message["next"] or "check_environment()", done="No answer was made.",
                    )  # fmt: skip
                case _:
                    return message


@contextmanager
def _connect(workspace: Workspace, on_progress: OnProgress) -> Generator[Connection]:
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        address = protocol.find_host(workspace) or _start(workspace, on_progress)
        try:
            connection = Client(("127.0.0.1", address.port), authkey=address.secret)
            break
        except (ConnectionError, EOFError, AuthenticationError) as error:
            # It was just leaving, or its file is older than it: look again.
            if time.monotonic() > deadline:
                raise _host_died(workspace) from error
            time.sleep(POLL_S)
    with connection:
        yield connection


def _start(workspace: Workspace, on_progress: OnProgress) -> protocol.Address:
    """Starts the host, one starter at a time, and waits until it listens."""
    with FileLock(workspace.home.root / "chat-start.lock", thread_local=False):
        address = protocol.find_host(workspace)
        if address:
            return address
        _require_free_device(workspace)
        on_progress(0, "starting the chat host")
        alive = _start_process(workspace)
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            address = protocol.find_host(workspace)
            if address:
                return address
            if not alive():
                _require_free_device(workspace)
                break
            time.sleep(POLL_S)
        raise _host_died(workspace)


def _start_process(workspace: Workspace) -> Callable[[], bool]:
    """Under --inline too: answers need transformers as it is, and training rewrites it in its process."""
    arguments = ["--home", str(workspace.home.root)]
    pid = processes.start_detached(HOST_MODULE, arguments, protocol.log_file(workspace))
    started = processes.start_time(pid)
    return lambda: processes.is_alive(pid, started)


def _require_free_device(workspace: Workspace) -> None:
    active = workspace.store.rows(
        "SELECT * FROM jobs WHERE state IN ('running','queued') AND needs_device=1 "
        "ORDER BY state='running' DESC, seq LIMIT 1"
    )
    if active:
        progress = active[0]["progress"] or {}
        eta = f", about {progress['eta_s']:.0f} s to go" if progress.get("eta_s") else ""
        raise Conflict(
            "device_busy", f"The device is taken by {active[0]['id']} ({active[0]['state']}{eta}).",
            allowed="One job or the chat host uses a device at a time.",
            next=call("get_status", job_id=active[0]["id"], wait_s=50), done="No answer was made.",
        )  # fmt: skip


def _host_died(workspace: Workspace) -> Unavailable:
    return Unavailable(
        "chat_host_failed", f"The chat host ended or did not come up; its log is {protocol.log_file(workspace)}.",
        allowed="Most often memory: a smaller model, or load_in_4bit when training.",
        next="check_environment()", done="No answer was made.",
    )  # fmt: skip
