"""What a stage of the pipeline is given by the worker: its job, its folder, how it reports and hears of a cancel."""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunewright.pipeline import jobs
from tunewright.pipeline.errors import Cancelled
from tunewright.pipeline.workspace import Workspace


@dataclass
class JobContext:
    """One per run of a job. `spec` is the job's arguments, `folder` its folder in the data home."""

    workspace: Workspace
    job_id: str
    spec: dict[str, Any]
    folder: Path

    @classmethod
    def of(cls, workspace: Workspace, job_id: str) -> "JobContext":
        row = workspace.store.job(job_id)
        return cls(workspace, job_id, row["spec"], jobs.folder(workspace, job_id))

    def event(self, level: str, code: str, message: str) -> None:
        """Adds to the job's history; `level` is info, warning or error."""
        self.workspace.store.add_event(self.job_id, level, code, message)

    def metric(self, split: str, step: int, numbers: dict[str, float]) -> None:
        """Stores the numbers of a step of `split` (train or eval)."""
        self.workspace.store.add_metric(self.job_id, split, step, numbers)

    def progress(self, phase: str, done: float = 0, total: float = 0, **details: Any) -> None:
        """Says where the job is: `phase` in words, `done` of `total`, and details such as eta_s, loss, peak_gib."""
        progress = {"phase": phase, "done": done, "total": total, "at": time.time(), **details}
        self.workspace.store.execute("UPDATE jobs SET progress=? WHERE id=?", json.dumps(progress), self.job_id)

    @property
    def cancel_wish(self) -> str | None:
        """`keep` or `discard` (the checkpoints) once a cancel was asked for, else None."""
        rows = self.workspace.store.rows("SELECT cancel FROM jobs WHERE id=?", self.job_id)
        return rows[0]["cancel"] if rows else "discard"

    @property
    def died_of_memory(self) -> bool:
        """Whether the last worker of this job was killed because host memory ran out."""
        return jobs.died_of_memory(self.workspace, self.job_id)

    def check_cancelled(self) -> None:
        """Raises Cancelled once a cancel was asked for. Stages call it wherever stopping is safe."""
        if self.cancel_wish:
            raise Cancelled(self.job_id)
