"""generate_examples as an agent calls it: the job at once, what is refused, and what it tells when it is done."""

from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mcp.types import Tool
from standins.chat_server import ChatStandIn

from tunewright.pipeline.workspace import Workspace

pytestmark = pytest.mark.anyio

Call = Callable[..., Awaitable[dict[str, Any]]]
Refused = Callable[..., Awaitable[str]]
MAX_LISTED_BYTES = 1500
DOCUMENT = """# Green tea
Green tea from Uji is steeped at 70 degrees for two minutes. Shading the bushes before harvest raises theanine.
# Black tea
Assam grows in the valley of the Brahmaputra. Withering removes half of the water before rolling begins.
"""


@pytest.fixture
def server() -> Iterator[ChatStandIn]:
    with ChatStandIn() as stand_in:
        yield stand_in


@pytest.fixture
def document(write: Callable[[str, str], Path]) -> str:
    return str(write("tea.md", DOCUMENT))


async def test_the_job_comes_at_once_and_ends_with_a_dataset_to_look_at(
    call: Call, server: ChatStandIn, document: str
) -> None:
    server.hold_after = 0
    started = await call(
        "generate_examples", source=document, endpoint=server.endpoint, model="teacher", count=2, chunk_tokens=100
    )
    assert started["state"] == "queued"
    assert started["arguments"]["count"] == 2 and started["arguments"]["name"] == "tea-qa"
    (step,) = started["next_steps"]
    assert (step["tool"], step["arguments"]["job_id"]) == ("get_status", started["job_id"])

    server.release.set()
    status = await call("get_status", job_id=started["job_id"], wait_s=40)
    assert status["job"]["state"] == "succeeded", status["job"]["error"]
    result = status["job"]["result"]
    assert (result["rows"], result["wanted"], result["requests"]) == (2, 2, 4)
    (look,) = status["next_steps"]
    assert look["arguments"] == {"dataset_id": result["dataset_id"]}
    rows = (await call("inspect_dataset", dataset_id=result["dataset_id"]))["rows"]
    assert len(rows) == 2 and rows[0]["messages"][-1]["content"] in DOCUMENT


async def test_documents_leave_this_machine_only_after_consent(
    refused: Refused, document: str, workspace: Workspace
) -> None:
    text = await refused("generate_examples", source=document, endpoint="https://192.0.2.1/v1", model="teacher")
    assert text.startswith("not_confirmed: ") and "confirm=true" in text.partition("Next: ")[2]
    assert not workspace.store.rows("SELECT id FROM jobs")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ({"model": "techer"}, "teacher_not_found: "),
        ({"model": ""}, "teacher_not_found: "),
        ({"endpoint": "ollama"}, "endpoint_unavailable: "),
        ({"endpoint": "http://me:word@127.0.0.1/v1"}, "invalid_endpoint: "),
        ({"kind": "poem"}, "invalid_arguments: kind='poem': "),
        ({"temperature": 0.5}, "invalid_arguments: 'temperature' is no argument of generate_examples."),
    ],
)
async def test_what_cannot_work_is_refused_and_starts_no_job(
    refused: Refused, server: ChatStandIn, document: str, workspace: Workspace, arguments: dict[str, Any], code: str
) -> None:
    given = {"source": document, "endpoint": server.endpoint, "model": "teacher"} | arguments
    assert (await refused("generate_examples", **given)).startswith(code)
    assert not workspace.store.rows("SELECT id FROM jobs")


async def test_the_tool_is_small_in_the_list(tools: dict[str, Tool]) -> None:
    listed = tools["generate_examples"].model_dump_json(by_alias=True, exclude_none=True)
    assert len(listed.encode()) <= MAX_LISTED_BYTES
