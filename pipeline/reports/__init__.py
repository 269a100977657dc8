"""Reports: a job as a page for a person, an adapter's evaluation for its model card. Light, made when asked for."""

from pathlib import Path

from tunewright.pipeline import files, jobs
from tunewright.pipeline.reports.card_section import markdown, scores
from tunewright.pipeline.reports.page import KINDS, page
from tunewright.pipeline.workspace import Workspace

__all__ = ["KINDS", "markdown", "page", "scores", "write"]

FILE = "report.html"


def write(workspace: Workspace, job_id: str) -> Path:
    """Writes the job's page into its folder, whole or not at all, over an earlier one. Raises as `page`."""
    job = workspace.store.job(job_id)
    path = jobs.folder(workspace, job["id"]) / FILE
    files.write_text(path, page(workspace, job["id"]))
    return path
