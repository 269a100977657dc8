"""Answers through the chat host as a process of its own, which loads a small random model."""

import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tunewright.pipeline.chat import client, protocol
from tunewright.pipeline.chat_template import ChatTemplate
from tunewright.pipeline.errors import Cancelled, TunewrightError
from tunewright.pipeline.inference import answers
from tunewright.pipeline.inference.engine import Engine
from tunewright.pipeline.inference.requests import Request
from tunewright.pipeline.workspace import Workspace

Folder = Callable[..., Path]
HELLO = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, base: Folder, adapter: Folder) -> Iterator[Workspace]:
    """A home with an adapter and a model trained as a whole; the host that comes up in it is killed."""
    workspace = Workspace.open(tmp_path_factory.mktemp("hosted") / "home")
    for adapter_id, form, source in (
        ("ad-a-0001", "lora", adapter("qwen3", "lora")),
        ("ad-b-0002", "full", base("llama")),
    ):
        folder = workspace.home.adapters / adapter_id
        shutil.copytree(source, folder)
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            shutil.copyfile(base("qwen3") / name, folder / name)
        document = {
            "path": str(folder), "form": form, "base_model": str(base("qwen3")), "base_path": str(base("qwen3")),
            "training": {"load_in_4bit": False}, "max_seq_length": 64, "enable_thinking": False,
        }  # fmt: skip
        workspace.store.add_artifact(adapter_id, "adapter", adapter_id, document, parents=[])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        yield workspace
    address = protocol.find_host(workspace)
    if address:
        psutil.Process(address.pid).kill()


def ask(workspace: Workspace, stop: threading.Event | None = None, **changes: Any) -> dict[str, Any]:
    given: dict[str, Any] = {
        "adapter_id": None, "model": None, "messages": HELLO, "thinking": False, "compare_with_base": False,
        "max_new_tokens": 12, "sampling": {"temperature": 0.0}, "seed": 1, **changes,
    }  # fmt: skip
    request = client.prepare(workspace, **given)
    return client.ask(workspace, request, lambda tokens, phase: None, stop or threading.Event())


def expected(engine: Engine, folder: Path, adapter_id: str | None) -> str:
    template = ChatTemplate(folder)
    prompt = template.ids(template.render(HELLO, add_generation_prompt=True))
    [answer] = engine.generate([Request(prompt, 12, engine.ends(template))], adapter_id=adapter_id)
    return answers.split(template, answer.ids)[0]


def test_the_host_answers_with_the_tuned_model_and_its_base(
    home: Workspace, engine: Engine, subject: Callable[..., Any], base: Folder
) -> None:
    engine.load(subject("qwen3", "lora"))
    tuned, untrained = (expected(engine, base("qwen3"), who) for who in ("ad-lora.1", None))
    found = ask(home, adapter_id="ad-a", compare_with_base=True)
    assert (found["tuned"]["text"], found["base"]["text"]) == (tuned, untrained)
    assert tuned != untrained
    assert found["tuned"].keys() == {"text", "thinking", "tokens", "tokens_per_s", "stopped"}
    assert 1 <= found["tuned"]["tokens"] <= 12 and found["tuned"]["tokens_per_s"] > 0
    alone = ask(home, model=str(base("qwen3")))
    assert (alone["tuned"], alone["base"]["text"]) == (None, untrained)


def test_a_whole_model_and_its_base_answer_in_turn(
    home: Workspace, engine: Engine, subject: Callable[..., Any], base: Folder
) -> None:
    seen: list[str] = []
    for family in ("llama", "qwen3"):
        engine.load(subject(family))
        seen.append(expected(engine, base("qwen3"), None))
    found = ask(home, adapter_id="ad-b", compare_with_base=True)
    assert [found["tuned"]["text"], found["base"]["text"]] == seen
    assert seen[0] != seen[1]


def test_a_client_that_leaves_stops_its_answer_and_the_next_one_is_served(home: Workspace, base: Folder) -> None:
    stop = threading.Event()
    request = client.prepare(
        home, adapter_id=None, model=str(base("qwen3")), messages=HELLO, thinking=False, compare_with_base=False,
        max_new_tokens=200, sampling={"temperature": 2.0}, seed=1,
    )  # fmt: skip

    def progress(tokens: int, phase: str) -> None:
        if tokens:
            stop.set()

    with pytest.raises(Cancelled):
        client.ask(home, request, progress, stop)
    assert ask(home, model=str(base("qwen3")))["base"]["tokens"] >= 1


def test_an_adapter_that_cannot_be_read_is_an_error_and_the_base_still_answers(home: Workspace, base: Folder) -> None:
    folder = home.home.adapters / "ad-c-0003"
    shutil.copytree(home.home.adapters / "ad-a-0001", folder)
    (folder / "adapter_model.safetensors").write_bytes(b"broken")
    document = {**home.store.artifact("ad-a-0001")["document"], "path": str(folder)}
    home.store.add_artifact("ad-c-0003", "adapter", "ad-c-0003", document, parents=[])
    before = ask(home, model=str(base("qwen3")))["base"]["text"]
    with pytest.raises(TunewrightError, match="weights_damaged"):
        ask(home, adapter_id="ad-c-0003")
    assert ask(home, model=str(base("qwen3")))["base"]["text"] == before
