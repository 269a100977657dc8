"""The transcript: every call in it is real, and made again here against the server; Hub and Ollama are stand-ins.

`TUNEWRIGHT_WRITE_TRANSCRIPT=1 python -m pytest tests/examples/test_transcript.py` writes examples/transcript.md anew.
"""

import ast
import asyncio
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from standins.hub_server import HubStandIn
from standins.ollama_server import OllamaStandIn

from tunewright.examples import support_team
from tunewright.examples.session import connect
from tunewright.examples.support_team import Conversation
from tunewright.pipeline import toy
from tunewright.pipeline.chat_template import ChatTemplate
from tunewright.pipeline.settings import Home

TRANSCRIPT = Path(support_team.__file__).with_name("transcript.md")
TOKEN = "hf_test_token"
REPO_ID, MODEL_NAME = "fernhill/support-toy", "fernhill-support"
SERVICES = """\
The Hub and Ollama were stand-ins on the same machine, so that no test publishes anything: they speak the services' own
protocols over HTTP. The one for Ollama runs no model and gave the answers that the file had given in llama.cpp."""
# Of the two people; what stands between is looked at rather than read.
WORDS_IN_FIVE_MINUTES = 1000
BLOCK = re.compile(r"```.*?```", re.DOTALL)
CALL = re.compile(r"^→ (\w+\(.*(?:\n    .*)*)", re.MULTILINE)


@dataclass
class Played:
    conversation: Conversation
    hub: HubStandIn
    ollama: OllamaStandIn
    schemas: dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def played(trained_home: Path) -> Iterator[Played]:
    def recall(request: str) -> None:
        for file in trained_home.glob("exports/*/parity.json"):
            parity = json.loads(file.read_text(encoding="utf-8"))
            asked = [messages[-1]["content"] for messages in parity["cases"]["asked"]]
            ollama.answers |= dict(zip(asked, parity["outputs"]["gguf:q8_0"]["answers"], strict=True))

    template = ChatTemplate(toy.folder(Home.open(trained_home)))
    hub, ollama = HubStandIn(token=TOKEN), OllamaStandIn(count_tokens=lambda prompt: len(template.ids(prompt)))
    with pytest.MonkeyPatch.context() as patch, hub, ollama:
        # It runs no model: it answers what the file answered in llama.cpp, which the export wrote down.
        ollama.on_request = recall
        services = {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1", "OLLAMA_HOST": ollama.url}
        for name, value in {**services, "CUDA_VISIBLE_DEVICES": ""}.items():
            patch.setenv(name, value)
        instead = {hub.url: "https://hub.stand-in", str(trained_home): "~/.tunewright"}
        conversation, schemas = asyncio.run(_play(trained_home, instead))
        if "TUNEWRIGHT_WRITE_TRANSCRIPT" in os.environ:
            TRANSCRIPT.write_text(support_team.markdown(conversation, SERVICES), encoding="utf-8")
        yield Played(conversation, hub, ollama, schemas)


async def _play(home: Path, instead: dict[str, str]) -> tuple[Conversation, dict[str, dict[str, Any]]]:
    async with connect(str(home), "--allow-dir", str(support_team.DATA.parent)) as client:
        conversation = await support_team.play(client, REPO_ID, MODEL_NAME, instead)
        return conversation, {tool.name: tool.input_schema for tool in (await client.list_tools()).tools}


def calls_in(text: str) -> list[tuple[str, dict[str, Any]]]:
    """Tool and arguments of every call, in order."""
    found: list[tuple[str, dict[str, Any]]] = []
    for code in CALL.findall(text):
        written = ast.parse(code, mode="eval").body
        assert isinstance(written, ast.Call) and isinstance(written.func, ast.Name)
        found.append((written.func.id, {str(kw.arg): ast.literal_eval(kw.value) for kw in written.keywords}))
    return found


def test_the_transcript_makes_the_calls_that_succeed_today(played: Played) -> None:
    now = [(tool, sorted(arguments)) for tool, arguments in played.conversation.calls]
    assert [(tool, sorted(arguments)) for tool, arguments in calls_in(TRANSCRIPT.read_text(encoding="utf-8"))] == now


def test_the_transcript_names_no_tool_and_no_argument_that_does_not_exist(played: Played) -> None:
    for tool, arguments in calls_in(TRANSCRIPT.read_text(encoding="utf-8")):
        assert arguments.keys() <= played.schemas[tool]["properties"].keys()
        assert set(played.schemas[tool].get("required", ())) <= arguments.keys()


def test_what_is_written_down_is_what_was_called(played: Played) -> None:
    text = "\n\n".join(played.conversation.parts)
    written = [(tool, arguments.keys()) for tool, arguments in calls_in(text)]
    assert written == [(tool, arguments.keys()) for tool, arguments in played.conversation.calls]


def test_the_conversation_ends_with_a_published_model(played: Played) -> None:
    repository = played.hub.repositories[REPO_ID]
    assert repository.private
    assert {"README.md", "adapter_model.safetensors"} <= repository.files.keys()
    gguf = next(path for path in repository.files if path.endswith(".gguf"))
    published = played.ollama.models[played.ollama.full_name(MODEL_NAME)]
    assert published["digest"] == f"sha256:{repository.large[gguf]}"


def test_neither_the_password_nor_a_phone_number_is_written_down_or_published(played: Played) -> None:
    texts = [TRANSCRIPT.read_bytes(), *played.hub.repositories[REPO_ID].files.values()]
    tickets = support_team.DATA.read_text(encoding="utf-8")
    for secret in ("moss-Kettle-4417", "7700 900118"):
        assert secret in tickets
        assert not any(secret.encode() in text for text in texts)


def test_the_transcript_is_read_in_five_minutes_and_names_nothing_of_this_machine(played: Played) -> None:
    text = TRANSCRIPT.read_text(encoding="utf-8")
    assert len(BLOCK.sub("", text).split()) < WORDS_IN_FIVE_MINUTES
    assert "127.0.0.1" not in text
    assert not re.search(r"(?<![\w~.])/(?:work|tmp|home|root|usr)/", text)
