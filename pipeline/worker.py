"""The worker runs one job to a terminal state: `python -P -m tunewright.pipeline.worker --home H --job J`.

Waits for the device before it imports anything heavy. Whatever a stage raises becomes the job's terminal state; only a
kill leaves a job without one, and `jobs.reconcile` finds that.
"""

import argparse
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from tunewright.pipeline import access, files, jobs, lease, redact, rerun, unforeseen
from tunewright.pipeline.context import JobContext
from tunewright.pipeline.errors import Cancelled, TunewrightError, call
from tunewright.pipeline.jobs import State
from tunewright.pipeline.store import PATIENT_S
from tunewright.pipeline.workspace import Workspace

# The server's answers come first where both share two cores.
NICENESS = 5


def stage(kind: str) -> Callable[[JobContext], dict[str, Any]]:
    """The function that does the work of a kind of job. Imports it, which for most takes seconds."""
    match kind:
        case "prepare_dataset":
            from tunewright.pipeline.data import prepare

            return prepare.run
        case "generate_examples":
            from tunewright.pipeline.generation import generate

            return generate.run
        case "finetune":
            from tunewright.pipeline.training import finetune

            return finetune.run
        case "validate":
            from tunewright.pipeline.validation import validate

            return validate.run
        case "benchmark":
            from tunewright.pipeline.benchmarking import benchmark

            return benchmark.run
        case "export":
            from tunewright.pipeline.exporting import export

            return export.run
        case "publish_ollama":
            from tunewright.pipeline.publishing import ollama

            return ollama.run
        case "publish_hub":
            from tunewright.pipeline.publishing import hub

            return hub.run
        case _:
            raise ValueError(f"unknown kind of job: {kind}")


def run_job(workspace: Workspace, job_id: str, *, own_process: bool = False) -> State:
    """Runs the job in this process; returns the terminal state it stored.

    A process of its own, started in another folder, may read what the server that took the job might.
    """
    context = JobContext.of(workspace, job_id)
    row = workspace.store.job(job_id)
    try:
        if own_process:
            access.allow(files.read_json(context.folder / "spec.json").get("allowed", ()))
        device = lease.hold_device(workspace, job_id, context.check_cancelled) if row["needs_device"] else nullcontext()
        with device as held:
            context.check_cancelled()
            if held is not None:
                held.make_visible()
            if not jobs.move(workspace, job_id, (State.QUEUED,), State.RUNNING, started_at=time.time()):
                return State(workspace.store.job(job_id)["state"])
            context.progress("starting")
            context.event("info", "started", f"Running on {held.name}." if held else "Running.")
            if row["kind"] == "finetune":
                rerun.remember(context)
            # Not before: what it sets depends on the device.
            from tunewright.pipeline import heavy

            with heavy.imports():
                run = stage(row["kind"])
            result = run(context)
        state = _end(context, State.SUCCEEDED, result=result)
        _write_report(context, row["kind"])
        return state
    except Cancelled:
        jobs.grant_wish(workspace, job_id, context.cancel_wish)
        return _end(context, State.CANCELLED)
    except TunewrightError as error:
        return _end(context, State.FAILED, error=error.to_dict())
    except BaseException as error:  # noqa: BLE001 - the top of the worker: anything else would leave the job without an end
        traceback.print_exc()
        return _end(context, State.FAILED, error=_describe(context, error))


def _end(
    context: JobContext, state: State, *, result: dict[str, Any] | None = None, error: dict[str, str] | None = None
) -> State:
    columns: dict[str, Any] = {"ended_at": time.time()}
    if result is not None:
        columns["result"] = json.dumps(result)
    if error is not None:
        error = {key: redact.without_secrets(text) for key, text in error.items()}
        columns["error"] = json.dumps(error)
    jobs.move(context.workspace, context.job_id, jobs.ACTIVE, state, **columns)
    message = f"{error['code']}: {error['what']}" if error else f"Job {state}."
    if state == State.CANCELLED:
        row = context.workspace.store.job(context.job_id)
        message += f" Resumed, it goes on {jobs.start_point(context.workspace, row)}."
    context.event("error" if error else "info", str(state), message)
    return state


def _write_report(context: JobContext, kind: str) -> None:
    """The job's page, for whoever looks into its folder; the resource makes it anew each time."""
    # A worker that waits for the device has no use for it yet.
    from tunewright.pipeline import reports

    if kind not in reports.KINDS:
        return
    try:
        reports.write(context.workspace, context.job_id)
    except Exception as error:  # noqa: BLE001 - the job has succeeded, whatever its page meets
        traceback.print_exc()
        why = f"{type(error).__name__}: {error}"
        context.event("warning", "no_report", f"Its report.html could not be written ({why}).")


def _describe(context: JobContext, error: BaseException) -> dict[str, str]:
    """An unforeseen failure in the form of a foreseen one (`TunewrightError.to_dict`)."""
    log = jobs.log_path(context.workspace, context.job_id)
    cause, again = unforeseen.cause(error), call("get_status", job_id=context.job_id, detail="detailed")
    allowed = f"The traceback stands in {log}."
    if cause == "out_of_memory":
        allowed = (
            "Lower batch_size (and raise gradient_accumulation alike), max_seq_length or lora_rank; load_in_4bit=true."
        )
    elif cause == "no_disk_space":
        allowed, again = (
            "Free some space; list_artifacts() shows what is there.",
            call("resume_job", job_id=context.job_id),
        )
    elif cause == "weights_damaged":
        allowed = f"A file of weights that the job reads is no longer whole; {log} says where. Make or fetch it again."
        again = call("list_artifacts")
    return {
        "code": cause or "internal_error",
        "what": unforeseen.in_brief(error),
        "allowed": allowed,
        "next": again,
        "done": "Nothing half-made was kept; checkpoints are.",
    }


def start_inline(workspace: Workspace, job_id: str) -> int:
    """Runs the job in a thread of this process; returns this process's pid."""

    def run() -> None:
        try:
            run_job(workspace, job_id)
        finally:
            workspace.store.close()

    threading.Thread(target=run, name=job_id, daemon=True).start()
    return os.getpid()


def main() -> None:
    redact.redact_output()
    parser = argparse.ArgumentParser(prog="tunewright-worker")
    parser.add_argument("--home", required=True)
    parser.add_argument("--job", required=True)
    arguments = parser.parse_args()
    workspace = Workspace.open(arguments.home, busy_timeout_s=PATIENT_S)
    # Whoever started this worker holds the lock until its pid is stored. A pid that is not ours: it died before that,
    # and another worker was, or will be, started for the job.
    with jobs.spawn_lock(workspace):
        if workspace.store.job(arguments.job)["pid"] != os.getpid():
            return
    os.nice(NICENESS)
    state = run_job(workspace, arguments.job, own_process=True)
    sys.exit(0 if state == State.SUCCEEDED else 1)


if __name__ == "__main__":
    main()
