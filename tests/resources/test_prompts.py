"""Prompts that people pick, and what is offered while they type, in both eras of the protocol."""

import re

import pytest
from mcp import Client
from mcp.shared.exceptions import MCPError
from mcp.types import INVALID_PARAMS, PromptReference, ResourceTemplateReference, TextContent

from tunewright.pipeline.workspace import Workspace
from tunewright.resources import guides

pytestmark = pytest.mark.anyio

ARGUMENTS = {
    "finetune": {"data": "rows.jsonl"},
    "diagnose_run": {"job_id": "job-x"},
    "publish_checklist": {"artifact_id": "ex-x"},
}


async def test_the_prompts_of_the_design_are_listed_with_their_arguments(client: Client) -> None:
    prompts = {prompt.name: prompt for prompt in (await client.list_prompts()).prompts}
    assert set(prompts) == set(ARGUMENTS)
    for name, given in ARGUMENTS.items():
        required = {argument.name for argument in prompts[name].arguments or [] if argument.required}
        assert required == set(given) and prompts[name].description


@pytest.mark.parametrize("name", ARGUMENTS)
async def test_a_prompt_holds_what_was_given_and_names_tools_and_guides_that_exist(client: Client, name: str) -> None:
    (message,) = (await client.get_prompt(name, ARGUMENTS[name])).messages
    assert isinstance(message.content, TextContent)
    text = message.content.text
    assert all(value in text for value in ARGUMENTS[name].values())
    tools = {tool.name for tool in (await client.list_tools()).tools}
    named = set(re.findall(r"\b(?:[a-z]+_)+(?:adapter|dataset|finetune|environment|status|export|hub|ollama)\b", text))
    assert named and named <= tools
    assert set(re.findall(r"tw://guides/([a-z-]+)", text)) <= set(guides.topics())


@pytest.mark.parametrize(
    ("name", "given", "what"),
    [
        ("fine_tune", {}, "Unknown prompt: fine_tune"),
        ("finetune", {"goal": "x"}, "Missing required arguments: {'data'}"),
    ],
)
async def test_a_prompt_that_cannot_be_given_is_refused_with_those_that_can(
    client: Client, name: str, given: dict[str, str], what: str
) -> None:
    with pytest.raises(MCPError) as refused:
        await client.get_prompt(name, given)
    assert refused.value.error.code == INVALID_PARAMS
    assert refused.value.error.message.startswith(f"{what}. Prompts: finetune(data, goal?, model?); ")


async def test_ids_topics_and_models_are_completed(client: Client, workspace: Workspace) -> None:
    workspace.store.add_artifact("ad-one-0001", "adapter", "one", {}, parents=[])
    workspace.store.add_artifact("ex-one-0001", "export", "one", {}, parents=[])

    async def offered(ref: PromptReference | ResourceTemplateReference, name: str, typed: str) -> list[str]:
        return (await client.complete(ref, {"name": name, "value": typed})).completion.values

    topic = ResourceTemplateReference(type="ref/resource", uri="tw://guides/{topic}")
    assert await offered(topic, "topic", "ov") == ["overfitting"]
    checklist = PromptReference(type="ref/prompt", name="publish_checklist")
    assert await offered(checklist, "artifact_id", "") == ["ex-one-0001", "ad-one-0001"]
    assert await offered(checklist, "artifact_id", "ad-") == ["ad-one-0001"]
    finetune = PromptReference(type="ref/prompt", name="finetune")
    assert "unsloth/Qwen3-8B" in await offered(finetune, "model", "unsloth/Qwen3-8")
    assert await offered(finetune, "goal", "") == []
