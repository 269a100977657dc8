"""publish_to_ollama and publish_to_hub: looking first, confirming, and what a job says that could not publish.

What is sent, and how servers are spoken to, is tested with the pipeline.
"""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tunewright.pipeline.store import Row
from tunewright.pipeline.workspace import Workspace

pytestmark = pytest.mark.anyio

Call = Callable[..., Awaitable[dict[str, Any]]]
Refused = Callable[..., Awaitable[str]]


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
    assert text.startswith(f"not_confirmed: Uploading {adapter['id']} to http://127.0.0.1:9/me/numbers")
    assert "confirm=true" in text.partition("Next: ")[2]
    assert text.endswith("Nothing was sent.")
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
    assert text.startswith("not_confirmed: Pushing me/numbers makes it public")


async def test_an_adapter_is_refused_where_an_export_is_needed(refused: Refused, adapter: Row) -> None:
    text = await refused("publish_to_ollama", export_id=adapter["id"], model_name="numbers")
    assert text.startswith("wrong_kind: ")
