"""tw://datasets, tw://adapters and tw://exports: the stored documents, as a client reads them."""

import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from mcp import Client, MCPError
from mcp.types import INVALID_PARAMS

from tunewright.pipeline.data.prepare import prepare
from tunewright.pipeline.workspace import Workspace

pytestmark = pytest.mark.anyio

Read = Callable[[str], Awaitable[Any]]


async def test_a_prepared_dataset_is_read_as_its_report(read: Read, workspace: Workspace, tmp_path: Any) -> None:
    source = tmp_path / "numbers.jsonl"
    rows = [{"prompt": f"Say {i}.", "response": f"{i}!"} for i in range(30)]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    prepared = prepare(workspace, source, eval_fraction=0.1)
    content = await read(f"tw://datasets/{prepared['id']}")
    assert content.mime_type == "application/json"
    document = json.loads(content.text)
    assert document == {"id": prepared["id"], "name": "numbers", "parents": []} | prepared["document"]
    assert (document["train_rows"], document["eval_rows"]) == (27, 3)
    page = await read(f"tw://datasets/{prepared['id']}/report.html")
    assert page.mime_type == "text/html"
    assert page.text.startswith("<!doctype html>") and prepared["id"] in page.text


@pytest.mark.parametrize(
    ("kind", "id", "parents"), [("adapter", "ad-x-0001", ["ds-x-0001"]), ("export", "ex-x-0001", [])]
)
async def test_other_artifacts_are_read_with_what_they_came_from(
    read: Read, workspace: Workspace, kind: str, id: str, parents: list[str]
) -> None:
    workspace.store.add_artifact(id, kind, "x", {"path": "somewhere"}, parents=parents)
    document = json.loads((await read(f"tw://{kind}s/{id}")).text)
    assert document == {"id": id, "name": "x", "parents": parents, "path": "somewhere"}


@pytest.mark.parametrize("kind", ["datasets", "adapters", "exports"])
async def test_an_unknown_or_foreign_id_is_not_found(client: Client, workspace: Workspace, kind: str) -> None:
    workspace.store.add_artifact("pub-x-0001", "publication", "x", {}, parents=[])
    for id, code in (("none", "artifact_not_found: "), ("pub-x-0001", "wrong_kind: ")):
        with pytest.raises(MCPError) as refused:
            await client.read_resource(f"tw://{kind}/{id}")
        assert refused.value.error.code == INVALID_PARAMS
        assert code in refused.value.error.message
