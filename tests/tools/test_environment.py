"""check_environment and list_models."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tunewright.pipeline.workspace import Workspace

pytestmark = pytest.mark.anyio

Call = Callable[..., Awaitable[dict[str, Any]]]


async def test_the_environment_says_what_is_missing_and_how_to_get_it(call: Call, workspace: Workspace) -> None:
    answer = await call("check_environment")
    assert answer["home"] == str(workspace.home.root)
    assert answer["gpus"] == []
    assert any("No GPU" in warning for warning in answer["warnings"])
    assert answer["usable"]["ollama"] == "no answer at http://127.0.0.1:9"
    assert answer["usable"]["hub_token"].startswith("none: ")
    assert answer["usable"]["toy_model"].startswith("made by the first fine-tune")
    assert answer["versions"]["mcp"].startswith("2.")


async def test_a_token_is_said_to_be_there_but_never_shown(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret123")
    answer = await call("check_environment")
    assert answer["usable"]["hub_token"] == "present"
    assert "secret123" not in str(answer)


async def test_a_password_in_an_address_is_never_shown(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_HOST", "http://me:se@cret@127.0.0.1:9")
    monkeypatch.setenv("HF_ENDPOINT", "http://me:se@cret@127.0.0.1:9")
    answer = await call("check_environment")
    assert answer["usable"]["ollama"] == "no answer at http://127.0.0.1:9"
    assert answer["usable"]["hub"] == "http://127.0.0.1:9"
    assert "cret" not in str(answer)


async def test_an_ollama_host_that_is_no_address_is_as_none(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_HOST", "gpu-box:port")
    assert (await call("check_environment"))["ollama"] == (await call("list_models"))["ollama"] == []


async def test_models_are_found_by_every_word_of_the_query(call: Call) -> None:
    answer = await call("list_models", query="QWEN3 8b base")
    assert [model["model"] for model in answer["models"]] == ["unsloth/Qwen3-8B-Base"]
    (step,) = answer["next_steps"]
    assert step["arguments"]["model"] == "unsloth/Qwen3-8B-Base"


async def test_without_a_gpu_only_small_models_fit(call: Call) -> None:
    answer = await call("list_models", fits_only=True)
    fitting = [model for model in answer["models"] if model["fits"] != "unknown"]  # of the caller's own cache
    assert fitting[0]["model"] == "toy"
    assert all(model["fits"] == "cpu" and model["parameters_b"] <= 2 for model in fitting)


async def test_a_query_that_finds_nothing_suggests_nothing(call: Call) -> None:
    answer = await call("list_models", query="no such model at all")
    assert (answer["models"], answer["next_steps"]) == ([], [])
