"""What chat_with_adapter refuses before it loads anything. Its answers are tested with the pipeline."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tunewright.pipeline.store import Row
from tunewright.pipeline.workspace import Workspace

pytestmark = pytest.mark.anyio

Refused = Callable[..., Awaitable[str]]
USER, ASSISTANT, SYSTEM = ({"role": role, "content": "Hi"} for role in ("user", "assistant", "system"))


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ({"model": "toy"}, "prompt_or_messages"),
        ({"model": "toy", "prompt": "Hi", "messages": [USER]}, "prompt_or_messages"),
        ({"model": "toy", "messages": [USER, ASSISTANT]}, "last_message_not_user"),
        ({"model": "toy", "messages": [SYSTEM, USER], "system": "Be brief."}, "two_system_prompts"),
        ({"prompt": "Hi"}, "adapter_or_model"),
        ({"prompt": "Hi", "model": "toy", "adapter_id": "ad-x"}, "adapter_or_model"),
        ({"prompt": "Hi", "adapter_id": "ad-x"}, "artifact_not_found"),
        ({"prompt": "Hi", "model": "toy"}, "toy_not_made"),
        ({"prompt": "Hi", "model": "llama3.2:1b"}, "model_not_trainable"),
        ({"model": "toy", "messages": []}, "invalid_arguments"),
        ({"model": "toy", "prompt": "Hi", "temperature": 3}, "invalid_arguments"),
        ({"model": "toy", "messages": [{"role": "robot", "content": "Hi"}]}, "invalid_arguments"),
    ],
)
async def test_a_request_that_cannot_be_answered_is_refused(
    refused: Refused, workspace: Workspace, arguments: dict[str, Any], code: str
) -> None:
    assert (await refused("chat_with_adapter", **arguments)).startswith(f"{code}: ")
    assert not list(workspace.home.root.glob("chat*"))


async def test_the_place_inside_an_argument_is_named(refused: Refused) -> None:
    text = await refused("chat_with_adapter", model="toy", messages=[USER, {"role": "robot", "content": "Hi"}, USER])
    assert "messages.1.role='robot': Input should be 'system', 'user' or 'assistant'." in text


async def test_an_export_is_no_adapter(refused: Refused, export: Row) -> None:
    text = await refused("chat_with_adapter", adapter_id=export["id"], prompt="Hi")
    assert text.startswith("wrong_kind: ")
    assert 'Next: list_artifacts(kind="adapter").' in text
