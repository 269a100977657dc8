"""Publishing an export to an Ollama server, and proving there that it answers as it was trained to.

The model is made under a name of its own, checked, and only then copied to the name that was asked for: a failed
check leaves neither a new model nor a damaged old one. A run that was killed leaves at most that model of its own,
which the next run removes; run again, the job goes on where it was. Does not quantize here: see `ollama_plan`.
"""

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from tunewright.pipeline import jobs
from tunewright.pipeline.context import JobContext
from tunewright.pipeline.errors import Conflict, TunewrightError, Unavailable, call
from tunewright.pipeline.exporting.outputs import gguf_type, is_gguf
from tunewright.pipeline.ids import id_within
from tunewright.pipeline.publishing import lineage, ollama_check, ollama_plan, presets
from tunewright.pipeline.publishing.ollama_plan import Plan, Request
from tunewright.pipeline.workspace import Workspace

if TYPE_CHECKING:
    from tunewright.pipeline.publishing.ollama_client import OllamaClient

UNVERIFIED = "tunewright-unverified"
PROGRESS_BYTES = 16 << 20
# How many failures are quoted at length.
QUOTED = 3


def prepare(
    workspace: Workspace,
    export_id: str,
    model_name: str,
    system: str | None = None,
    parameters: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    push: bool = False,
    *,
    output: str | None = None,
    preset: str = presets.ASSISTANT,
    force: bool = False,
) -> dict[str, Any]:
    """The dry run: checks everything and changes nothing. Works without a server, and says so in `warnings`.
    `arguments` are the tool's that ask for just this.

    Raises NotFound, InvalidInput, and Conflict where the parity gate is against it and `force` is not set, or the
    server is too new to quantize.
    """
    request = Request(
        export_id, model_name, output=output, preset=preset, system=system, parameters=parameters, push=push,
        overwrite=overwrite, force=force,
    )  # fmt: skip
    plan = ollama_plan.make(workspace, request)
    version, taken, warnings = _look_at_server(plan)
    if version:
        ollama_plan.require_quantizing(plan, version)
    if taken:
        what = "It will be replaced." if overwrite else "Pass overwrite=true to replace it, or choose another name."
        warnings.append(f"The server has a model {plan.name} already. {what}")
    if version and ollama_plan.before_jinja(version) and plan.modelfile.lacks:
        lacking = ", ".join(plan.modelfile.lacks)
        warnings.append(f"Ollama {version} cannot do with this model: {lacking}. From 0.30 on it can: update it.")
    warnings += _system_warning(workspace, plan)
    warnings += [f"Forced, although: {failure}." for failure in plan.forced]
    return {
        "arguments": request.arguments,
        "export_id": plan.export["id"],
        "model_name": plan.name,
        "output": plan.output,
        "source": plan.source,
        "quantize": plan.quantize,
        "preset": preset,
        "gguf": str(plan.gguf),
        "bytes": plan.gguf.stat().st_size,
        "digest": plan.digest,
        "modelfile": plan.modelfile.text,
        "parameters": plan.modelfile.parameters,
        "server": {"url": _shown_host(), "version": version},
        "name_taken": taken,
        "steps": _steps(plan),
        "forced": plan.forced,
        "warnings": warnings,
    }


def run(context: JobContext) -> dict[str, Any]:
    """The stage of the job kind `publish_ollama`; the spec is a `Request` by its fields.

    Adds an artifact of kind `publication` and returns its document with `publication_id`. Raises Unavailable where no
    server answers or it refuses, Conflict where the name is taken or the parity gate is against it, TunewrightError
    where a check fails.
    """
    from tunewright.pipeline.publishing.ollama_client import OllamaClient, answering, unavailable

    context.progress("checking the export")
    plan = ollama_plan.make(context.workspace, Request(**context.spec))
    for failure in plan.forced:
        context.event("warning", "parity_forced", f"Published by force, although: {failure}.")
    publication_id = id_within("publication", plan.name.removesuffix(":latest"), context.job_id)
    with OllamaClient() as client:
        try:
            with answering("to say what it has", next=plan.retry):
                version, held = client.version(), client.digests()
        except Unavailable:
            raise unavailable(next=plan.retry) from None
        document = _published_before(context, publication_id)
        _sweep(context, client, plan, held, own_too=document is not None)
        if document is None:
            ollama_plan.require_quantizing(plan, version)
            document = _publish(context, client, plan, version, held, publication_id)
        if plan.request.push and not document["pushed"]:
            _push(context, client, plan, publication_id)
            document["pushed"] = True
            context.workspace.store.execute(
                "UPDATE artifacts SET document=? WHERE id=?", json.dumps(document), publication_id
            )
    return {**document, "publication_id": publication_id}


def _steps(plan: Plan) -> list[str]:
    made = (
        f"have the server quantize it to {gguf_type(plan.output)} and make a model of it under the name {UNVERIFIED} "
        f"(Ollama before 0.34.1; no parity is measured of what it makes: merge_and_export with {plan.output} does)"
        if plan.quantize
        else f"create a model under the name {UNVERIFIED}"
    )
    return [
        f"upload {plan.gguf.name} unless the server has it",
        f"{made} and compare its parameters, prompts and answers with the training's",
        f"name it {plan.name}",
        *([f"push {plan.name} to its registry"] if plan.request.push else []),
    ]


def _look_at_server(plan: Plan) -> tuple[str | None, bool | None, list[str]]:
    """The server's version, whether it has the name, and a warning where it does not answer."""
    from tunewright.pipeline.publishing.ollama_client import OllamaClient, answering

    try:
        with OllamaClient() as client, answering("to say what it has", next=plan.retry):
            return client.version(), plan.name.lower() in client.digests(), []
    except Unavailable as error:
        return None, None, [f"{error.what} {error.allowed}"]


def _shown_host() -> str:
    from tunewright.pipeline.publishing.ollama_client import shown_host

    return shown_host()


def _system_warning(workspace: Workspace, plan: Plan) -> list[str]:
    first = ollama_check.training_opening(workspace, plan.export)[:1]
    if plan.request.system is not None or not first or first[0]["role"] != "system":
        return []
    instead = "the preset's stands in its place" if plan.modelfile.system else "none is given here"
    return [
        f"The training data begins with the system message {first[0]['content'][:200]!r}, and {instead}: pass the same "
        "as `system`, or the model answers without it."
    ]


def _published_before(context: JobContext, publication_id: str) -> dict[str, Any] | None:
    """The document of what a killed run of this job had published already."""
    found = context.workspace.store.rows("SELECT * FROM artifacts WHERE id=?", publication_id)
    return found[0]["document"] if found else None


def _publish(
    context: JobContext,
    client: "OllamaClient",
    plan: Plan,
    version: str,
    held: Mapping[str, str],
    publication_id: str,
) -> dict[str, Any]:
    """Uploads, makes the model under a name of its own, checks it there, names it and records it; its document."""
    from tunewright.pipeline.publishing.ollama_client import answering

    unverified = _unverified(context.job_id)
    # A killed run had named its model where what has the name is what stands under its own.
    ours = held.get(unverified.lower())
    if not ours or held.get(plan.name.lower()) != ours:
        with answering("to say what it has", next=plan.retry):
            _require_free(client, plan)
    context.check_cancelled()
    _upload(context, client, plan)
    context.check_cancelled()
    try:
        with answering("to create the model", next=_after_refusal(plan), done="The model was not created."):
            _create(context, client, plan, unverified)
        with answering("to answer with the model", next=plan.retry, done="The model was removed again."):
            checks = ollama_check.check(context.workspace, client, unverified, plan, _stepper(context))
            _judge(context, plan, checks.pop("failures"))
            context.check_cancelled()
            if not ours or client.digests().get(plan.name.lower()) != ours:
                # Once more: the checks take minutes.
                _require_free(client, plan)
            client.copy(unverified, plan.name)
        document = _document(plan, version, checks)
        context.workspace.store.add_artifact(
            publication_id, "publication", plan.name, document, parents=[plan.export["id"]], job_id=context.job_id
        )
        context.event("info", "published", f"{plan.name} is on the Ollama server.")
        return document
    finally:
        _remove(context, client, plan, unverified)


def _unverified(job_id: str) -> str:
    """The same for every run of a job, so that a run after a kill replaces what the killed one left."""
    return f"{UNVERIFIED}:{job_id}"


def _sweep(context: JobContext, client: "OllamaClient", plan: Plan, held: Mapping[str, str], own_too: bool) -> None:
    """Removes what killed runs left: unverified models of jobs of this home that are not running any more."""
    for row in context.workspace.store.rows("SELECT id, state FROM jobs WHERE kind='publish_ollama'"):
        left = _unverified(row["id"])
        over = own_too if row["id"] == context.job_id else row["state"] not in jobs.ACTIVE
        if over and left.lower() in held:
            _remove(context, client, plan, left)


def _require_free(client: "OllamaClient", plan: Plan) -> None:
    if not plan.request.overwrite and plan.name.lower() in client.digests():
        raise Conflict(
            "model_exists",
            f"The Ollama server has a model {plan.name} already.",
            allowed="Choose another name, or replace it.",
            next=plan.request.call(overwrite=True, confirm=True),
        )


def _stepper(context: JobContext) -> Callable[[str, int, int], None]:
    def step(phase: str, done: int, total: int) -> None:
        context.check_cancelled()
        context.progress(phase, done, total)

    return step


def _upload(context: JobContext, client: "OllamaClient", plan: Plan) -> None:
    from tunewright.pipeline.publishing.ollama_client import answering

    size = plan.gguf.stat().st_size
    phase, last = "uploading the GGUF", 0

    def sent(done: int) -> None:
        nonlocal last
        if done - last >= PROGRESS_BYTES:
            last = done
            context.check_cancelled()
            context.progress(phase, done, size)

    context.progress(phase, 0, size)
    with answering(f"the upload of {plan.gguf.name}", next=plan.retry):
        if client.has_blob(plan.digest):
            context.event("info", "blob_present", f"The server has {plan.gguf.name} already; nothing was uploaded.")
        elif not client.upload(plan.gguf, plan.digest, sent):
            raise lineage.file_changed(plan.export, plan.gguf, plan.source)
    context.progress(phase, size, size)


def _after_refusal(plan: Plan) -> str:
    """A server that will not quantize does not do so the second time either."""
    return lineage.export_call(plan.export, [plan.output]) if plan.quantize else plan.retry


def _create(context: JobContext, client: "OllamaClient", plan: Plan, name: str) -> None:
    made, status = plan.modelfile, None
    parts = client.create(
        model=name, files={"model.gguf": plan.digest}, template=made.template, system=made.system,
        parameters=made.parameters, quantize=plan.quantize, stream=True,
    )  # fmt: skip
    for part in parts:
        status = part.status
        context.progress(f"creating: {status}", part.completed or 0, part.total or 0)
        context.check_cancelled()
    if status != "success":
        raise Unavailable(
            "ollama_refused",
            f"The Ollama server stopped creating the model at {status!r}.",
            next=plan.retry,
            done="The model was not created.",
        )


def _judge(context: JobContext, plan: Plan, failures: list[str]) -> None:
    """Raises TunewrightError with what the checks found, unless the request forces it; then it is told as it goes."""
    if failures and not plan.request.force:
        more = len(failures) - QUOTED
        found = "; ".join(failures[:QUOTED]) + (f"; and {more} more" if more > 0 else "")
        outputs = [file["output"] for file in plan.export["document"]["files"] if is_gguf(file["output"])]
        raise TunewrightError(
            "ollama_check_failed",
            f"On the Ollama server, {found}.",
            allowed="The model must get the prompts that it was trained on and give the answers that its file gave. "
            "Usual remedies: a newer Ollama, or the export made again; where the user accepts just this: "
            f"{plan.request.call(force=True, confirm=True)}.",
            next=lineage.export_call(plan.export, outputs),
            done="The model was removed again; a model that had the name before is unchanged.",
        )
    for failure in failures:
        plan.forced.append(f"on the server, {failure}")
        context.event("warning", "check_forced", f"Published by force, although on the server {failure}.")


def _remove(context: JobContext, client: "OllamaClient", plan: Plan, name: str) -> None:
    from tunewright.pipeline.publishing.ollama_client import answering

    try:
        with answering(f"to delete {name}", next=plan.retry):
            if name.lower() in client.digests():
                # The memory belongs to the next job; a model that is loaded outlives its name otherwise.
                client.unload(name)
                client.delete(name)
    except Unavailable as error:
        context.event("warning", "left_on_server", f"{error.what} Delete {name} there: `ollama rm {name}`.")


def _document(plan: Plan, version: str, checks: dict[str, Any]) -> dict[str, Any]:
    return {
        "target": "ollama",
        "model_name": plan.name,
        "output": plan.output,
        "source": plan.source,
        "quantize": plan.quantize,
        "preset": plan.request.preset,
        "digest": plan.digest,
        "modelfile": plan.modelfile.text,
        "parameters": plan.modelfile.parameters,
        "server": {"url": _shown_host(), "version": version},
        "checks": checks,
        "forced": plan.forced,
        "pushed": False,
    }


def _push(context: JobContext, client: "OllamaClient", plan: Plan, publication_id: str) -> None:
    from tunewright.pipeline.publishing.ollama_client import answering

    context.check_cancelled()
    done = f"{plan.name} is on the local server ({publication_id}); it was not pushed."
    # Only the push is left to do.
    sign_in = f"sign in with `ollama signin`, then {call('resume_job', job_id=context.job_id)}"
    status = None
    with answering(f"to push {plan.name}", next=sign_in, done=done):
        for part in client.push(plan.name, stream=True):
            status = part.status
            context.progress(f"pushing: {status}", part.completed or 0, part.total or 0)
            context.check_cancelled()
    if status != "success":
        raise Unavailable(
            "ollama_refused", f"The Ollama server stopped pushing at {status!r}.", next=sign_in, done=done
        )
