"""A fine-tune repeated: the same spec as a new job, and what differs now from when the first one ran.

Guarantees that data, arguments, base model's name and seed are the same; other versions, another device or another
revision of the base are said, not undone. A local model's folder is not compared.
"""

import sys
from importlib.metadata import version
from typing import Any

from tunewright.pipeline import access, files, gpu, jobs, models
from tunewright.pipeline.context import JobContext
from tunewright.pipeline.errors import Conflict, TunewrightError, call
from tunewright.pipeline.store import Row
from tunewright.pipeline.training.arguments import TrainingArguments
from tunewright.pipeline.workspace import Workspace

CONDITIONS = "conditions.json"
VERSIONS_OF = (
    "tunewright", "unsloth", "unsloth_zoo", "torch", "transformers", "peft", "trl", "datasets", "bitsandbytes",
)  # fmt: skip


def remember(context: JobContext) -> None:
    """Writes down, in the worker, what the run is made with; where a run that goes on finds it changed, warns."""
    path, now = context.folder / CONDITIONS, _conditions(context.workspace, context.spec)
    if not path.is_file():
        files.write_json(path, now)
        return
    changed = _differences(files.read_json(path), now)
    if changed:
        message = f"Not the very same run from here on, as it began with other things: {'; '.join(changed)}."
        context.event("warning", "conditions_changed", message)


def _conditions(workspace: Workspace, spec: Row) -> dict[str, Any]:
    dataset = workspace.store.artifact(spec["dataset_id"], "dataset")
    hub = models.resolve(workspace, spec["model"]).kind == "hub"
    gpus = gpu.find()
    return {
        "dataset": {"sha256": dataset["document"]["sha256"], "source": dataset["document"].get("source")},
        # A cached snapshot's folder is named by its commit.
        "model_revision": models.tokenizer_folder(workspace, spec["model"]).name if hub else None,
        "device": gpus[0].name if gpus else "cpu",
        "versions": {name: version(name) for name in VERSIONS_OF},
    }


def _differences(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What is different, in words: `torch 2.13.0 → 2.14.0`."""
    before, after = (
        {"model revision": c["model_revision"], "device": c["device"], **c["versions"]} for c in (then, now)
    )
    return [f"{name} {before.get(name)} → {after[name]}" for name in after if before.get(name) != after[name]]


def rerun(workspace: Workspace, job_id: str) -> tuple[Row, list[str]]:
    """Submits the fine-tune `job_id` again as a new job; returns its row and what differs now.

    Raises Conflict where the job is no fine-tune or never began, or its dataset or the adapter that it went on from is
    not what it was; NotFound or Unavailable where the model is gone.
    """
    row = workspace.store.job(job_id)
    job_id, spec = row["id"], row["spec"]
    path = jobs.folder(workspace, job_id) / CONDITIONS
    if row["kind"] != "finetune" or not path.is_file():
        raise Conflict(
            "nothing_to_repeat",
            f"{job_id} (kind {row['kind']}, {row['state']}) says nothing of what it was run with.",
            allowed="Only fine-tunes that have begun to run are repeated.",
            next='list_artifacts(kind="job")',
        )
    then = files.read_json(path)
    # What its first run might read, this one may.
    access.allow(files.read_json(jobs.folder(workspace, job_id) / "spec.json").get("allowed", ()))
    spec = spec | {"dataset_id": _same_dataset(workspace, spec, then["dataset"])}
    if spec["continue_from"]:
        workspace.store.artifact(spec["continue_from"], "adapter")
    differences = _differences(then, _conditions(workspace, spec))
    return jobs.submit(workspace, row["kind"], spec["name"], spec, needs_device=True), differences


def _same_dataset(workspace: Workspace, spec: Row, then: dict[str, Any]) -> str:
    """The id of a dataset with the content of that time: the spec's own, else any. Raises Conflict."""
    same = [row["id"] for row in workspace.store.artifacts("dataset") if row["document"]["sha256"] == then["sha256"]]
    if same:
        return spec["dataset_id"] if spec["dataset_id"] in same else same[0]
    what = f"The data of {spec['dataset_id']} (sha256 {then['sha256'][:12]}…) is not here any more: "
    if workspace.store.rows("SELECT 1 FROM artifacts WHERE id=?", spec["dataset_id"]):
        defaults = TrainingArguments.model_validate({}).model_dump()
        given = {name: value for name, value in spec["arguments"].items() if value != defaults.get(name)}
        raise Conflict(
            "dataset_changed", what + "the dataset has changed since.",
            allowed="A run on what it holds now is another run; start it as such.",
            next=call(
                "start_finetune", dataset_id=spec["dataset_id"], model=spec["model"], method=spec["method"], **given
            ),
        )  # fmt: skip
    raise Conflict(
        "dataset_deleted", what + "the dataset was deleted.",
        allowed=f"Prepare it again as it was, from {then['source']}; a dataset of the same content is taken by itself.",
        next=call("prepare_dataset", source=then["source"] or "…"),
    )  # fmt: skip


def main(home: str | None, job_id: str) -> int:
    """The command line's `tunewright rerun JOB`; returns the exit status."""
    try:
        workspace = Workspace.open(home)
        row, differences = rerun(workspace, job_id)
    except TunewrightError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    for difference in differences:
        sys.stdout.write(f"differs: {difference}\n")
    sys.stdout.write(f"{row['id']}\n")
    return 0
