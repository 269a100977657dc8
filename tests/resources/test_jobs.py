"""tw://environment, tw://jobs and what lies below, as a client reads them."""

import base64
import io
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from matplotlib.image import imread
from mcp import Client, MCPError
from mcp.types import INVALID_PARAMS, BlobResourceContents, TextResourceContents

from tunewright.pipeline.workspace import Workspace

pytestmark = pytest.mark.anyio

Read = Callable[[str], Awaitable[Any]]


async def _json(read: Read, uri: str) -> Any:
    content = await read(uri)
    assert isinstance(content, TextResourceContents)
    assert content.mime_type == "application/json"
    return json.loads(content.text)


async def test_resources_and_templates_are_listed_with_descriptions(client: Client) -> None:
    resources = {str(r.uri): r for r in (await client.list_resources()).resources}
    assert set(resources) == {"tw://environment", "tw://jobs", "tw://guides", "ui://tunewright/jobs"}
    templates = {t.uri_template: t for t in (await client.list_resource_templates()).resource_templates}
    assert set(templates) == {
        "tw://jobs/{job_id}", "tw://jobs/{job_id}/metrics", "tw://jobs/{job_id}/log{?tail}",
        "tw://jobs/{job_id}/loss.png", "tw://jobs/{job_id}/report.html", "tw://guides/{topic}",
        "ui://tunewright/jobs/now{?job}", "tw://datasets/{dataset_id}",
        "tw://datasets/{dataset_id}/report.html", "tw://adapters/{adapter_id}",
        "tw://exports/{export_id}",
    }  # fmt: skip
    for entry in (*resources.values(), *templates.values()):
        assert entry.description and entry.mime_type


async def test_the_environment_is_that_of_the_home(read: Read, workspace: Workspace) -> None:
    environment = await _json(read, "tw://environment")
    assert environment["home"] == str(workspace.home.root)
    assert environment["gpus"] == []


async def test_jobs_are_listed_each_time_anew(read: Read, workspace: Workspace, job_id: str) -> None:
    (line,) = await _json(read, "tw://jobs")
    assert (line["job_id"], line["state"]) == (job_id, "succeeded")
    workspace.store.execute("UPDATE jobs SET state='failed'")
    (line,) = await _json(read, "tw://jobs")
    assert line["state"] == "failed"


@pytest.mark.parametrize("given", ["job-numbers-0001", "job-num"])
async def test_a_job_is_read_by_id_or_prefix_with_its_curves(read: Read, job_id: str, given: str) -> None:
    job = await _json(read, f"tw://jobs/{given}")
    assert job["job_id"] == job_id
    assert job["elapsed_s"] == 60
    assert [step for step, _ in job["eval_curve"]] == [10, 20, 30, 40, 50, 60]


async def test_metrics_hold_every_stored_step(read: Read, job_id: str) -> None:
    metrics = await _json(read, f"tw://jobs/{job_id}/metrics")
    train = [row for row in metrics if row["split"] == "train"]
    assert [row["step"] for row in train] == list(range(1, 61))
    assert train[0]["learning_rate"] == 2e-4
    assert len(metrics) == 66


@pytest.mark.parametrize(("query", "count"), [("", 200), ("?tail=3", 3), ("?tail=5000", 300), ("?tail=0", 1)])
async def test_the_log_is_read_from_its_end(read: Read, job_id: str, query: str, count: int) -> None:
    content = await read(f"tw://jobs/{job_id}/log{query}")
    assert content.mime_type == "text/plain"
    lines = content.text.splitlines()
    assert len(lines) == count
    assert lines[-1] == "line 300 Zürich"


@pytest.mark.parametrize("tail", ["abc", "1.5", "9" * 5000])
async def test_a_tail_that_is_no_number_of_lines_is_refused_with_one_that_is(
    client: Client, job_id: str, tail: str
) -> None:
    with pytest.raises(MCPError) as refused:
        await client.read_resource(f"tw://jobs/{job_id}/log?tail={tail}")
    assert refused.value.error.code == INVALID_PARAMS
    assert refused.value.error.message == (
        f"invalid_tail: tail={tail[:40]!r} is no whole number of lines. 1 to 2000. "
        f"Next: read tw://jobs/{job_id}/log?tail=200. Nothing was changed."
    )


async def test_of_a_long_log_the_end_alone_is_read(read: Read, workspace: Workspace, job_id: str) -> None:
    with (workspace.home.jobs / job_id / "worker.log").open("w", encoding="utf-8") as log:
        log.writelines(f"{number:06} {'x' * 2000}\n" for number in range(1000))
    lines = (await read(f"tw://jobs/{job_id}/log?tail=2000")).text.splitlines()
    assert 400 < len(lines) < 500
    assert all(len(line) == 2007 for line in lines)
    assert lines[-1].startswith("000999 ")


async def test_the_log_of_a_job_that_has_not_begun_is_empty(read: Read, workspace: Workspace, job_id: str) -> None:
    (workspace.home.jobs / job_id / "worker.log").unlink()
    assert (await read(f"tw://jobs/{job_id}/log")).text == ""


async def test_the_loss_curve_is_a_picture_with_two_lines(read: Read, job_id: str) -> None:
    content = await read(f"tw://jobs/{job_id}/loss.png")
    assert isinstance(content, BlobResourceContents)
    assert content.mime_type == "image/png"
    picture = imread(io.BytesIO(base64.b64decode(content.blob)), format="png")
    assert picture.shape == (660, 880, 4)
    colours = {tuple(pixel) for pixel in (picture[..., :3] * 255).round().astype(int).reshape(-1, 3).tolist()}
    # matplotlib's first two colours: the training and the eval curve.
    assert {(0x1F, 0x77, 0xB4), (0xFF, 0x7F, 0x0E)} <= colours


@pytest.mark.parametrize("below", ["", "/metrics", "/log", "/log?tail=3", "/loss.png"])
async def test_an_unknown_job_is_not_found_and_the_nearest_named(client: Client, job_id: str, below: str) -> None:
    uri = f"tw://jobs/job-numbers-000x{below}"
    with pytest.raises(MCPError) as refused:
        await client.read_resource(uri)
    assert refused.value.error.code == INVALID_PARAMS
    assert refused.value.error.data == {"uri": uri}
    assert "job_not_found: " in refused.value.error.message
    assert job_id in refused.value.error.message


async def test_a_job_without_metrics_has_no_loss_curve(client: Client, workspace: Workspace, job_id: str) -> None:
    workspace.store.execute("DELETE FROM metrics")
    with pytest.raises(MCPError, match="no_metrics: ") as refused:
        await client.read_resource(f"tw://jobs/{job_id}/loss.png")
    assert refused.value.error.code == INVALID_PARAMS


@pytest.mark.parametrize("uri", ["tw://nothing", "tw://jobs/a/b/c", "tw://jobs/..%2F..%2Fsecret/log"])
async def test_what_no_template_names_is_not_found(client: Client, uri: str) -> None:
    with pytest.raises(MCPError) as refused:
        await client.read_resource(uri)
    assert refused.value.error.code == INVALID_PARAMS
