"""list_artifacts and delete_artifact."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tunewright.pipeline.store import Row
from tunewright.pipeline.workspace import Workspace

pytestmark = pytest.mark.anyio

Call = Callable[..., Awaitable[dict[str, Any]]]
Refused = Callable[..., Awaitable[str]]
EndedJob = Callable[..., str]


async def test_everything_that_the_home_holds_is_listed_newest_first(
    call: Call, dataset_id: str, adapter: Row, export: Row, ended_job: EndedJob, workspace: Workspace
) -> None:
    job_id = ended_job("finetune", "failed")
    workspace.store.add_artifact("pub-x-0001", "publication", "me/x", {}, parents=[export["id"]])
    listed = (await call("list_artifacts"))["artifacts"]
    assert {line["id"]: line["kind"] for line in listed} == {
        "pub-x-0001": "publication", job_id: "job", export["id"]: "export", adapter["id"]: "adapter",
        dataset_id: "dataset",
    }  # fmt: skip
    assert [line["created"] for line in listed] == sorted((line["created"] for line in listed), reverse=True)
    assert [line["id"] for line in (await call("list_artifacts", kind="job"))["artifacts"]] == [job_id]


async def test_pages_lead_through_all_of_a_kind(call: Call, ended_job: EndedJob) -> None:
    ids = {ended_job("export", "failed") for _ in range(45)}
    seen: list[str] = []
    arguments: dict[str, Any] | None = {"kind": "job"}
    while arguments:
        page = await call("list_artifacts", **arguments)
        assert len(page["artifacts"]) <= 20
        seen += [line["id"] for line in page["artifacts"]]
        look, *following = page["next_steps"]
        assert (look["tool"], look["arguments"]) == ("get_status", {"job_id": page["artifacts"][0]["id"]})
        assert page["more"] is bool(following)
        arguments = following[0]["arguments"] if following else None
    assert len(seen) == 45
    assert set(seen) == ids


async def test_deleting_needs_confirmation_and_takes_the_files(
    call: Call, refused: Refused, dataset_id: str, workspace: Workspace
) -> None:
    text = await refused("delete_artifact", artifact_id=dataset_id)
    assert text.startswith(f"not_confirmed: Deleting {dataset_id} frees ")
    assert f'Next: delete_artifact(artifact_id="{dataset_id}", confirm=true).' in text
    assert text.endswith("Nothing was deleted.")
    assert (workspace.home.datasets / dataset_id).is_dir()

    answer = await call("delete_artifact", artifact_id=dataset_id[:6], confirm=True)
    assert answer["deleted"] == dataset_id
    assert answer["freed_bytes"] > 1000
    assert not list(workspace.home.datasets.iterdir())
    assert (await call("list_artifacts"))["artifacts"] == []


async def test_what_something_else_needs_is_not_deleted(
    call: Call, refused: Refused, adapter: Row, export: Row
) -> None:
    text = await refused("delete_artifact", artifact_id=adapter["id"], confirm=True)
    assert text.startswith(f"still_needed: {adapter['id']} is needed by {export['id']}.")
    assert f'Next: delete_artifact(artifact_id="{export["id"]}").' in text
    await call("delete_artifact", artifact_id=export["id"], confirm=True)
    await call("delete_artifact", artifact_id=adapter["id"], confirm=True)


async def test_an_ended_job_is_deleted_with_its_metrics(call: Call, ended_job: EndedJob, workspace: Workspace) -> None:
    job_id = ended_job("finetune", "failed")
    workspace.store.add_metric(job_id, "train", 1, {"loss": 1.0})
    await call("delete_artifact", artifact_id=job_id, confirm=True)
    assert not workspace.store.metrics(job_id)
    assert not list(workspace.home.jobs.iterdir())


async def test_what_comes_next_fits_what_the_export_holds(call: Call, workspace: Workspace, export: Row) -> None:
    assert (await call("list_artifacts", kind="export"))["next_steps"][0]["tool"] == "publish_to_ollama"
    document = {"files": [{"output": "lora"}]}
    workspace.store.add_artifact("ex-lora-0001", "export", "lora", document, parents=[])
    assert (await call("list_artifacts", kind="export"))["next_steps"][0]["tool"] == "publish_to_hub"
