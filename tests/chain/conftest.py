"""A trained adapter and its export, made once over stdio by a real client, for every test that needs one."""

import asyncio
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from tunewright.examples.session import call, connect, follow
from tunewright.pipeline import toy
from tunewright.pipeline.chat import protocol
from tunewright.pipeline.exporting import toolchain
from tunewright.pipeline.exporting.outputs import OUTPUTS
from tunewright.pipeline.settings import Home
from tunewright.pipeline.workspace import Workspace

ANSWERS = {
    "What does the shop sell?": "We sell tea, cups and pots.",
    "When is the shop open?": "We open at nine and close at six.",
    "Who runs the shop?": "Mina and Tom run the shop.",
    "Where is the shop?": "The shop is in Oslo, by the river.",
}
STEPS = 60
QUIET = {"HF_ENDPOINT": "http://127.0.0.1:9", "OLLAMA_HOST": "127.0.0.1:9", "CUDA_VISIBLE_DEVICES": ""}


@dataclass(frozen=True)
class Chain:
    """What the chain left behind: the structured answers of its calls, by tool."""

    home: str
    answers: dict[str, Any]


def write_shop(path: Path) -> Path:
    """Twelve ShareGPT rows: four facts, each asked in three ways."""
    rows = [
        {"conversations": [{"from": "human", "value": form.format(question)}, {"from": "gpt", "value": answer}]}
        for question, answer in ANSWERS.items()
        for form in ("{}", "Please tell me: {}", "Hello! {}")
    ]
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def stop_chat_host(home: Path) -> None:
    address = protocol.find_host(Workspace.open(home))
    if address:
        psutil.Process(address.pid).kill()


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def home(toy_workspace: Workspace) -> Iterator[str]:
    """A home with the trained toy; what the test has left running in it is killed."""
    yield str(toy_workspace.home.root)
    for process in psutil.process_iter(["cmdline"]):
        if str(toy_workspace.home.root) in (process.info["cmdline"] or []):
            process.kill()


@pytest.fixture(scope="session")
def quantizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """llama.cpp's quantizer, built once per machine (about five minutes) where it has none: no job's time is that."""
    return toolchain.provide_quantizer(tmp_path_factory.mktemp("toolchain") / "log")


@pytest.fixture(scope="session")
def chain(quantizer: Path, trained_toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chain]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in QUIET.items():
            patch.setenv(name, value)
        root = tmp_path_factory.mktemp("chain")
        home = Home.open(root / "home")
        shutil.copytree(trained_toy, toy.folder(home))
        answers = asyncio.run(_run(str(home.root), write_shop(root / "shop.json")))
        yield Chain(str(home.root), answers)
        stop_chat_host(home.root)


async def _run(home: str, data: Path) -> dict[str, Any]:
    answers: dict[str, Any] = {}
    async with connect(home) as client:
        dataset = await call(client, "prepare_dataset", source=str(data), model="toy", eval_fraction=0.1)
        started = await call(
            client, "start_finetune", dataset_id=dataset["dataset_id"], model="toy", max_steps=STEPS,
            learning_rate=3e-3, lora_rank=32, eval_steps=20,
        )  # fmt: skip
        answers |= {"dataset": dataset, "started": started, "training": await follow(client, started["job_id"])}
        adapter_id = answers["training"]["result"]["adapter_id"]
        exporting = await call(client, "merge_and_export", adapter_id=adapter_id, outputs=list(OUTPUTS))
        answers["export"] = (await follow(client, exporting["job_id"]))["result"]
    return answers
