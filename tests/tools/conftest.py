"""A client on the server in memory, in both eras of the protocol; answers and refusals as an agent gets them."""

import json
import re
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from shutil import copyfile
from typing import Any

import jsonschema
import pytest
from huggingface_hub import constants
from mcp import Client
from mcp.types import TextContent, Tool

from tunewright.pipeline import lease
from tunewright.pipeline.data.prepare import prepare
from tunewright.pipeline.store import Row
from tunewright.pipeline.workspace import Workspace
from tunewright.server import build_server

Answer = dict[str, Any]
Call = Callable[..., Awaitable[Answer]]
Refused = Callable[..., Awaitable[str]]
Write = Callable[[str, str], Path]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def no_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The caller's own login to the Hub is hidden, here and from workers."""
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "no-token"))


@pytest.fixture(params=["auto", "legacy"])
async def client(request: pytest.FixtureRequest, workspace: Workspace) -> AsyncIterator[Client]:
    async with Client(build_server(workspace), mode=request.param) as connected:
        yield connected


@pytest.fixture
async def tools(client: Client) -> dict[str, Tool]:
    """What tools/list tells, by name."""
    return {tool.name: tool for tool in (await client.list_tools()).tools}


@pytest.fixture
def call(client: Client, tools: dict[str, Tool]) -> Call:
    """`await call(tool, **arguments)`: the structured answer, every next step of which could be sent as it is."""

    async def answered(tool: str, **arguments: Any) -> Answer:
        result = await client.call_tool(tool, arguments)
        assert not result.is_error, result.content
        assert result.structured_content is not None
        jsonschema.validate(result.structured_content, tools[tool].output_schema)
        for step in result.structured_content["next_steps"]:
            jsonschema.validate(step["arguments"], tools[step["tool"]].input_schema)
        return result.structured_content

    return answered


@pytest.fixture
def refused(client: Client) -> Refused:
    """`await refused(tool, **arguments)`: the error's text, which has the form that pipeline/errors.py promises."""

    async def text_of(tool: str, **arguments: Any) -> str:
        result = await client.call_tool(tool, arguments)
        assert result.is_error, result.content
        (part,) = result.content
        assert isinstance(part, TextContent)
        assert re.match(r"[a-z]+(_[a-z]+)*: \S", part.text), part.text
        assert not re.search(r"Traceback|File \"|pydantic|Error executing|\n", part.text), part.text
        return part.text

    return text_of


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_file(name: str, text: str) -> Path:
        path = tmp_path / "data" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return write_file


def alpaca(rows: int) -> str:
    """Alpaca rows, one a line, all different."""
    return "".join(json.dumps({"instruction": f"Say {i}.", "input": "", "output": f"{i}!"}) + "\n" for i in range(rows))


@pytest.fixture
def dataset_id(workspace: Workspace, write: Write) -> str:
    """A dataset of 20 rows; its source file lies in `data/numbers.jsonl`."""
    return prepare(workspace, write("numbers.jsonl", alpaca(20)), eval_fraction=0.1)["id"]


@pytest.fixture
def held_device(workspace: Workspace) -> Any:
    """Holds the device, so that jobs stay queued and import nothing heavy."""
    (device,) = lease.devices()
    lock = lease.try_take(workspace, device)
    assert lock is not None
    yield lock
    lock.release()


@pytest.fixture
def ended_job(workspace: Workspace) -> Callable[..., str]:
    """`ended_job(kind, state, result=…, error=…)`: a job in the store that has ended so; returns its id."""

    def insert(kind: str, state: str, result: Any = None, error: Any = None, name: str = "numbers") -> str:
        job_id = f"job-{name}-{len(workspace.store.rows('SELECT id FROM jobs')):04}"
        (workspace.home.jobs / job_id).mkdir()
        now = time.time()
        workspace.store.execute(
            "INSERT INTO jobs(id, kind, state, needs_device, spec, created_at, started_at, ended_at, result, error) "
            "VALUES (?,?,?,1,'{}',?,?,?,?,?)",
            job_id, kind, state, now - 9, now - 8, now, json.dumps(result) if result else None,
            json.dumps(error) if error else None,
        )  # fmt: skip
        return job_id

    return insert


@pytest.fixture
def adapter(workspace: Workspace, toy_folder: Path) -> Row:
    """A stored adapter of the toy: real tokenizer and template, weights that nobody loads here."""
    folder = workspace.home.adapters / "ad-numbers-0001"
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        copyfile(toy_folder / name, folder / name)
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 16}', encoding="utf-8")
    (folder / "adapter_model.safetensors").write_bytes(bytes(2048))
    (folder / "provenance.json").write_text('{"base_model": "toy"}', encoding="utf-8")
    training = {"lora_rank": 16, "lora_alpha": 32, "target_modules": ["q_proj"], "load_in_4bit": False}
    document = {
        "path": str(folder), "base_model": "toy", "base_path": str(toy_folder), "dataset_id": "ds-gone-0000",
        "method": "sft", "training": training, "metrics": {"train_loss": 0.5}, "max_seq_length": 256,
        "enable_thinking": False, "bytes": 2048,
    }  # fmt: skip
    workspace.store.add_artifact(folder.name, "adapter", "numbers", document, parents=[])
    return workspace.store.artifact(folder.name)


@pytest.fixture
def export(workspace: Workspace, adapter: Row, toy_folder: Path) -> Row:
    """A stored export of the adapter: a GGUF of header and template only."""
    folder = workspace.home.exports / "ex-numbers-0001"
    folder.mkdir()
    gguf = folder / "numbers-q8_0.gguf"
    template = (toy_folder / "chat_template.jinja").read_text(encoding="utf-8")
    gguf.write_bytes(_gguf({"general.architecture": "qwen3", "tokenizer.chat_template": template}))
    files = [{"output": "gguf:q8_0", "path": str(gguf), "bytes": gguf.stat().st_size}]
    document = {
        "path": str(folder), "adapter_id": adapter["id"], "base_model": "toy", "files": files,
        "enable_thinking": False, "max_seq_length": 256, "parity": {"passed": True, "failures": []},
    }  # fmt: skip
    workspace.store.add_artifact(folder.name, "export", "numbers", document, parents=[adapter["id"]])
    return workspace.store.artifact(folder.name)


def _gguf(entries: dict[str, str]) -> bytes:
    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value.encode())) + value.encode()

    body = b"".join(text(key) + struct.pack("<I", 8) + text(value) for key, value in entries.items())
    return b"GGUF" + struct.pack("<IQQ", 3, 0, len(entries)) + body
