"""Publishing an adapter or an export to the Hugging Face Hub, or to a mirror that speaks its language.

Guarantees: private unless asked otherwise; a repository that holds other files is not touched without `overwrite`, and
one that is public gets nothing that was meant to be private; old files go and new ones come in one commit, or nothing
changes; no local path and no token in what is uploaded, stored or said; what failed its parity stays here unless
forced. Does not upload data. After a failure or a kill the next run sends what is missing, and takes a commit that was
already made for its own.
"""

import hashlib
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunewright.pipeline.context import JobContext
from tunewright.pipeline.errors import Conflict, InvalidInput, Unavailable, call
from tunewright.pipeline.ids import id_within, slug
from tunewright.pipeline.publishing import card, gate, layout, licences, lineage, upload
from tunewright.pipeline.publishing.hub_errors import HOW_TO_LOG_IN, answering, shown_endpoint
from tunewright.pipeline.publishing.layout import CARD, Content
from tunewright.pipeline.settings import hub_endpoint
from tunewright.pipeline.store import Row
from tunewright.pipeline.workspace import Workspace

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, HfApi

# What the Hub itself puts into every new repository.
HUB_OWN = {".gitattributes"}


@dataclass(frozen=True)
class Plan:
    """`contents` maps a path in the repository to the file on this machine, or to the bytes, as which it is sent.

    `failures` are those of its parity that were overridden; `given` are the tool's arguments that ask for all this.
    """

    artifact: Row
    repo_id: str
    outputs: list[str]
    contents: dict[str, Content]
    card: str
    failures: list[str]
    given: dict[str, Any]

    @property
    def retry(self) -> str:
        return call("publish_to_hub", **self.given, confirm=True)

    @property
    def sizes(self) -> list[dict[str, Any]]:
        return [{"path": path, "bytes": upload.size_bytes(content)} for path, content in self.contents.items()]


@dataclass(frozen=True)
class _Remote:
    """A repository as it was found: `held` are the paths of its files without the Hub's own, `commit` its head."""

    private: bool
    commit: str | None
    held: set[str]


def prepare(
    workspace: Workspace,
    artifact_id: str,
    repo_id: str,
    outputs: Sequence[str] | None = None,
    private: bool = True,
    overwrite: bool = False,
    force: bool = False,
) -> dict[str, Any]:
    """The dry run: what would be uploaded and the card, without asking the network. `arguments` ask for just this.

    Raises NotFound, InvalidInput, and Conflict where the export's parity failed or is unknown, unless `force`.
    """
    plan = _plan(workspace, artifact_id, repo_id, outputs, private=private, overwrite=overwrite, force=force)
    has_token = _token() is not None
    warnings = [] if has_token else [f"There is no Hub token here. {HOW_TO_LOG_IN}"]
    if not private:
        warnings.append("The repository will be public: anybody can read and copy it.")
    if overwrite:
        warnings.append("Files that the repository has and this upload has not are removed (its history keeps them).")
    warnings += [f"Published although {failure}" for failure in plan.failures]
    warnings += licences.warnings(lineage.adapter_of(workspace, plan.artifact))
    return {
        "arguments": plan.given,
        "artifact_id": plan.artifact["id"],
        "repo_id": repo_id,
        "url": f"{shown_endpoint()}/{repo_id}",
        "private": private,
        "outputs": plan.outputs,
        "files": plan.sizes,
        "bytes": sum(file["bytes"] for file in plan.sizes),
        "card": plan.card,
        "token_present": has_token,
        "warnings": warnings,
    }


def run(context: JobContext) -> dict[str, Any]:
    """The stage of the job kind `publish_hub`; spec: artifact_id, repo_id, outputs, private, overwrite, force.

    Adds an artifact of kind `publication` and returns its document with `publication_id`. Raises Unavailable without
    a token or where the Hub does not answer, refuses or is full, Conflict where the repository or the parity stands
    against it, Cancelled.
    """
    spec, store = context.spec, context.workspace.store
    publication_id = id_within("publication", spec["repo_id"], context.job_id)
    recorded = store.rows("SELECT * FROM artifacts WHERE id=?", publication_id)
    if recorded:
        return {**recorded[0]["document"], "publication_id": publication_id}
    private, overwrite = spec.get("private", True), bool(spec.get("overwrite"))
    plan = _plan(
        context.workspace, spec["artifact_id"], spec["repo_id"], spec.get("outputs"),
        private=private, overwrite=overwrite, force=bool(spec.get("force")),
    )  # fmt: skip
    token = _token()
    if token is None:
        raise Unavailable("hub_token_missing", "There is no Hub token here.", allowed=HOW_TO_LOG_IN, next=plan.retry)
    from huggingface_hub import HfApi
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
    api = HfApi(endpoint=hub_endpoint(), token=token)
    context.check_cancelled()
    context.progress("asking the Hub")
    remote = _open_repository(context, api, plan, private=private)
    commit = remote.commit if _holds(context, api, plan, remote) else None
    if commit is None:
        _refuse_to_overwrite(plan, remote, overwrite=overwrite)
        commit = _upload(context, api, plan, remote)
    document = {
        "target": "hub",
        "url": f"{shown_endpoint()}/{plan.repo_id}",
        "repo_id": plan.repo_id,
        "private": remote.private,
        "outputs": plan.outputs,
        "commit": commit,
        "files": plan.sizes,
        "forced": plan.failures,
    }
    store.add_artifact(
        publication_id, "publication", plan.repo_id, document, parents=[plan.artifact["id"]], job_id=context.job_id
    )
    context.event("info", "published", f"{document['url']} ({'private' if remote.private else 'public'}).")
    return {**document, "publication_id": publication_id}


def _plan(
    workspace: Workspace,
    artifact_id: str,
    repo_id: str,
    outputs: Sequence[str] | None,
    *,
    private: bool,
    overwrite: bool,
    force: bool,
) -> Plan:
    artifact = workspace.store.artifact(artifact_id, "adapter", "export")
    _check_repo_id(artifact, repo_id)
    selected = layout.select(artifact, repo_id, outputs)
    given: dict[str, Any] = {"artifact_id": artifact["id"], "repo_id": repo_id}
    given |= {"outputs": selected} if outputs is not None else {}
    given |= {} if private else {"private": False}
    given |= {"overwrite": True} if overwrite else {}
    failures: list[str] = []
    if artifact["kind"] == "export":
        retry = call("publish_to_hub", **given, force=True, confirm=True)
        failures = gate.require(artifact, selected, force=force, retry=retry)
    given |= {"force": True} if failures else {}
    contents = layout.lay_out(workspace, artifact, selected)
    text = card.build(workspace, artifact, repo_id, selected, failures)
    return Plan(artifact, repo_id, selected, {**contents, CARD: text.encode()}, text, failures, given)


def _check_repo_id(artifact: Row, repo_id: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo_id)
        if "/" in repo_id:
            return
    except HFValidationError:
        pass
    raise InvalidInput(
        "invalid_repo_id",
        f"{repo_id!r} is no name for a repository on the Hub.",
        allowed="owner/name, at most 96 letters, digits, '-', '_' and '.', without '--' or '..'; "
        "owner is your user name or organisation.",
        next=call("publish_to_hub", artifact_id=artifact["id"], repo_id=f"your-name/{slug(artifact['name'])}"),
    )


def _token() -> str | None:
    from huggingface_hub import get_token

    return get_token()


def _open_repository(context: JobContext, api: "HfApi", plan: Plan, *, private: bool) -> _Remote:
    """Creates the repository, or takes the one that is there. Raises Conflict where it is public and must not be."""
    from huggingface_hub.errors import RepositoryNotFoundError

    nothing = "Nothing was uploaded."
    with answering(context.workspace, plan.repo_id, retry=plan.retry, done=nothing):
        try:
            there = api.model_info(plan.repo_id)
        except RepositoryNotFoundError:
            # Without exist_ok: where somebody makes it at this very moment, theirs is not to be written to.
            api.create_repo(plan.repo_id, private=private)
            there = api.model_info(plan.repo_id)
    if private and not there.private:
        raise Conflict(
            "repo_is_public",
            f"{plan.repo_id} exists and is public; private=true was asked for.",
            allowed="Choose another name, make the repository private on the Hub, or publish with private=false.",
            next=call("publish_to_hub", **{**plan.given, "repo_id": f"{plan.repo_id}-private"}, confirm=True),
            done=nothing,
        )
    held = {sibling.rfilename for sibling in there.siblings or []} - HUB_OWN
    return _Remote(bool(there.private), there.sha, held)


def _refuse_to_overwrite(plan: Plan, remote: _Remote, *, overwrite: bool) -> None:
    if remote.held and not overwrite:
        raise Conflict(
            "repo_exists",
            f"{plan.repo_id} exists and holds {len(remote.held)} other files.",
            allowed="Choose another name, or replace what it holds.",
            next=call("publish_to_hub", **plan.given, overwrite=True, confirm=True),
            done="Nothing was uploaded.",
        )


def _holds(context: JobContext, api: "HfApi", plan: Plan, remote: _Remote) -> bool:
    """Whether the repository is already just what is to be published: a run that was killed had come so far."""
    from huggingface_hub.hf_api import RepoFile

    if remote.held != set(plan.contents):
        return False
    with answering(context.workspace, plan.repo_id, retry=plan.retry, done="Nothing was uploaded."):
        entries = [entry for entry in api.list_repo_tree(plan.repo_id, recursive=True) if isinstance(entry, RepoFile)]
    found = {entry.path: entry for entry in entries}
    if any(found[path].size != upload.size_bytes(content) for path, content in plan.contents.items()):
        return False
    context.progress("comparing with what is there")
    return all(_is_same(content, found[path]) for path, content in plan.contents.items())


def _is_same(content: Content, entry: Any) -> bool:
    """Large files are known on the Hub by their SHA-256, small ones as git knows them."""
    if entry.lfs is not None and not isinstance(content, bytes):
        with content.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == entry.lfs.sha256
    data = content if isinstance(content, bytes) else content.read_bytes()
    if entry.lfs is not None:
        return hashlib.sha256(data).hexdigest() == entry.lfs.sha256
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest() == entry.blob_id


def _require_as_exported(plan: Plan, additions: "list[CommitOperationAdd]") -> None:
    """Raises Conflict where what was sent is not the file that the export wrote: no commit names it yet."""
    written = {entry["path"]: entry for entry in plan.artifact["document"].get("files", []) if "sha256" in entry}
    for addition in additions:
        entry = written.get(str(plan.contents[addition.path_in_repo]))
        if entry and addition.upload_info.sha256.hex() != entry["sha256"]:
            raise lineage.file_changed(plan.artifact, Path(entry["path"]), entry["output"])


def _upload(context: JobContext, api: "HfApi", plan: Plan, remote: _Remote) -> str:
    """Sends the contents, then makes the one commit that names them and removes what else there is; returns its id."""
    from huggingface_hub import CommitOperationDelete

    done = f"{plan.repo_id} holds what it held before; what was sent is not sent again."
    with answering(context.workspace, plan.repo_id, retry=plan.retry, done=done), ExitStack() as stack:
        additions = upload.send(context, api, plan.repo_id, plan.contents, stack)
        _require_as_exported(plan, additions)
        context.check_cancelled()
        context.progress("committing")
        removals = [CommitOperationDelete(path) for path in sorted(remote.held - set(plan.contents))]
        commit = api.create_commit(
            plan.repo_id,
            [*removals, *additions],
            commit_message=f"Tunewright: {plan.artifact['name']}",
            # Who pushed to it during the upload, which can take hours, must not find that undone.
            parent_commit=remote.commit,
        )
    return commit.oid
