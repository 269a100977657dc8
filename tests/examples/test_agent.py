"""Another framework's agent fine-tunes the toy: its own loop and its own MCP client, its model a stand-in over HTTP.

The stand-in is a model that reads nothing but what the server says to call next: the `next_steps` of a result, and the
`Next:` of an error.
"""

import ast
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from standins.serving import Handler, StandIn

from tunewright.examples import support_team
from tunewright.pipeline.workspace import Workspace
from tunewright.server import INSTRUCTIONS

AGENT = Path(support_team.__file__).with_name("agent.py")
TIMEOUT_S = 400
NEXT = re.compile(r"Next: (\w+\(.*?\))(?:\.|$)", re.DOTALL)
# One step shows the way; a test has no time for the plan's.
SHORTENED = {"start_finetune": {"max_steps": 1}, "chat_with_adapter": {"max_new_tokens": 8}}
Call = tuple[str, dict[str, Any]]


@dataclass
class ObedientModel(StandIn):
    """OpenAI's chat completions: makes the call that it was told of last and has not made yet, until it has chatted.

    `calls` are those that it made, `offered` the tools that the framework said there are, `told` is its task.
    """

    first: Call
    calls: list[Call] = field(default_factory=list[Call])
    offered: set[str] = field(default_factory=set[str])
    told: str = ""

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        self.offered = {tool["function"]["name"] for tool in request["tools"]}
        self.told = self.told or "\n".join(message["content"] for message in request["messages"])
        last = request["messages"][-1]
        if last["role"] == "tool" and self.calls[-1][0] == "chat_with_adapter":
            return {"role": "assistant", "content": f"Done. It says: {json.loads(last['content'])['tuned']['text']}"}
        tool, arguments = self._next(last["content"]) if last["role"] == "tool" else self.first
        self.calls.append((tool, arguments))
        call = {"name": tool, "arguments": json.dumps(arguments)}
        return {
            "role": "assistant", "content": None,
            "tool_calls": [{"id": f"call-{len(self.calls)}", "type": "function", "function": call}],
        }  # fmt: skip

    def _next(self, told: str) -> Call:
        answer: dict[str, Any] = json.loads(told)
        if "error" in answer:
            return _written(answer["error"])
        steps: list[Call] = [(step["tool"], step["arguments"]) for step in answer["next_steps"]]
        tool, arguments = next(step for step in steps if step[0] == "get_status" or step not in self.calls)
        return tool, arguments | SHORTENED.get(tool, {})


def _written(error: str) -> Call:
    found = NEXT.search(error)
    assert found, error
    call = ast.parse(found[1], mode="eval").body
    assert isinstance(call, ast.Call) and isinstance(call.func, ast.Name)
    return call.func.id, {str(kw.arg): ast.literal_eval(kw.value) for kw in call.keywords}


class _Handler(Handler):
    state: ObedientModel

    def do_POST(self) -> None:
        message = self.state.answer(json.loads(self.read_body()))
        reason = "tool_calls" if message.get("tool_calls") else "stop"
        choice = {"index": 0, "message": message, "finish_reason": reason}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        self.send_json(
            200, {"id": "x", "object": "chat.completion", "created": 0, "model": "obedient", "choices": [choice],
                  "usage": usage},
        )  # fmt: skip


ObedientModel.handler = _Handler


@pytest.fixture(scope="module")
def run(trained_home: Path) -> tuple[ObedientModel, "subprocess.CompletedProcess[str]"]:
    """examples/agent.py as a person starts it, to its end."""
    first: Call = ("prepare_dataset", {"source": str(support_team.DATA), "model": "toy"})
    with ObedientModel(first) as model:
        environment = {
            **os.environ, "AGENT_MODEL": "openai-chat:obedient", "OPENAI_BASE_URL": f"{model.url}/v1",
            "OPENAI_API_KEY": "none", "TUNEWRIGHT_HOME": str(trained_home), "CUDA_VISIBLE_DEVICES": "",
            "HF_ENDPOINT": "http://127.0.0.1:9", "OLLAMA_HOST": "127.0.0.1:9",
        }  # fmt: skip
        command = [sys.executable, str(AGENT), str(support_team.DATA)]
        ended = subprocess.run(
            command, env=environment, cwd=trained_home, capture_output=True, encoding="utf-8", timeout=TIMEOUT_S
        )
    assert ended.returncode == 0, ended.stderr
    return model, ended


def test_following_the_server_alone_leads_from_a_file_to_a_chat(
    run: tuple[ObedientModel, "subprocess.CompletedProcess[str]"], trained_home: Path
) -> None:
    model, ended = run
    asked, mapped, cleaned = (arguments for tool, arguments in model.calls if tool == "prepare_dataset")
    assert "mapping" not in asked and mapped["mapping"] == {"prompt": "customer", "response": "agent"}
    better = {"cleaning": {"secrets": "mask", "personal_data": "mask"}, "eval_fraction": 0.2}
    assert cleaned == mapped | better
    assert list(dict.fromkeys(tool for tool, _ in model.calls)) == [
        "prepare_dataset", "inspect_dataset", "plan_finetune", "start_finetune", "get_status", "chat_with_adapter",
    ]  # fmt: skip
    (adapter,) = Workspace.open(trained_home).store.artifacts("adapter")
    assert model.calls[-1][1]["adapter_id"] == adapter["id"]
    assert "Done. It says: " in ended.stdout


def test_the_model_gets_the_servers_instructions_and_no_tool_that_cannot_be_taken_back(
    run: tuple[ObedientModel, "subprocess.CompletedProcess[str]"],
) -> None:
    model, _ = run
    assert INSTRUCTIONS in model.told
    assert "Fine-tune a model with Tunewright. The goal: answer as the data does." in model.told
    assert {"prepare_dataset", "plan_finetune", "start_finetune", "get_status"} <= model.offered
    assert not {"publish_to_hub", "publish_to_ollama", "delete_artifact"} & model.offered
