"""Standard output carries the protocol alone while the heavy libraries run, and crash, in the server itself."""

import json
import shlex
import sys
from pathlib import Path

import pytest
from chain.conftest import write_shop
from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client

from tunewright.examples.session import Answer, ToolFailed, call

pytestmark = pytest.mark.anyio


async def ended(client: Client, job_id: str) -> Answer:
    while True:
        status = (await call(client, "get_status", job_id=job_id, wait_s=50))["job"]
        if status["state"] in ("succeeded", "failed"):
            return status


async def test_not_one_byte_is_not_protocol_when_every_stage_runs_and_crashes_inline(home: str, tmp_path: Path) -> None:
    wire, errors = tmp_path / "wire", tmp_path / "errors"
    options = ["--home", home, "--inline", "--allow-dir", str(tmp_path)]
    server = shlex.join([sys.executable, "-P", "-m", "tunewright.server", *options])
    # The shell copies all that the server writes to its standard output, protocol or not.
    parameters = StdioServerParameters(command="sh", args=["-c", f"{server} | tee {shlex.quote(str(wire))}"])
    with errors.open("w", encoding="utf-8") as log:
        async with Client(stdio_client(parameters, errlog=log)) as client:
            dataset = await call(client, "prepare_dataset", source=str(write_shop(tmp_path / "shop.json")), model="toy")
            dataset_id = dataset["dataset_id"]
            started = await call(client, "start_finetune", dataset_id=dataset_id, model="toy", max_steps=3)
            training = await ended(client, started["job_id"])
            assert training["state"] == "succeeded", training["error"]
            adapter_id = training["result"]["adapter_id"]
            await call(client, "chat_with_adapter", adapter_id=adapter_id, prompt="Hello", max_new_tokens=4)

            weights = Path(home) / "adapters" / adapter_id / "adapter_model.safetensors"
            weights.write_bytes(b"broken")
            exporting = await call(client, "merge_and_export", adapter_id=adapter_id)
            assert (await ended(client, exporting["job_id"]))["state"] == "failed"

            # The host left for the export, so this loads the broken adapter.
            with pytest.raises(ToolFailed, match="weights_damaged"):
                await call(client, "chat_with_adapter", adapter_id=adapter_id, prompt="Hello", max_new_tokens=4)

            (Path(home) / "datasets" / dataset_id / "train.parquet").write_bytes(b"broken")
            started = await call(client, "start_finetune", dataset_id=dataset_id, model="toy", max_steps=3)
            failed = await ended(client, started["job_id"])
            assert failed["state"] == "failed"
            assert "Traceback" not in json.dumps(failed)
    lines = wire.read_text(encoding="utf-8").splitlines()
    assert len(lines) > 10
    assert all(json.loads(line)["jsonrpc"] == "2.0" for line in lines)
    assert "Unsloth" in errors.read_text(encoding="utf-8"), "the libraries must have printed something to be kept off"
