import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tunewright.pipeline import artifacts, jobs
from tunewright.pipeline.errors import Conflict, NotFound
from tunewright.pipeline.workspace import Workspace

AddJob = Callable[..., str]
PREFIXES = {"ds": "dataset", "ad": "adapter", "ex": "export", "pub": "publication"}


def add(workspace: Workspace, id: str, *parents: str, size: int = 1000) -> Path | None:
    kind = PREFIXES[id.split("-")[0]]
    workspace.store.add_artifact(id, kind, id.split("-")[1], {}, parents=list(parents))
    folder = artifacts.folder_of(workspace, workspace.store.artifact(id))
    if folder:
        (folder / "below").mkdir(parents=True)
        (folder / "below" / "file").write_bytes(b"x" * size)
    return folder


@pytest.fixture
def add_job(workspace: Workspace) -> AddJob:
    def added(id: str, state: str, created_at: float | None = None, **spec: Any) -> str:
        (workspace.home.jobs / id).mkdir()
        (workspace.home.jobs / id / "worker.log").write_bytes(b"x" * 500)
        workspace.store.execute(
            "INSERT INTO jobs(id, kind, state, needs_device, spec, created_at) VALUES (?,?,?,1,?,?)",
            id, "finetune", state, json.dumps(spec), created_at or time.time(),
        )  # fmt: skip
        workspace.store.add_event(id, "info", "submitted", "")
        workspace.store.add_metric(id, "train", 1, {"loss": 1.0})
        return id

    return added


def test_deleting_frees_the_bytes_and_leaves_nothing(workspace: Workspace) -> None:
    folder = add(workspace, "ds-a-0001", size=123_456)
    add(workspace, "ds-b-0001")
    assert artifacts.delete(workspace, "ds-a", confirm=True) == ("ds-a-0001", 123_456)
    assert folder and list(folder.parent.iterdir()) == [workspace.home.datasets / "ds-b-0001"]
    with pytest.raises(NotFound):
        workspace.store.artifact("ds-a-0001")


def test_deleting_without_confirmation_says_what_it_would_free(workspace: Workspace) -> None:
    folder = add(workspace, "ds-a-0001", size=2_000_000)
    with pytest.raises(Conflict) as caught:
        artifacts.delete(workspace, "ds-a-0001", confirm=False)
    assert "not_confirmed: Deleting ds-a-0001 frees 2.0 MB" in str(caught.value)
    assert caught.value.next == 'delete_artifact(artifact_id="ds-a-0001", confirm=true)'
    assert folder and folder.exists() and workspace.store.artifact("ds-a-0001")


@pytest.mark.parametrize(
    ("parent", "child"),
    [("ds-a-0001", "ad-a-0001"), ("ad-a-0001", "ex-a-0001"), ("ex-a-0001", "pub-a-0001")],
)
def test_what_another_artifact_came_from_is_kept_until_that_is_gone(
    workspace: Workspace, parent: str, child: str
) -> None:
    folder = add(workspace, parent)
    add(workspace, child, parent)
    with pytest.raises(Conflict) as caught:
        artifacts.delete(workspace, parent, confirm=True)
    assert f"still_needed: {parent} is needed by {child}." in str(caught.value)
    assert f'delete_artifact(artifact_id="{child}"' in caught.value.next
    assert folder and folder.exists()
    artifacts.delete(workspace, child, confirm=True)
    artifacts.delete(workspace, parent, confirm=True)
    assert not folder.exists()


def test_an_adapter_that_another_went_on_from_may_go(workspace: Workspace) -> None:
    add(workspace, "ad-a-0001")
    add(workspace, "ad-b-0001", "ad-a-0001")
    assert artifacts.delete(workspace, "ad-a-0001", confirm=True)[0] == "ad-a-0001"


@pytest.mark.parametrize(("id", "within"), [("ad-a-0001", ""), ("ex-a-0001", "merged")])
def test_a_model_that_an_adapter_or_a_job_was_given_by_its_path_is_kept(
    workspace: Workspace, add_job: AddJob, id: str, within: str
) -> None:
    model = str((add(workspace, id) or Path()) / within)
    add(workspace, f"{id}2")
    job_id = add_job("job-a-0001", "running", model=model)
    with pytest.raises(Conflict, match=rf"still_needed: {id} is needed by {job_id}\."):
        artifacts.delete(workspace, id, confirm=True)
    workspace.store.execute("UPDATE jobs SET state='succeeded'")
    workspace.store.add_artifact("ad-b-0001", "adapter", "b", {"base_path": model}, parents=[])
    with pytest.raises(Conflict, match=rf"still_needed: {id} is needed by ad-b-0001\."):
        artifacts.delete(workspace, id, confirm=True)
    artifacts.delete(workspace, f"{id}2", confirm=True)
    artifacts.delete(workspace, "ad-b-0001", confirm=True)
    artifacts.delete(workspace, id, confirm=True)


@pytest.mark.parametrize("state", ["queued", "running", "interrupted"])
@pytest.mark.parametrize(
    "spec", [{"dataset_id": "ds-a-0001", "model": "toy"}, {"source": [{"source": "ds-a-0001", "weight": 2}, "b.json"]}]
)
def test_what_an_active_job_works_on_is_kept(
    workspace: Workspace, add_job: AddJob, state: str, spec: dict[str, Any]
) -> None:
    add(workspace, "ds-a-0001")
    add_job("job-a-0001", state, **spec)
    with pytest.raises(Conflict, match=r"ds-a-0001 is needed by job-a-0001\.") as caught:
        artifacts.delete(workspace, "ds-a-0001", confirm=True)
    # What is active is cancelled, not deleted.
    assert caught.value.next == 'cancel_job(job_id="job-a-0001")'
    workspace.store.execute("UPDATE jobs SET state='failed'")
    artifacts.delete(workspace, "ds-a-0001", confirm=True)


@pytest.mark.parametrize("key", ["dataset_id", "continue_from"])
def test_a_job_that_could_be_resumed_is_named_before_and_refused_after_its_input_is_deleted(
    workspace: Workspace, add_job: AddJob, key: str
) -> None:
    id = "ds-a-0001" if key == "dataset_id" else "ad-a-0001"
    add(workspace, id, size=2_000_000)
    failed = [add_job(f"job-a-{number:04}", "failed", **{key: id}) for number in range(6)]
    cancelled = add_job("job-b-0001", "cancelled", **{key: id})
    other = add_job("job-c-0001", "failed", **{key: f"{id}0"})
    add_job("job-d-0001", "succeeded", **{key: id})
    with pytest.raises(Conflict, match="not_confirmed") as caught:
        artifacts.delete(workspace, id, confirm=False)
    named = ", ".join([cancelled, *failed[:1:-1]])
    assert f"cannot be undone. {named} and 2 more could not be resumed any more." in str(caught.value)
    assert jobs.deleted_input(workspace, cancelled) is None

    artifacts.delete(workspace, id, confirm=True)
    for job_id in (*failed, cancelled):
        before = workspace.store.job(job_id)
        with pytest.raises(Conflict, match=f"job_not_resumable: {job_id} cannot be resumed: {id} was deleted"):
            jobs.resume(workspace, job_id)
        assert workspace.store.job(job_id) == before
    assert jobs.deleted_input(workspace, other) is None
    assert jobs.deleted_input(workspace, "job-d-0001") is None, "it needs nothing any more"


def test_an_active_job_is_not_deleted(workspace: Workspace, add_job: AddJob) -> None:
    add_job("job-a-0001", "running")
    with pytest.raises(Conflict, match=r"job_active: job-a-0001 is running.*cancel_job"):
        artifacts.delete(workspace, "job-a", confirm=True)


def test_an_ended_job_goes_with_its_history_and_its_folder(workspace: Workspace, add_job: AddJob) -> None:
    add_job("job-a-0001", "succeeded")
    add_job("job-b-0001", "succeeded")
    assert artifacts.delete(workspace, "job-a", confirm=True) == ("job-a-0001", 500)
    assert [entry.name for entry in workspace.home.jobs.iterdir()] == ["job-b-0001"]
    assert workspace.store.events("job-a-0001") == [] and workspace.store.metrics("job-a-0001") == []
    assert workspace.store.events("job-b-0001") and workspace.store.metrics("job-b-0001")


def test_the_list_is_of_all_kinds_newest_first_and_in_pages(workspace: Workspace, add_job: AddJob) -> None:
    expected: list[str] = []
    for number in range(artifacts.PAGE_ROWS + 5):
        id = f"ds-a-{number:04}" if number % 2 else f"job-a-{number:04}"
        if number % 2:
            add(workspace, id)
            workspace.store.execute("UPDATE artifacts SET created_at=? WHERE id=?", float(number), id)
        else:
            add_job(id, "failed", created_at=float(number) + 0.5)
        expected.insert(0, id)
    first, more = artifacts.page(workspace, None, 1)
    second, rest = artifacts.page(workspace, None, 2)
    assert [row["id"] for row in first + second] == expected
    assert (len(first), more, rest) == (artifacts.PAGE_ROWS, True, False)
    assert {row["state"] for row in first} == {"", "failed"}
    assert artifacts.page(workspace, None, 3) == ([], False)

    only_jobs = [row["id"] for row in artifacts.page(workspace, "job", 1)[0]]
    assert only_jobs == [id for id in expected if id.startswith("job")]
    assert [row["id"] for row in artifacts.page(workspace, "adapter", 1)[0]] == []


def test_an_artifact_whose_files_are_gone_is_said_to_be(workspace: Workspace) -> None:
    folder = add(workspace, "ad-a-0001")
    assert artifacts.find(workspace, "ad-a", "adapter")["id"] == "ad-a-0001"
    assert folder
    folder.rename(folder.with_name("elsewhere"))
    with pytest.raises(NotFound, match=r"files_gone: The files of ad-a-0001 are gone"):
        artifacts.find(workspace, "ad-a-0001", "adapter")
    assert artifacts.delete(workspace, "ad-a-0001", confirm=True) == ("ad-a-0001", 0)
