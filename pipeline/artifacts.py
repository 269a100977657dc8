"""What the home holds, and deleting from it: never what something else still needs. Light."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from sqlite3 import Connection
from typing import Any

from tunewright.pipeline import files, jobs
from tunewright.pipeline.errors import Conflict, NoSpace, NotFound, call
from tunewright.pipeline.ids import PREFIX
from tunewright.pipeline.store import Row
from tunewright.pipeline.workspace import Workspace

PAGE_ROWS = 20
# So many ids stand in an error's text.
NAMED = 5


def page(workspace: Workspace, kind: str | None, number: int) -> tuple[list[dict[str, Any]], bool]:
    """Page `number` (from 1) of what there is of `kind`, newest first, and whether more follow."""
    offset = (number - 1) * PAGE_ROWS
    sql = """
        SELECT id, kind, name, created_at, '' AS state FROM artifacts WHERE ?1 IS NULL OR kind=?1
        UNION ALL SELECT id, 'job', kind, created_at, state FROM jobs WHERE ?1 IS NULL OR ?1='job'
        ORDER BY created_at DESC LIMIT ?2 OFFSET ?3
    """
    rows = workspace.store.rows(sql, kind, PAGE_ROWS + 1, offset)
    return rows[:PAGE_ROWS], len(rows) > PAGE_ROWS


def folder_of(workspace: Workspace, row: Row) -> Path | None:
    """Where an artifact's files lie; a publication has none here."""
    home = workspace.home
    if row["kind"] == "dataset":  # one that was added to lies in a folder of its own
        return Path(row["document"].get("path", home.datasets / row["id"]))
    parents = {"adapter": home.adapters, "export": home.exports}
    return parents[row["kind"]] / row["id"] if row["kind"] in parents else None


def delete(workspace: Workspace, artifact_id: str, *, confirm: bool) -> tuple[str, int]:
    """Deletes an artifact or a finished job with its files; returns its id and the bytes freed.

    Raises Conflict where something still needs it, a job is active, or `confirm` is missing. A published model stays
    where it was published. A failed or cancelled job that worked on the artifact can never be resumed afterwards.
    """
    if artifact_id.startswith(f"{PREFIX['job']}-"):
        return _delete_job(workspace, artifact_id, confirm=confirm)
    row = workspace.store.artifact(artifact_id)
    artifact_id, folder = row["id"], folder_of(workspace, row)
    needing = [child["id"] for child in workspace.store.children(artifact_id) if _needs(child, row)]
    needing += _trained_on(workspace, artifact_id)
    if needing:
        raise _still_needed(
            artifact_id, needing, "Delete those first.", call("delete_artifact", artifact_id=needing[0])
        )
    # Under the lock, so that no such job is resumed at this moment.
    with jobs.spawn_lock(workspace):
        working = [job["id"] for job in jobs.naming(workspace, artifact_id, *jobs.ACTIVE, jobs.State.INTERRUPTED)]
        if working:
            raise _still_needed(
                artifact_id, working, "Cancel or await those first.", call("cancel_job", job_id=working[0])
            )
        resumable = jobs.naming(workspace, artifact_id, jobs.State.FAILED, jobs.State.CANCELLED)
        freed = files.size_bytes(folder) if folder and folder.exists() else 0
        _require_confirmation(artifact_id, freed, confirm, [job["id"] for job in resumable])

        def forget(db: Connection) -> None:
            db.execute("DELETE FROM artifacts WHERE id=?", (artifact_id,))
            db.executemany(
                "INSERT INTO events(job_id, at, level, code, message) VALUES (?,?,'warning',?,?)",
                [(job["id"], time.time(), jobs.INPUT_DELETED, f"{artifact_id} was deleted.") for job in resumable],
            )

        _remove(workspace, folder, forget)
    return artifact_id, freed


def _still_needed(artifact_id: str, needing: list[str], allowed: str, next: str) -> Conflict:
    what = f"{artifact_id} is needed by {_some(needing)}."
    return Conflict("still_needed", what, allowed=allowed, next=next, done="Nothing was deleted.")


def _needs(child: Row, parent: Row) -> bool:
    """What was made from the parent is told from it (cards, provenance, checks). An adapter that went on from another
    holds that one's weights, and needs it no more."""
    return (parent["kind"], child["kind"]) in {("adapter", "export"), ("dataset", "adapter"), ("export", "publication")}


def _trained_on(workspace: Workspace, artifact_id: str) -> list[str]:
    """Adapters whose base lies in the artifact's folder: a model that was trained as a whole, or a merged one."""
    adapters = workspace.store.artifacts("adapter")
    return [row["id"] for row in adapters if artifact_id in Path(row["document"].get("base_path") or "").parts]


def _delete_job(workspace: Workspace, job_id: str, *, confirm: bool) -> tuple[str, int]:
    row = workspace.store.job(job_id)
    job_id = row["id"]
    if row["state"] in jobs.ACTIVE:
        raise Conflict(
            "job_active", f"{job_id} is {row['state']}.", allowed="Cancel it first.",
            next=call("cancel_job", job_id=job_id), done="Nothing was deleted.",
        )  # fmt: skip
    folder = jobs.folder(workspace, job_id)
    freed = files.size_bytes(folder) if folder.exists() else 0
    _require_confirmation(job_id, freed, confirm, [])

    def forget(db: Connection) -> None:
        for table, column in (("jobs", "id"), ("events", "job_id"), ("metrics", "job_id")):
            db.execute(f"DELETE FROM {table} WHERE {column}=?", (job_id,))

    _remove(workspace, folder, forget)
    return job_id, freed


def _require_confirmation(artifact_id: str, freed: int, confirm: bool, resumable: list[str]) -> None:
    if not confirm:
        lost = f" {_some(resumable)} could not be resumed any more." if resumable else ""
        raise Conflict(
            "not_confirmed", f"Deleting {artifact_id} frees {freed / 1e6:.1f} MB and cannot be undone.{lost}",
            allowed="Ask the user first.", next=call("delete_artifact", artifact_id=artifact_id, confirm=True),
            done="Nothing was deleted.",
        )  # fmt: skip


def _some(ids: list[str]) -> str:
    more = len(ids) - NAMED
    return ", ".join(ids[:NAMED]) + (f" and {more} more" if more > 0 else "")


def _remove(workspace: Workspace, folder: Path | None, forget: Callable[[Connection], None]) -> None:
    """Deletes what `forget` deletes of the store, and the folder."""
    try:
        # The rows first: a kill in between leaves files without a row, never a row without files.
        with workspace.store.transaction() as db:
            forget(db)
        _remove_folder(folder)
    except NoSpace:
        # To forget takes room, too, and there is none but what the files give back.
        _remove_folder(folder)
        with workspace.store.transaction() as db:
            forget(db)


def _remove_folder(folder: Path | None) -> None:
    if folder is not None and folder.exists():
        # Out of sight in one step, so that a kill leaves no half folder under its name.
        hidden = folder.with_name(f"{files.PARTIAL}deleted-{folder.name}")
        folder.rename(hidden)
        shutil.rmtree(hidden, ignore_errors=True)


def find(workspace: Workspace, artifact_id: str, kind: str) -> Row:
    """An artifact of `kind` for reading. Raises NotFound also where its folder is gone."""
    row = workspace.store.artifact(artifact_id, kind)
    folder = folder_of(workspace, row)
    if folder is not None and not folder.exists():
        raise NotFound("files_gone", f"The files of {row['id']} are gone from {folder}.", next="list_artifacts()")
    return row
