"""What to do next, each with the call that does it, from what is known of a job and of its adapter."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tunewright.pipeline import jobs
from tunewright.pipeline.errors import call
from tunewright.pipeline.exporting.outputs import is_gguf
from tunewright.pipeline.jobs import State
from tunewright.pipeline.reports import evidence, judged
from tunewright.pipeline.reports.evidence import Evidence
from tunewright.pipeline.store import Row
from tunewright.pipeline.validation.pairs import Tally
from tunewright.pipeline.workspace import Workspace


@dataclass(frozen=True)
class NextStep:
    why: str
    call: str


def of(workspace: Workspace, job: Row) -> list[NextStep]:
    """In the order in which they make sense; of a job that has not succeeded how it can."""
    if job["state"] in jobs.ACTIVE:
        return [NextStep("It is not over: look again.", call("get_status", job_id=job["id"], wait_s=50))]
    if job["state"] != State.SUCCEEDED:
        error: dict[str, str] = job["error"] or {}
        again = call("resume_job", job_id=job["id"])
        return [NextStep(error.get("allowed") or "It can be resumed.", error.get("next") or again)]
    adapter_id = (job["result"] or {}).get("adapter_id") or job["spec"].get("adapter_id")
    known = evidence.of_adapter(workspace, adapter_id)
    return list(_of_adapter(workspace, known)) if known.adapter else []


def _of_adapter(workspace: Workspace, known: Evidence) -> Iterator[NextStep]:
    adapter_id = known.adapter_id
    if known.validation is None:
        yield NextStep(
            "Nobody has compared it with its base yet.", call("validate_adapter", adapter_id=adapter_id, max_samples=50)
        )
    else:
        tally = evidence.judgements(workspace, known.validation)
        yield from _after_validation(known.validation["id"], known.validation["result"], tally)
    if not known.benchmarks:
        yield NextStep(
            "See whether it still knows what its base knew.", call("benchmark_adapter", adapter_id=adapter_id)
        )
    if not known.exports:
        yield NextStep("Merge it and make a GGUF of it.", call("merge_and_export", adapter_id=adapter_id))
        return
    yield from _after_export(known.exports[0])


def _after_validation(job_id: str, result: dict[str, Any], tally: Tally | None) -> Iterator[NextStep]:
    worse = [metric.label for metric in judged.metrics(result) if metric.verdict == "worse"]
    if worse:
        yield NextStep(
            f"It is worse than its base on {', '.join(worse)}: read those samples before it is "
            "used; fewer epochs, a lower rate or better rows are the usual cures.",
            call("get_status", job_id=job_id, detail="detailed"),
        )  # fmt: skip
    if result["pairs"] and (tally is None or (tally.remaining and not tally.revealed)):
        yield NextStep("Judge pairs of its answers blindly.", call("submit_judgements", job_id=job_id))


def _after_export(export: Row) -> Iterator[NextStep]:
    parity: dict[str, Any] = export["document"].get("parity") or {}
    outputs = [entry["output"] for entry in export["document"].get("files", [])]
    if parity.get("failures"):
        yield NextStep(
            f"{export['id']} is not the model that was trained: see what failed.",
            call("get_status", job_id=export["job_id"], detail="detailed"),
        )
    elif any(map(is_gguf, outputs)):
        yield NextStep(
            "Bring it into Ollama; look at the Modelfile first.",
            call("publish_to_ollama", export_id=export["id"], model_name="my-model", dry_run=True),
        )
    else:
        yield NextStep(
            "Publish it; look at the model card first.",
            call("publish_to_hub", artifact_id=export["id"], repo_id="your-name/your-model", dry_run=True),
        )
