"""publish_to_ollama and publish_to_hub: looking first, confirming, and what a job says that could not publish.

What is sent, and how servers are spoken to, is tested with the pipeline.
"""

import json
from collections.abc import Awaitable, Callable
from typing import Any, get_args

import pytest
from mcp import Client
from mcp.client import ClientRequestContext
from mcp.types import ElicitRequestParams, ElicitResult, TextContent

from tunewright.pipeline import errors
from tunewright.pipeline.publishing import presets
from tunewright.pipeline.store import Row
from tunewright.pipeline.workspace import Workspace
from tunewright.server import build_server
from tunewright.tools import publishing

pytestmark = pytest.mark.anyio

Call = Callable[..., Awaitable[dict[str, Any]]]
Refused = Callable[..., Awaitable[str]]
# `await asked(answer)`: what an upload says at a host that can ask, and the questions that the host showed.
Asked = Callable[[ElicitResult], Awaitable[tuple[str, list[str]]]]


async def test_a_dry_run_for_the_hub_shows_files_and_card_and_sends_nothing(
    call: Call, adapter: Row, workspace: Workspace
) -> None:
    answer = await call("publish_to_hub", artifact_id=adapter["id"], repo_id="me/numbers", dry_run=True)
    assert answer["state"] == "dry run"
    assert "adapter_model.safetensors" in {file["path"] for file in answer["plan"]["files"]}
    assert answer["plan"]["private"] is True
    assert answer["plan"]["token_present"] is False
    assert answer["next_steps"][0]["arguments"]["confirm"] is True
    assert not workspace.store.rows("SELECT id FROM jobs")


async def test_nothing_goes_to_the_hub_without_confirmation(
    refused: Refused, adapter: Row, workspace: Workspace
) -> None:
    text = await refused("publish_to_hub", artifact_id=adapter["id"], repo_id="me/numbers")
    assert text.startswith(f"not_confirmed: Upload {adapter['id']} (")
    assert "http://127.0.0.1:9/me/numbers, private? Nobody has agreed" in text
    assert "confirm=true" in text.partition("Next: ")[2]
    assert text.endswith("Nothing was done.")
    assert not workspace.store.rows("SELECT id FROM jobs")


async def test_without_a_token_publishing_to_the_hub_fails_with_how_to_log_in(
    refused: Refused, adapter: Row, workspace: Workspace
) -> None:
    text = await refused("publish_to_hub", artifact_id=adapter["id"], repo_id="me/numbers", confirm=True)
    assert text.startswith("hub_token_missing: ")
    assert "HF_TOKEN" in text
    assert "Next: publish_to_hub(" in text
    assert not workspace.store.artifacts("publication")
    (job,) = workspace.store.rows("SELECT * FROM jobs")
    assert (job["state"], job["error"]["code"]) == ("failed", "hub_token_missing")


async def test_a_name_that_the_hub_would_refuse_is_refused_here(refused: Refused, adapter: Row) -> None:
    text = await refused("publish_to_hub", artifact_id=adapter["id"], repo_id="no owner", dry_run=True)
    assert text.startswith("invalid_repo_id: ")
    assert "Next: publish_to_hub(" in text


async def test_a_dry_run_for_ollama_shows_the_modelfile_also_without_a_server(
    call: Call, export: Row, workspace: Workspace
) -> None:
    answer = await call(
        "publish_to_ollama", export_id=export["id"], model_name="numbers", parameters={"temperature": 0.1}, dry_run=True
    )
    assert "PARAMETER temperature 0.1" in answer["plan"]["modelfile"]
    assert answer["plan"]["server"]["version"] is None
    (step,) = answer["next_steps"]
    assert step["arguments"] == {
        "export_id": export["id"], "model_name": "numbers", "parameters": {"temperature": 0.1},
    }  # fmt: skip
    assert not workspace.store.rows("SELECT id FROM jobs")


async def test_without_a_server_publishing_to_ollama_fails_with_how_to_start_one(refused: Refused, export: Row) -> None:
    text = await refused("publish_to_ollama", export_id=export["id"], model_name="numbers")
    assert text.startswith("ollama_unavailable: ")
    assert "ollama serve" in text


async def test_pushing_to_a_registry_needs_confirmation(refused: Refused, export: Row) -> None:
    text = await refused("publish_to_ollama", export_id=export["id"], model_name="me/numbers", push=True)
    assert text.startswith("not_confirmed: Push me/numbers:latest to its registry")


async def test_what_is_to_be_confirmed_keeps_all_that_was_asked_for(refused: Refused, export: Row) -> None:
    asked: dict[str, Any] = {
        "export_id": export["id"], "model_name": "me/numbers", "preset": "retrieval", "system": "Be brief.",
        "parameters": {"seed": 7}, "push": True, "overwrite": True,
    }  # fmt: skip
    text = await refused("publish_to_ollama", **asked)
    assert f"Next: {errors.call('publish_to_ollama', **asked, confirm=True)}." in text
    asked = {
        "artifact_id": export["id"], "repo_id": "me/numbers", "outputs": ["gguf:q8_0"], "private": False,
        "overwrite": True,
    }  # fmt: skip
    text = await refused("publish_to_hub", **asked)
    assert f"Next: {errors.call('publish_to_hub', **asked, confirm=True)}." in text


async def test_a_dry_run_leads_to_just_what_was_looked_at(call: Call, export: Row) -> None:
    asked = {"export_id": export["id"], "model_name": "assistant", "output": "gguf:q8_0", "preset": "creative"}
    (step,) = (await call("publish_to_ollama", **asked, dry_run=True))["next_steps"]
    assert step["arguments"] == asked


async def test_the_presets_of_the_tool_are_those_that_there_are() -> None:
    assert set(get_args(publishing.Preset)) == set(presets.PRESETS)


async def test_an_adapter_is_refused_where_an_export_is_needed(refused: Refused, adapter: Row) -> None:
    text = await refused("publish_to_ollama", export_id=adapter["id"], model_name="numbers")
    assert text.startswith("wrong_kind: ")


@pytest.fixture(params=["auto", "legacy"])
def asked(request: pytest.FixtureRequest, adapter: Row, workspace: Workspace) -> Asked:
    async def upload(answer: ElicitResult) -> tuple[str, list[str]]:
        questions: list[str] = []

        async def show(context: ClientRequestContext, params: ElicitRequestParams) -> ElicitResult:
            questions.append(params.message)
            return answer

        server = build_server(workspace)
        async with Client(server, mode=request.param, elicitation_callback=show) as host:
            result = await host.call_tool("publish_to_hub", {"artifact_id": adapter["id"], "repo_id": "me/numbers"})
        (part,) = result.content
        assert isinstance(part, TextContent)
        return part.text, questions

    return upload


async def test_a_host_that_can_ask_is_asked_once_and_a_yes_is_enough(asked: Asked, adapter: Row) -> None:
    text, questions = await asked(ElicitResult(action="accept", content={"agree": True}))
    assert [question.partition(" (")[0] for question in questions] == [f"Upload {adapter['id']}"]
    # It went on, up to what is missing here.
    assert text.startswith("hub_token_missing: ")


@pytest.mark.parametrize(
    "answer",
    [
        ElicitResult(action="decline"),
        ElicitResult(action="cancel"),
        ElicitResult(action="accept", content={"agree": False}),
    ],
)
async def test_a_no_is_told_to_the_agent_and_nothing_is_sent(
    answer: ElicitResult, asked: Asked, workspace: Workspace
) -> None:
    text, questions = await asked(answer)
    assert len(questions) == 1
    assert text.startswith("declined: Upload ") and text.endswith("Nothing was done.")
    assert not workspace.store.rows("SELECT id FROM jobs")


async def test_what_failed_its_parity_is_published_only_by_force(
    call: Call, refused: Refused, export: Row, workspace: Workspace
) -> None:
    failed = {**export["document"], "parity": {"passed": False, "failures": ["gguf:q8_0: another prompt"]}}
    workspace.store.execute("UPDATE artifacts SET document=? WHERE id=?", json.dumps(failed), export["id"])
    for tool, name in (("publish_to_ollama", {"model_name": "m"}), ("publish_to_hub", {"repo_id": "me/m"})):
        which = {"export_id" if "ollama" in tool else "artifact_id": export["id"]}
        text = await refused(tool, **which, **name, dry_run=True)
        assert text.startswith("parity_failed: ") and "another prompt" in text
        unconfirmed = await refused(tool, **which, **name, force=True)
        assert unconfirmed.startswith("not_confirmed: ")
        answer = await call(tool, **which, **name, dry_run=True, force=True)
        assert any("another prompt" in warning for warning in answer["plan"]["warnings"])
        assert answer["next_steps"][0]["arguments"]["force"] is True
