"""A job's report as one HTML page that a person reads with pleasure.

Guarantees a page that asks nothing of the network, runs no script, and shows every text of the data or of a model as
text, personal data and secrets masked. Made from the store and the jobs' folders when it is asked for.
"""

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunewright.pipeline.errors import InvalidInput, call
from tunewright.pipeline.publishing import lineage
from tunewright.pipeline.reports import evidence, judged, next_steps, trained, words
from tunewright.pipeline.reports.evidence import Evidence
from tunewright.pipeline.store import Row
from tunewright.pipeline.workspace import Workspace

if TYPE_CHECKING:
    from jinja2 import Template

KINDS = ("finetune", "validate", "benchmark", "export")
FILTERS = (
    words.count, words.size, words.gigabytes, words.percent, words.figure, words.interval, words.accuracy,
    words.duration, words.moment, words.words, words.masked, words.excerpt,
)  # fmt: skip


def page(workspace: Workspace, job_id: str) -> str:
    """The page of a job of KINDS, whatever its state. Raises NotFound, and InvalidInput for a job of another kind."""
    job = workspace.store.job(job_id)
    if job["kind"] not in KINDS:
        raise InvalidInput(
            "no_report", f"{job['id']} is of kind {job['kind']}, of which there is no page.",
            allowed=f"There is one of jobs of kind {', '.join(KINDS)}; a dataset has its own, "
            "tw://datasets/ID/report.html.",
            next=call("get_status", job_id=job["id"], detail="detailed"),
        )  # fmt: skip
    known = evidence.of_job(workspace, job)
    validation = _validation(workspace, known.validation)
    return _template().render(
        job=job,
        known=known,
        title=_title(job, known),
        base=_base(job, known),
        training=_training(workspace, job, known) if job["kind"] == "finetune" else None,
        data=trained.data(workspace, job, known),
        validation=validation,
        benchmarks=[_benchmark(workspace, row) for row in known.benchmarks],
        exports=[_export(row) for row in known.exports],
        steps=next_steps.of(workspace, job),
        warnings=trained.warnings(workspace, job, {"alerts": []}) if job["kind"] != "finetune" else [],
        events=workspace.store.events(job["id"], trained.SHOWN_EVENTS),
        time_s=evidence.device_s(workspace, job),
    )


def _title(job: Row, known: Evidence) -> str:
    name = known.adapter["name"] if known.adapter else job["spec"].get("name") or known.adapter_id
    what = {"finetune": "", "validate": "Validation of ", "benchmark": "Benchmark of ", "export": "Export of "}
    return f"{what[job['kind']]}{name}"


def _base(job: Row, known: Evidence) -> str | None:
    if known.adapter:
        return lineage.base_of(known.adapter)
    model = job["spec"].get("model")
    return lineage.base_of({"document": {"base_model": model}}) if model else None


def _training(workspace: Workspace, job: Row, known: Evidence) -> dict[str, Any]:
    described = trained.described(workspace, job)
    return {
        "numbers": trained.numbers(workspace, job, described),
        "asked": trained.asked(job, known.adapter, known.dataset),
        "plan": trained.plan(described),
        "curves": trained.panels(workspace, job),
        "warnings": trained.warnings(workspace, job, described),
        "made_with": trained.made_with(workspace, job),
    }


def _validation(workspace: Workspace, job: Row | None) -> dict[str, Any] | None:
    if job is None:
        return None
    said = [sample for sample in evidence.samples(workspace, job) if "text" in sample["tuned"]]
    shown, rule = judged.shown_samples(said)
    return {
        "job_id": job["id"],
        "result": job["result"],
        "metrics": judged.metrics(job["result"]),
        "samples": shown,
        "rule": rule,
        "tally": evidence.judgements(workspace, job),
    }


def _benchmark(workspace: Workspace, job: Row) -> dict[str, Any]:
    result = evidence.evaluation(workspace, job)
    models, rows = judged.subjects(result)
    return {
        "job_id": job["id"],
        "result": result,
        "task": judged.task(result),
        "chance": judged.chance(result),
        "scores": judged.scores(result),
        "average": judged.subject_average(result),
        "models": models,
        "subjects": rows,
    }


def _export(artifact: Row) -> dict[str, Any]:
    parity = artifact["document"].get("parity") or {}
    return {"id": artifact["id"], "parity": parity, "rows": judged.export_rows(artifact)}


@cache
def _template() -> "Template":
    # An idle server does not pay for it.
    from jinja2 import Environment, FileSystemLoader

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update({shown.__name__: shown for shown in FILTERS})
    return environment.get_template("report.html.jinja")
