"""Publishing an export to an Ollama server, and proving there that it answers as it was trained to.

The model is made under a name of its own, checked, and only then copied to the name that was asked for: a failed
check leaves neither a new model nor a damaged old one. Does not quantize: Ollama gets a GGUF of the export as it is.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunewright.pipeline.context import JobContext
from tunewright.pipeline.errors import Conflict, InvalidInput, NotFound, Unavailable, call
from tunewright.pipeline.ids import new_id, slug
from tunewright.pipeline.publishing import modelfile, ollama_check
from tunewright.pipeline.publishing.modelfile import Modelfile
from tunewright.pipeline.store import Row
from tunewright.pipeline.workspace import Workspace

if TYPE_CHECKING:
    from tunewright.pipeline.publishing.ollama_client import OllamaClient

# [host/][namespace/]model[:tag], the lengths and characters of Ollama's types/model/name.go.
NAME = re.compile(
    r"(?:(?:[A-Za-z0-9_][\w.:-]{0,349}/)?[A-Za-z0-9_][\w-]{0,79}/)?"
    r"[A-Za-z0-9_][\w.-]{0,79}(?::[A-Za-z0-9_][\w.-]{0,79})?",
    re.ASCII,
)
PREFERRED = ("gguf:q8_0", "gguf:f16", "gguf:bf16")
UNVERIFIED = "tunewright-unverified"
# The first Ollama whose chat runs the Jinja template inside the GGUF.
JINJA_SINCE = (0, 30)


@dataclass(frozen=True)
class Plan:
    """What is to be published: the file of the export, its digest (`sha256:…`), and the full name (`name:tag`)."""

    export: Row
    name: str
    output: str
    gguf: Path
    digest: str
    modelfile: Modelfile

    @property
    def retry(self) -> str:
        return call("publish_to_ollama", export_id=self.export["id"], model_name=self.name, confirm=True)


def prepare(
    workspace: Workspace,
    export_id: str,
    model_name: str,
    system: str | None = None,
    parameters: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    push: bool = False,
) -> dict[str, Any]:
    """The dry run: checks everything and changes nothing. Works without a server, and says so in `warnings`.

    Reads the whole GGUF once where the export has no digest for it (about a second per GB). Raises NotFound and
    InvalidInput.
    """
    plan = _plan(workspace, export_id, model_name, system, parameters, push)
    version, taken, warnings = _look_at_server(plan)
    if taken:
        what = "It will be replaced." if overwrite else "Pass overwrite=true to replace it, or choose another name."
        warnings.append(f"The server has a model {plan.name} already. {what}")
    if version and _before_jinja(version) and plan.modelfile.template is None:
        warnings.append(f"Ollama {version} does not run chat templates other than its own: update it to 0.30 or later.")
    warnings += _system_warning(workspace, plan)
    return {
        "export_id": plan.export["id"],
        "model_name": plan.name,
        "output": plan.output,
        "gguf": str(plan.gguf),
        "bytes": plan.gguf.stat().st_size,
        "digest": plan.digest,
        "modelfile": plan.modelfile.text,
        "parameters": plan.modelfile.parameters,
        "server": {"url": _shown_host(), "version": version},
        "name_taken": taken,
        "steps": [
            f"upload {plan.gguf.name} unless the server has it",
            f"create a model under the name {UNVERIFIED} and check its parameters, its prompt and a first answer",
            f"name it {plan.name}",
            *([f"push {plan.name} to its registry"] if push else []),
        ],
        "warnings": warnings,
    }


def run(context: JobContext) -> dict[str, Any]:
    """The stage of the job kind `publish_ollama`; spec: export_id, model_name, system, parameters, push, overwrite.

    Adds an artifact of kind `publication` and returns its document with `publication_id`. Raises Unavailable where no
    server answers or it refuses, Conflict where the name is taken, TunewrightError where a check fails.
    """
    from tunewright.pipeline.publishing.ollama_client import OllamaClient, answering, unavailable

    spec, push = context.spec, bool(context.spec.get("push"))
    context.progress("checking the export")
    plan = _plan(
        context.workspace, spec["export_id"], spec["model_name"], spec.get("system"), spec.get("parameters"), push
    )
    with OllamaClient() as client:
        try:
            with answering("to say what it has", next=plan.retry):
                version, taken = client.version(), client.has_model(plan.name)
        except Unavailable:
            raise unavailable(next=plan.retry) from None
        if taken and not spec.get("overwrite"):
            raise _name_taken(plan)
        context.check_cancelled()
        _upload(context, client, plan)
        context.check_cancelled()
        checks = _create_checked(context, client, plan)
        document = _document(plan, version, checks)
        publication_id = _record(context, plan, document)
        if push:
            _push(context, client, plan, publication_id)
            document["pushed"] = True
            context.workspace.store.execute(
                "UPDATE artifacts SET document=? WHERE id=?", json.dumps(document), publication_id
            )
    return {**document, "publication_id": publication_id}


def _plan(
    workspace: Workspace,
    export_id: str,
    model_name: str,
    system: str | None,
    parameters: Mapping[str, Any] | None,
    push: bool,
) -> Plan:
    export = workspace.store.artifact(export_id, "export")
    name = _full_name(export, model_name)
    if push and "/" not in name:
        raise InvalidInput(
            "push_needs_namespace",
            f"{name} has no owner, so that no registry takes it.",
            allowed="The name of a model that is pushed begins with your name on ollama.com: you/model.",
            next=call("publish_to_ollama", export_id=export["id"], model_name=f"your-name/{name}", push=True),
        )
    entry = _choose_gguf(export)
    gguf = Path(entry["path"])
    made = modelfile.build(workspace, export, gguf, system, parameters)
    return Plan(export, name, entry["output"], gguf, _digest(export, entry), made)


def _full_name(export: Row, name: str) -> str:
    """`name` with its tag, as the server lists it. Raises InvalidInput."""
    if not NAME.fullmatch(name):
        raise InvalidInput(
            "invalid_model_name",
            f"{name!r} is no name for an Ollama model.",
            allowed="[owner/]model[:tag], each of letters, digits, '_', '-' and (not in the owner) '.', up to 80 long.",
            next=call("publish_to_ollama", export_id=export["id"], model_name=slug(name)),
        )
    short = name.removeprefix("registry.ollama.ai/").removeprefix("library/")
    return short if ":" in short.rpartition("/")[2] else f"{short}:latest"


def _choose_gguf(export: Row) -> dict[str, Any]:
    """The entry of the export's best GGUF. Raises NotFound where it has none, or the file is gone."""
    entries = {file["output"]: file for file in export["document"]["files"]}
    output = next((output for output in PREFERRED if output in entries), None)
    if output is None or not Path(entries[output]["path"]).is_file():
        lost = f"{entries[output]['path']} is gone" if output else "it has no GGUF"
        raise NotFound(
            "no_gguf",
            f"{export['id']} cannot go to Ollama: {lost}.",
            allowed=f"The export has: {', '.join(entries) or 'nothing'}. Ollama takes {', '.join(PREFERRED)}.",
            next=call("merge_and_export", adapter_id=export["document"]["adapter_id"], outputs=["gguf:q8_0"]),
        )
    return entries[output]


def _digest(export: Row, entry: Mapping[str, Any]) -> str:
    """The blob's digest: the export's own record where the file still has the recorded size, else computed."""
    path = Path(entry["path"])
    if path.stat().st_size != entry["bytes"]:
        raise _file_changed(export, path)
    if recorded := entry.get("sha256"):
        return f"sha256:{recorded}"
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def _file_changed(export: Row, path: Path) -> Conflict:
    return Conflict(
        "file_changed",
        f"{path.name} is not the file that {export['id']} was made with.",
        allowed="Files of an export are not to be edited.",
        next=call("merge_and_export", adapter_id=export["document"]["adapter_id"], outputs=["gguf:q8_0"]),
    )


def _look_at_server(plan: Plan) -> tuple[str | None, bool | None, list[str]]:
    """The server's version, whether it has the name, and a warning where it does not answer."""
    from tunewright.pipeline.publishing.ollama_client import OllamaClient, answering

    try:
        with OllamaClient() as client, answering("to say what it has", next=plan.retry):
            return client.version(), client.has_model(plan.name), []
    except Unavailable as error:
        return None, None, [f"{error.what} {error.allowed}"]


def _shown_host() -> str:
    from tunewright.pipeline.publishing.ollama_client import shown_host

    return shown_host()


def _before_jinja(version: str) -> bool:
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    # Builds from source call themselves 0.0.0.
    return (0, 0) < numbers < JINJA_SINCE


def _system_warning(workspace: Workspace, plan: Plan) -> list[str]:
    first = ollama_check.training_opening(workspace, plan.export)[:1]
    if plan.modelfile.system is not None or not first or first[0]["role"] != "system":
        return []
    return [
        f"The training data begins with the system message {first[0]['content'][:200]!r}, and none is given here: pass "
        "the same as `system`, or the model answers without it."
    ]


def _name_taken(plan: Plan) -> Conflict:
    arguments = {"export_id": plan.export["id"], "model_name": plan.name, "overwrite": True, "confirm": True}
    return Conflict(
        "model_exists",
        f"The Ollama server has a model {plan.name} already.",
        allowed="Choose another name, or replace it.",
        next=call("publish_to_ollama", **arguments),
    )


def _upload(context: JobContext, client: "OllamaClient", plan: Plan) -> None:
    from tunewright.pipeline.publishing.ollama_client import answering

    size = plan.gguf.stat().st_size
    context.progress("uploading the GGUF", 0, size)
    with answering(f"the upload of {plan.gguf.name}", next=plan.retry):
        if client.has_blob(plan.digest):
            context.event("info", "blob_present", f"The server has {plan.gguf.name} already; nothing was uploaded.")
        elif client.create_blob(plan.gguf) != plan.digest:
            raise _file_changed(plan.export, plan.gguf)
    context.progress("uploading the GGUF", size, size)


def _create_checked(context: JobContext, client: "OllamaClient", plan: Plan) -> dict[str, Any]:
    """Makes the model under a name of its own, checks it there and names it. Returns what the checks saw."""
    from tunewright.pipeline.publishing.ollama_client import answering

    # The same for every run of a job, so that a run after a kill replaces what the killed one left.
    unverified = f"{UNVERIFIED}:{context.job_id}"
    try:
        with answering("to create the model", next=plan.retry, done="The model was not created."):
            _create(context, client, plan, unverified)
            context.progress("checking the model on the server")
            checks = ollama_check.check(context.workspace, client, unverified, plan.export, plan.modelfile)
            context.check_cancelled()
            client.copy(unverified, plan.name)
        return checks
    finally:
        _remove(context, client, plan, unverified)


def _create(context: JobContext, client: "OllamaClient", plan: Plan, name: str) -> None:
    made, status = plan.modelfile, None
    parts = client.create(
        model=name, files={"model.gguf": plan.digest}, template=made.template, system=made.system,
        parameters=made.parameters, stream=True,
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


def _remove(context: JobContext, client: "OllamaClient", plan: Plan, name: str) -> None:
    from tunewright.pipeline.publishing.ollama_client import answering

    try:
        with answering(f"to delete {name}", next=plan.retry):
            if client.has_model(name):
                client.delete(name)
    except Unavailable as error:
        context.event("warning", "left_on_server", f"{error.what} Delete {name} there: `ollama rm {name}`.")


def _document(plan: Plan, version: str, checks: dict[str, Any]) -> dict[str, Any]:
    return {
        "target": "ollama",
        "model_name": plan.name,
        "output": plan.output,
        "digest": plan.digest,
        "modelfile": plan.modelfile.text,
        "parameters": plan.modelfile.parameters,
        "server": {"url": _shown_host(), "version": version},
        "checks": checks,
        "pushed": False,
    }


def _record(context: JobContext, plan: Plan, document: dict[str, Any]) -> str:
    publication_id = new_id("publication", plan.name.removesuffix(":latest"))
    context.workspace.store.add_artifact(
        publication_id, "publication", plan.name, document, parents=[plan.export["id"]], job_id=context.job_id
    )
    context.event("info", "published", f"{plan.name} is on the Ollama server.")
    return publication_id


def _push(context: JobContext, client: "OllamaClient", plan: Plan, publication_id: str) -> None:
    from tunewright.pipeline.publishing.ollama_client import answering

    context.check_cancelled()
    done = f"{plan.name} is on the local server ({publication_id}); it was not pushed."
    sign_in = "sign in with `ollama signin`, then publish_to_ollama(…, push=true, overwrite=true, confirm=true)"
    with answering(f"to push {plan.name}", next=sign_in, done=done):
        for part in client.push(plan.name, stream=True):
            context.progress(f"pushing: {part.status}", part.completed or 0, part.total or 0)
            context.check_cancelled()
