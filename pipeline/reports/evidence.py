"""What the store and the jobs' folders hold on an adapter: how it was trained, how it was judged, what was made of it.

Reads only, and always anew. What was deleted since is None or absent, never an error.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunewright.pipeline import files, jobs
from tunewright.pipeline.rerun import CONDITIONS
from tunewright.pipeline.store import Row
from tunewright.pipeline.validation import pairs
from tunewright.pipeline.validation.pairs import Tally
from tunewright.pipeline.workspace import Workspace

SAMPLES, EVALUATION = "samples.jsonl", "evaluation.json"
# How the events say that a worker ended; after some of them long after it was dead.
FOUND_DEAD = (jobs.INTERRUPTED, jobs.HOST_MEMORY_OUT)
ENDS = (*FOUND_DEAD, jobs.State.SUCCEEDED, jobs.State.FAILED, jobs.State.CANCELLED)


@dataclass(frozen=True)
class Evidence:
    """Around one adapter, or the job that was to make one. Jobs are rows of the store, `validation` the newest."""

    adapter_id: str | None
    adapter: Row | None
    run: Row | None
    dataset: Row | None
    validation: Row | None
    benchmarks: list[Row]
    exports: list[Row]


def of_job(workspace: Workspace, job: Row) -> Evidence:
    """For a job's page: of a fine-tune all that is known of its adapter, of another kind what this job itself found."""
    result: dict[str, Any] = job["result"] or {}
    if job["kind"] == "finetune":
        adapter_id = result.get("adapter_id")
        found = of_adapter(workspace, adapter_id) if adapter_id else Evidence(None, None, None, None, None, [], [])
        dataset = found.dataset or _artifact(workspace, job["spec"].get("dataset_id"))
        return Evidence(adapter_id, found.adapter, job, dataset, found.validation, found.benchmarks, found.exports)
    adapter_id = job["spec"].get("adapter_id")
    adapter = _artifact(workspace, adapter_id)
    export = _artifact(workspace, result.get("export_id"))
    return Evidence(
        adapter_id, adapter, _run(workspace, adapter), _dataset(workspace, adapter),
        job if job["kind"] == "validate" and result else None,
        [job] if job["kind"] == "benchmark" and result else [],
        [export] if export else [],
    )  # fmt: skip


def of_adapter(workspace: Workspace, adapter_id: str) -> Evidence:
    """All that is known of an adapter; its row may be gone."""
    adapter = _artifact(workspace, adapter_id)
    validations = _evaluations(workspace, "validate", adapter_id)
    exports = [row for row in workspace.store.children(adapter_id) if row["kind"] == "export"]
    return Evidence(
        adapter_id, adapter, _run(workspace, adapter), _dataset(workspace, adapter),
        validations[0] if validations else None,
        _newest_of_each(_evaluations(workspace, "benchmark", adapter_id)),
        sorted(exports, key=lambda row: row["created_at"], reverse=True),
    )  # fmt: skip


def _evaluations(workspace: Workspace, kind: str, adapter_id: str) -> list[Row]:
    """The succeeded jobs of `kind` that judged the adapter, newest first."""
    sql = """
        SELECT * FROM jobs WHERE kind=? AND state='succeeded' AND json_extract(spec, '$.adapter_id')=?
        ORDER BY seq DESC
    """
    return workspace.store.rows(sql, kind, adapter_id)


def _newest_of_each(benchmarks: list[Row]) -> list[Row]:
    """Of each task, asked in one way with as many questions, the newest."""
    way = ("task", "n_shot", "chat_prompt", "questions")
    oldest_first = {tuple(row["result"].get(key) for key in way): row for row in reversed(benchmarks)}
    return list(oldest_first.values())


def _artifact(workspace: Workspace, artifact_id: str | None) -> Row | None:
    found = workspace.store.rows("SELECT * FROM artifacts WHERE id=?", artifact_id)
    return found[0] if found else None


def _run(workspace: Workspace, adapter: Row | None) -> Row | None:
    found = workspace.store.rows("SELECT * FROM jobs WHERE id=?", adapter["job_id"]) if adapter else []
    return found[0] if found else None


def _dataset(workspace: Workspace, adapter: Row | None) -> Row | None:
    return _artifact(workspace, adapter["document"].get("dataset_id")) if adapter else None


def evaluation(workspace: Workspace, job: Row) -> dict[str, Any]:
    """All that an evaluation's job has found; where its folder is gone, what the store keeps of it."""
    path = jobs.folder(workspace, job["id"]) / EVALUATION
    return files.read_json(path) if path.is_file() else job["result"]


def samples(workspace: Workspace, validation: Row) -> list[dict[str, Any]]:
    """The samples of a validate job in their order; [] where the file is gone."""
    path = jobs.folder(workspace, validation["id"]) / SAMPLES
    if not path.is_file():
        return []
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def judgements(workspace: Workspace, validation: Row) -> Tally | None:
    """What blind verdicts on a validation's pairs come to; None before anybody has asked for a pair."""
    begun = jobs.folder(workspace, validation["id"]) / pairs.JUDGEMENTS
    return pairs.tally(workspace, validation["id"]) if begun.is_file() else None


def conditions(workspace: Workspace, run: Row) -> dict[str, Any]:
    """What a fine-tune was run with (`rerun.remember`): dataset's hash, device, versions; {} where it never began."""
    path = jobs.folder(workspace, run["id"]) / CONDITIONS
    return files.read_json(path) if path.is_file() else {}


def device_s(workspace: Workspace, job: Row) -> float | None:
    """Seconds for which the job's workers held the device, those of its killed workers included.

    A worker that was found dead counts until its last word. None where it never began.
    """
    at: float | None = None
    total = 0.0
    words = sorted([row["at"] for row in workspace.store.rows("SELECT at FROM metrics WHERE job_id=?", job["id"])])
    said = workspace.store.rows("SELECT at, code FROM events WHERE job_id=? ORDER BY id", job["id"])
    if not any(row["code"] == "started" for row in said):
        return None
    last = 0.0
    for row in said:
        if row["code"] == "started":
            at = row["at"]
        elif row["code"] in ENDS and at is not None:
            heard = max([at, last, *(word for word in words if at <= word <= row["at"])])
            total += (heard if row["code"] in FOUND_DEAD else row["at"]) - at
            at = None
        last = row["at"]
    if at is not None:
        total += max([at, last, *words, (job["progress"] or {}).get("at", 0.0)]) - at
    return round(total, 1)


def folder_link(workspace: Workspace, job: Row, dataset: Row) -> str | None:
    """From the job's folder to the dataset's own report; None where it has none in this home."""
    report = Path(dataset["document"].get("path") or workspace.home.datasets / dataset["id"]) / "report.html"
    if not report.is_file() or not report.is_relative_to(workspace.home.root):
        return None
    return Path(os.path.relpath(report, jobs.folder(workspace, job["id"]))).as_posix()
