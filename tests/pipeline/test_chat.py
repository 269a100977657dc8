"""The chat host as a process and what is asked of it, up to the point where a model would be loaded."""

import errno
import json
import shutil
import socket
from collections.abc import Callable, Iterator
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client
from pathlib import Path
from shutil import copyfile
from threading import Event
from typing import Any

import numpy as np
import psutil
import pytest
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from tunewright.pipeline import jobs, lease, processes
from tunewright.pipeline.chat import client, protocol
from tunewright.pipeline.chat import host as chat_host
from tunewright.pipeline.chat.protocol import Address
from tunewright.pipeline.errors import Cancelled, Conflict, InvalidInput, NotFound, Unavailable
from tunewright.pipeline.lease import Device
from tunewright.pipeline.workspace import Workspace

Eventually = Callable[..., None]
Prepare = Callable[..., dict[str, Any]]
HELLO = [{"role": "user", "content": "Hello"}]
REPLY_S = 30


@pytest.fixture
def prepare(workspace: Workspace) -> Prepare:
    def prepared(**changes: Any) -> dict[str, Any]:
        request: dict[str, Any] = {
            "adapter_id": None, "model": None, "messages": HELLO, "thinking": False, "compare_with_base": False,
            "max_new_tokens": 16, "sampling": {}, "seed": None,
        }  # fmt: skip
        return client.prepare(workspace, **{**request, **changes})

    return prepared


@pytest.fixture
def host(workspace: Workspace, eventually: Eventually) -> Iterator[Address]:
    """A chat host on the workspace's home, started as the client starts it."""
    pid = processes.start_detached(
        client.HOST_MODULE, ["--home", str(workspace.home.root)], protocol.log_file(workspace)
    )
    process = psutil.Process(pid)
    eventually(lambda: protocol.find_host(workspace))
    address = protocol.find_host(workspace)
    assert address is not None and address.pid == pid
    yield address
    if process.is_running():
        process.kill()
        process.wait(10)


def wait_in_line(workspace: Workspace) -> None:
    workspace.store.execute(
        "INSERT INTO jobs(id, kind, state, needs_device, spec, created_at) VALUES ('job-1','finetune',?,1,'{}',0)",
        jobs.State.QUEUED,
    )


def test_a_host_holds_the_device_and_leaves_it_to_the_first_job_that_waits(
    workspace: Workspace, host: Address, eventually: Eventually
) -> None:
    assert lease.try_take(workspace, Device(None)) is None
    wait_in_line(workspace)
    eventually(lambda: protocol.find_host(workspace) is None)
    eventually(lambda: processes.start_time(host.pid) is None)
    assert not protocol.address_file(workspace).exists()
    lock = lease.try_take(workspace, Device(None))
    assert lock is not None
    lock.release()


@pytest.mark.parametrize("damage", ["", "{}", "[]", '{"port": null, "secret": "zz", "pid": 1}', "another", None])
def test_a_live_host_is_found_again_after_its_file_was_lost_or_damaged(
    workspace: Workspace, host: Address, eventually: Eventually, damage: str | None
) -> None:
    path = protocol.address_file(workspace)
    if damage == "another":
        protocol.announce(workspace, host.port + 1, b"of this process")
    elif damage is None:
        path.unlink()
    else:
        path.write_text(damage, encoding="utf-8")
    eventually(lambda: protocol.find_host(workspace) == host)


def test_who_does_not_know_the_secret_is_turned_away(workspace: Workspace, host: Address) -> None:
    with pytest.raises(AuthenticationError):
        Client(("127.0.0.1", host.port), authkey=b"guess")
    assert protocol.find_host(workspace) == host


def test_a_stranger_who_says_nothing_holds_nobody_up(
    workspace: Workspace, host: Address, eventually: Eventually
) -> None:
    with (
        socket.create_connection(("127.0.0.1", host.port)),
        Client(("127.0.0.1", host.port), authkey=host.secret) as connection,
    ):
        protocol.send(connection, {})
        assert connection.poll(REPLY_S)
        assert protocol.receive(connection) == {"event": "progress", "tokens": 0, "phase": "loading the model"}


def test_a_host_that_finds_the_device_taken_leaves(workspace: Workspace) -> None:
    lock = lease.try_take(workspace, Device(None))
    assert lock is not None
    with pytest.raises(Unavailable, match=r"chat_host_failed: .*chat\.log"):
        client.ask(workspace, {}, lambda tokens, phase: None, Event())
    lock.release()


def test_while_a_job_has_the_device_the_answer_is_which_and_how_long(workspace: Workspace) -> None:
    wait_in_line(workspace)
    workspace.store.execute("UPDATE jobs SET state='running', progress=?", json.dumps({"eta_s": 42.4}))
    workspace.store.execute(
        "INSERT INTO jobs(id, kind, state, needs_device, spec, created_at, seq) VALUES (?,?,?,?,?,?,?)",
        "job-0", "export", "queued", True, "{}", 0.0, -1,
    )  # fmt: skip
    with pytest.raises(Conflict) as caught:
        client.ask(workspace, {}, lambda tokens, phase: None, Event())
    assert "device_busy: The device is taken by job-1 (running, about 42 s to go)." in str(caught.value)
    assert caught.value.next == 'get_status(job_id="job-1", wait_s=50)'


def test_a_failure_that_nobody_foresaw_says_what_to_do(tmp_path: Path) -> None:
    weights = tmp_path / "adapter_model.safetensors"
    weights.write_bytes(save({"w": np.zeros(4, np.float32)})[:-4])
    with pytest.raises(SafetensorError) as damaged:
        load_file(weights)
    log = tmp_path / "chat.log"
    told = {
        code: chat_host.described(error, log)
        for code, error in {
            "weights_damaged": damaged.value,
            "out_of_memory": RuntimeError("CUDA out of memory. Tried to allocate 2 GiB."),
            "no_disk_space": OSError(errno.ENOSPC, "No space left on device"),
            "chat_failed": ValueError(""),
        }.items()
    }
    assert {code: error["code"] for code, error in told.items()} == {code: code for code in told}
    assert all(error["what"] and error["allowed"] and error["next"].endswith("()") for error in told.values())
    assert str(log) in told["weights_damaged"]["allowed"] and "max_new_tokens" in told["out_of_memory"]["allowed"]


def test_a_client_that_is_told_to_stop_stops(workspace: Workspace, host: Address) -> None:
    stop = Event()
    with pytest.raises(Cancelled):
        client.ask(workspace, {}, lambda tokens, phase: stop.set(), stop)


def test_what_a_dead_host_left_is_not_taken_for_a_host(workspace: Workspace) -> None:
    assert protocol.find_host(workspace) is None
    protocol.announce(workspace, 1234, b"secret")
    assert protocol.find_host(workspace) is not None
    file = protocol.address_file(workspace)
    left = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**left, "pid_started": left["pid_started"] - 100}), encoding="utf-8")
    assert protocol.find_host(workspace) is None
    file.write_text('{"port": 12', encoding="utf-8")
    assert protocol.find_host(workspace) is None


@pytest.fixture
def local_model(toy_folder: Path, tmp_path: Path) -> str:
    folder = tmp_path / "model"
    folder.mkdir()
    for file in toy_folder.iterdir():
        copyfile(file, folder / file.name)
    (folder / "model.safetensors").touch()
    return str(folder)


def test_a_request_fills_in_what_was_not_said_and_keeps_what_was(prepare: Prepare, local_model: str) -> None:
    request = prepare(model=local_model, sampling={"temperature": 0.0, "top_p": None}, seed=0)
    subject = request["subject"]
    assert subject["base"] == subject["tokenizer_folder"] == local_model
    assert request["sampling"] == {"temperature": 0.0, "top_p": 0.8, "top_k": 20}
    assert request["seed"] == 0
    assert subject["load_in_4bit"] is False and subject["adapter_id"] is None
    assert subject["context_tokens"] == 2048, "what the model reads"
    assert prepare(model=local_model)["seed"] is not None


def test_an_adapter_is_asked_as_it_was_trained_and_sampled_as_its_base_wants(
    workspace: Workspace, prepare: Prepare, local_model: str
) -> None:
    folder = workspace.home.adapters / "ad-a-0001"
    shutil.copytree(local_model, folder)
    (folder / "config.json").unlink()
    document = {
        "path": str(folder), "base_model": local_model, "training": {"load_in_4bit": True}, "max_seq_length": 512,
    }  # fmt: skip
    workspace.store.add_artifact("ad-a-0001", "adapter", "a", document, parents=[])
    request = prepare(adapter_id="ad-a", thinking=True)
    subject = request["subject"]
    assert (subject["adapter_id"], subject["adapter_path"]) == ("ad-a-0001", str(folder))
    assert (subject["base"], subject["tokenizer_folder"]) == (local_model, str(folder))
    assert subject["load_in_4bit"] is True
    assert request["sampling"] == {"temperature": 0.6, "top_p": 0.95, "top_k": 20}


def test_a_prompt_that_leaves_no_room_is_refused_with_the_numbers(prepare: Prepare, local_model: str) -> None:
    with pytest.raises(InvalidInput, match=r"prompt_too_long: The prompt has \d+ tokens; .* the 2048 that"):
        prepare(model=local_model, max_new_tokens=2048)


@pytest.mark.parametrize("who", [{}, {"adapter_id": "ad-1", "model": "toy"}])
def test_one_of_adapter_and_model_is_asked_for(prepare: Prepare, who: dict[str, str]) -> None:
    with pytest.raises(InvalidInput, match="adapter_or_model"):
        prepare(**who)


def test_a_toy_without_weights_says_how_to_make_them(prepare: Prepare) -> None:
    with pytest.raises(NotFound, match=r"toy_not_made: .*start_finetune\("):
        prepare(model="toy")
