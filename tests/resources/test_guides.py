"""The guides: short, true to the code, and found by an agent."""

import ast
import inspect
import re
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from mcp import Client, MCPError

from tunewright.pipeline.training import alerts
from tunewright.pipeline.training.arguments import TrainingArguments
from tunewright.pipeline.training.rewards import FIELDS, Reward
from tunewright.resources import guides

pytestmark = pytest.mark.anyio

Read = Callable[[str], Awaitable[Any]]
MAX_WORDS = 1500
DESIGNED = {
    "base-models", "lora-or-qlora", "hyperparameters", "overfitting", "data-formats", "reasoning", "memory",
    "quantization", "ollama", "rag-or-fine-tuning", "licences",
}  # fmt: skip
CODE = re.compile(r"```\n?(.*?)```|`([^`\n]+)`", re.DOTALL)
CALL = re.compile(r"\b([a-z]+(?:_[a-z]+)+)\(")
ASSIGNED = re.compile(r"^([a-z]+(?:_[a-z0-9]+)*)=")
NAME = re.compile(r"^[a-z]+(?:_[a-z0-9]+)+$")
# Names with underscores that are no arguments: of tables, files' columns, Ollama's parameters, formats of others.
OTHERS = {
    "num_ctx", "top_p", "top_k", "min_p", "repeat_penalty", "reasoning_content", "noise_floor", "reward_std",
    "merged_16bit", "merged_4bit", "lora_gguf", "q4_k_m", "q4_k_s", "q5_k_m", "q6_k", "q8_0", "q4_0", "q3_k_m",
    "exact_match", "numeric_match", "json_schema", "eval_loss", "paged_adamw_8bit",
}  # fmt: skip


def _pieces(guide: str) -> Iterator[str]:
    """What stands in a guide as code."""
    for match in CODE.finditer(guide):
        yield (match[1] or match[2]).strip()


def _calls(code: str) -> Iterator[ast.Call]:
    """The calls in a piece of code; `…` alone stands for more arguments."""
    source = re.sub(r",\s*…(?=\s*[,)])", "", code)
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return
    yield from (node for node in ast.walk(tree) if isinstance(node, ast.Call))


async def test_every_topic_of_the_design_has_a_guide_that_is_listed_with_its_title(read: Read) -> None:
    assert set(guides.topics()) >= DESIGNED
    listed = (await read("tw://guides")).text
    for topic in guides.topics():
        guide = (await read(f"tw://guides/{topic}")).text
        title = guide.splitlines()[0]
        assert title.startswith("# ") and f"tw://guides/{topic}: {title[2:]}" in listed


async def test_a_topic_that_is_misspelt_is_refused_with_the_nearest(client: Client) -> None:
    with pytest.raises(MCPError, match="base-models"):
        await client.read_resource("tw://guides/base-model")


@pytest.mark.parametrize("topic", guides.topics())
def test_a_guide_is_short_and_begins_with_what_to_do(topic: str) -> None:
    guide = guides.read(topic)
    assert len(guide.split()) < MAX_WORDS
    assert "**In short:**" in guide or topic == "troubleshooting"


@pytest.mark.parametrize("topic", guides.topics())
async def test_every_call_in_a_guide_is_one_that_the_tool_takes(client: Client, topic: str) -> None:
    tools = {tool.name: tool.input_schema for tool in (await client.list_tools()).tools}
    for code in _pieces(guides.read(topic)):
        for name in CALL.findall(code):
            assert name in tools, code
        for call in _calls(code):
            assert isinstance(call.func, ast.Name) and not call.args, code
            properties = tools[call.func.id]["properties"]
            for given in call.keywords:
                assert given.arg in properties, f"{topic}: {given.arg} in {code}"
                options = properties[given.arg].get("enum")
                if options and isinstance(given.value, ast.Constant):
                    assert given.value.value in options, code


@pytest.mark.parametrize("topic", guides.topics())
async def test_every_argument_and_alert_in_a_guide_exists(client: Client, topic: str) -> None:
    tools = (await client.list_tools()).tools
    names = {tool.name for tool in tools} | {name for tool in tools for name in tool.input_schema["properties"]}
    known = names | OTHERS | set(FIELDS) | set(Reward.model_fields) | {"lora_rank"}
    codes = set(re.findall(r'"([a-z]+(?:_[a-z]+)+)"', inspect.getsource(alerts)))
    for code in _pieces(guides.read(topic)):
        if assigned := ASSIGNED.match(code):
            assert assigned[1] in known, f"{topic}: {code}"
        elif NAME.match(code):
            assert code in known | codes or _is_an_error(code), f"{topic}: {code}"


def _is_an_error(code: str) -> bool:
    """Whether some part of the pipeline raises an error of this code."""
    from pathlib import Path

    from tunewright import pipeline

    folder = Path(pipeline.__file__).parent
    return any(f'"{code}"' in file.read_text(encoding="utf-8") for file in folder.rglob("*.py"))


def test_the_training_arguments_in_guides_have_values_that_are_allowed() -> None:
    for topic in guides.topics():
        for code in _pieces(guides.read(topic)):
            assigned = ASSIGNED.match(code)
            if assigned and assigned[1] in TrainingArguments.model_fields:
                try:
                    value = ast.literal_eval(code.partition("=")[2].replace("true", "True").replace("false", "False"))
                except (SyntaxError, ValueError):
                    continue
                TrainingArguments.model_validate({assigned[1]: value})
