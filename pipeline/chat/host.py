"""The chat host: `python -P -m tunewright.pipeline.chat.host --home H`. Shared by every server on the home.

Holds the device lease while it lives. Leaves after IDLE_S without a request, or as soon as a queued job waits for the
device and no answer is being made.
"""

import argparse
import logging
import os
import secrets
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, Listener, answer_challenge, deliver_challenge
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunewright.pipeline import lease, redact, unforeseen
from tunewright.pipeline.chat import protocol
from tunewright.pipeline.chat.protocol import Answer
from tunewright.pipeline.chat_template import ChatTemplate
from tunewright.pipeline.errors import TunewrightError, call
from tunewright.pipeline.inference import answers
from tunewright.pipeline.inference.requests import Request, Sampling
from tunewright.pipeline.inference.subject import Subject
from tunewright.pipeline.workspace import Workspace

if TYPE_CHECKING:
    from tunewright.pipeline.inference.engine import Engine

IDLE_S = 600.0
WATCH_S = 0.5
PROGRESS_EVERY_S = 0.5

log = logging.getLogger("tunewright.chat")


def described(error: Exception, log_file: Path) -> dict[str, str]:
    """An unforeseen failure in the form of a foreseen one (`TunewrightError.to_dict`)."""
    cause, again = unforeseen.cause(error), call("list_artifacts")
    if cause == "out_of_memory":
        allowed = "A shorter prompt, a smaller max_new_tokens or a smaller base model needs less."
        again = call("check_environment")
    elif cause == "no_disk_space":
        allowed = "Free some space; list_artifacts() shows what is there."
    elif cause == "weights_damaged":
        allowed = f"Weights of the adapter or its base are not whole; {log_file} says where. Make or fetch them again."
    else:
        allowed, again = f"The traceback stands in {log_file}.", call("check_environment")
    code, what = cause or "chat_failed", unforeseen.in_brief(error)
    return {"code": code, "what": what, "allowed": allowed, "next": again, "done": "Nothing was changed."}


class Host:
    """Serves one request at a time; `serve` returns when the host leaves."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._one_at_a_time = threading.Lock()
        self._waiting = 0
        self._last_use = time.monotonic()
        self._engine: Engine | None = None

    def serve(self) -> bool:
        """Takes the lease, listens, and stays until idle or unwanted. Returns False where no device was free."""
        device, lock = self._take_device()
        if lock is None:
            return False
        try:
            device.make_visible()
            secret = secrets.token_bytes(32)
            # Without authkey: a stranger who connects and says nothing would hold up everybody in accept().
            with Listener(("127.0.0.1", 0)) as listener:
                port = int(listener.address[1])  # type: ignore[index]
                protocol.announce(self._workspace, port, secret)
                threading.Thread(target=self._accept, args=(listener, secret), daemon=True).start()
                self._watch(port, secret)
                protocol.address_file(self._workspace).unlink(missing_ok=True)
        finally:
            if self._engine is not None:
                self._engine.unload()
            lock.release()
        return True

    def _take_device(self) -> Any:
        for device in lease.devices():
            lock = lease.try_take(self._workspace, device)
            if lock is not None:
                return device, lock
        return None, None

    def _watch(self, port: int, secret: bytes) -> None:
        own = protocol.Address(port, secret, os.getpid())
        while True:
            time.sleep(WATCH_S)
            if protocol.find_host(self._workspace) != own:
                # Lost or damaged: no other host can begin while this one holds the device. On a full disk, next time.
                with suppress(OSError):
                    protocol.announce(self._workspace, port, secret)
            busy = self._waiting > 0
            idle_s = time.monotonic() - self._last_use
            if not busy and (idle_s > IDLE_S or lease.is_wanted(self._workspace)):
                return

    def _accept(self, listener: Listener, secret: bytes) -> None:
        while True:
            try:
                connection = listener.accept()
            except OSError:
                return  # the listener was closed: the host leaves
            threading.Thread(target=self._greet, args=(connection, secret), daemon=True).start()

    def _greet(self, connection: Connection, secret: bytes) -> None:
        with connection:
            try:
                deliver_challenge(connection, secret)
                answer_challenge(connection, secret)
            except (AuthenticationError, EOFError, OSError):
                log.warning("a client without the secret was turned away")
                return
            self._handle(connection)

    def _handle(self, connection: Connection) -> None:
        self._waiting += 1
        try:
            with self._one_at_a_time:
                self._reply(connection)
        except (EOFError, OSError):
            log.info("a client left before its answer was ready")
        finally:
            self._last_use = time.monotonic()
            self._waiting -= 1

    def _reply(self, connection: Connection) -> None:
        request = protocol.receive(connection)
        try:
            result = self._answer(connection, request)
        except TunewrightError as error:
            protocol.send(connection, {"event": "error", **error.to_dict()})
        except (EOFError, OSError):
            raise
        except Exception as error:
            log.exception("answering failed")
            protocol.send(connection, {"event": "error", **described(error, protocol.log_file(self._workspace))})
        else:
            protocol.send(connection, {"event": "result", **result})

    def _answer(self, connection: Connection, request: dict[str, Any]) -> dict[str, Any]:
        protocol.send(connection, {"event": "progress", "tokens": 0, "phase": "loading the model"})
        if self._engine is None:
            from tunewright.pipeline.inference.engine import Engine

            self._engine = Engine()
        tuned = Subject(**request["subject"])
        asked = {"tuned": tuned} if tuned.adapter_id else {"base": tuned}
        if request["compare_with_base"]:
            asked["base"] = tuned.untrained
        result: dict[str, Any] = {"tuned": None, "base": None}
        for which, subject in asked.items():
            self._engine.load(subject)
            result[which] = asdict(_answer(self._engine, subject, request, _progress(connection, which)))
        return result


def _answer(
    engine: "Engine", subject: Subject, request: dict[str, Any], on_token: Callable[[int, int], bool]
) -> Answer:
    template = ChatTemplate(Path(subject.tokenizer_folder), enable_thinking=request["thinking"])
    ends = engine.ends(template)
    [answer] = engine.generate(
        [
            Request(
                template.ids(template.render(request["messages"], add_generation_prompt=True)),
                request["max_new_tokens"], ends, Sampling(**request["sampling"]), request["seed"],
            )
        ],
        adapter_id=subject.adapter_id, on_token=on_token,
    )  # fmt: skip
    text, thinking = answers.split(template, answer.ids)
    tokens = len(answer.ids)
    speed = round(tokens / answer.seconds, 1) if answer.seconds else 0.0
    return Answer(text, thinking, tokens, speed, stopped=answer.ended == "stop")


def _progress(connection: Connection, which: str) -> Callable[[int, int], bool]:
    """Reports now and then, and stops the generation once the client has gone."""
    told, count = 0.0, 0

    def on_token(index: int, token: int) -> bool:
        nonlocal told, count
        count += 1
        if time.monotonic() - told > PROGRESS_EVERY_S:
            told = time.monotonic()
            try:
                protocol.send(connection, {"event": "progress", "tokens": count, "phase": f"{which} answers"})
            except OSError:
                return False
        return True

    return on_token


def main() -> None:
    parser = argparse.ArgumentParser(prog="tunewright-chat-host")
    parser.add_argument("--home", required=True)
    redact.redact_output()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    taken = Host(Workspace.open(parser.parse_args().home)).serve()
    raise SystemExit(0 if taken else 1)


if __name__ == "__main__":
    main()
