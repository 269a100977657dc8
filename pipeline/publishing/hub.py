"""Publishing an adapter or an export to the Hugging Face Hub, or to a mirror that speaks its language.

Guarantees: private unless asked otherwise; a repository that holds files is not touched without `overwrite`, and one
that is public gets nothing that was meant to be private; no local path and no token in what is uploaded, stored or
said. Does not upload data. A failed upload leaves an empty repository at most, which the next run fills.
"""

import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunewright.pipeline import files
from tunewright.pipeline.context import JobContext
from tunewright.pipeline.errors import Conflict, InvalidInput, NotFound, Unavailable, call
from tunewright.pipeline.ids import new_id, slug
from tunewright.pipeline.publishing import card, lineage
from tunewright.pipeline.publishing.redact import public
from tunewright.pipeline.settings import hub_endpoint
from tunewright.pipeline.store import Row
from tunewright.pipeline.workspace import Workspace

if TYPE_CHECKING:
    from huggingface_hub import HfApi

HOW_TO_LOG_IN = "Run `hf auth login`, or set HF_TOKEN to a token with write access (huggingface.co/settings/tokens)."
# Written by Tunewright and PEFT: every text in it is made public. Of the others only the entry that names a folder:
# a chat template in tokenizer_config.json must stay as it is, to the letter.
REWRITTEN = {"adapter_config.json", "provenance.json"}
NAMING_A_FOLDER = {"config.json": "_name_or_path", "tokenizer_config.json": "name_or_path"}
CARD = "README.md"
# What the Hub itself puts into every new repository.
HUB_OWN = {".gitattributes"}


@dataclass(frozen=True)
class Plan:
    """`files` maps a path in the repository to the file on this machine; the card comes on top."""

    artifact: Row
    repo_id: str
    files: dict[str, Path]
    card: str

    @property
    def retry(self) -> str:
        return call("publish_to_hub", artifact_id=self.artifact["id"], repo_id=self.repo_id, confirm=True)

    @property
    def sizes(self) -> list[dict[str, Any]]:
        """The paths in the repository with their bytes before upload."""
        return [{"path": path, "bytes": file.stat().st_size} for path, file in self.files.items()] + [
            {"path": CARD, "bytes": len(self.card.encode())}
        ]


def prepare(
    workspace: Workspace, artifact_id: str, repo_id: str, private: bool = True, overwrite: bool = False
) -> dict[str, Any]:
    """The dry run: what would be uploaded and the card, without asking the network. Raises NotFound, InvalidInput."""
    plan = _plan(workspace, artifact_id, repo_id)
    has_token = _token() is not None
    warnings = [] if has_token else [f"There is no Hub token here. {HOW_TO_LOG_IN}"]
    if not private:
        warnings.append("The repository will be public: anybody can read and copy it.")
    if overwrite:
        warnings.append("Files that the repository has and this upload has not are removed (its history keeps them).")
    return {
        "artifact_id": plan.artifact["id"],
        "repo_id": repo_id,
        "url": f"{hub_endpoint()}/{repo_id}",
        "private": private,
        "files": plan.sizes,
        "bytes": sum(file["bytes"] for file in plan.sizes),
        "card": plan.card,
        "token_present": has_token,
        "warnings": warnings,
    }


def run(context: JobContext) -> dict[str, Any]:
    """The stage of the job kind `publish_hub`; spec: artifact_id, repo_id, private, overwrite.

    Adds an artifact of kind `publication` and returns its document with `publication_id`. Raises Unavailable without
    a token or where the Hub does not answer or refuses, Conflict where the repository stands against it.
    """
    spec = context.spec
    plan = _plan(context.workspace, spec["artifact_id"], spec["repo_id"])
    token = _token()
    if token is None:
        raise Unavailable("hub_token_missing", "There is no Hub token here.", allowed=HOW_TO_LOG_IN, next=plan.retry)
    from huggingface_hub import HfApi
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
    api = HfApi(endpoint=hub_endpoint(), token=token)
    overwrite = bool(spec.get("overwrite"))
    context.check_cancelled()
    context.progress("asking the Hub")
    private = _open_repository(context, api, plan, private=spec.get("private", True), overwrite=overwrite)
    with _staged(context, plan) as staging:
        sent = {path: (staging / path).stat().st_size for path in [*plan.files, CARD]}
        context.progress("uploading", 0, sum(sent.values()))
        context.check_cancelled()
        with _answering(context, plan, f"{plan.repo_id} exists; what it held before is in its history."):
            commit = api.upload_folder(
                repo_id=plan.repo_id,
                folder_path=staging,
                commit_message=f"Tunewright: {plan.artifact['name']}",
                delete_patterns=["*"] if overwrite else None,
            )
    document = {
        "target": "hub",
        "url": f"{hub_endpoint()}/{plan.repo_id}",
        "repo_id": plan.repo_id,
        "private": private,
        "commit": commit.oid,
        "files": [{"path": path, "bytes": size} for path, size in sent.items()],
    }
    return {**document, "publication_id": _record(context, plan, document)}


def _plan(workspace: Workspace, artifact_id: str, repo_id: str) -> Plan:
    artifact = workspace.store.artifact(artifact_id, "adapter", "export")
    _check_repo_id(artifact, repo_id)
    found = _adapter_files(artifact) if artifact["kind"] == "adapter" else _export_files(workspace, artifact)
    lost = [path for path, file in found.items() if not file.is_file()]
    if lost or not found:
        raise NotFound(
            "files_missing",
            f"{artifact['id']} cannot be published: {', '.join(lost) or 'all its files'} can no longer be found.",
            allowed="Files of an artifact are not to be moved or edited.",
            next=call("list_artifacts", kind=artifact["kind"]),
        )
    return Plan(artifact, repo_id, found, card.build(workspace, artifact, repo_id))


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


def _below(folder: Path, prefix: str = "") -> dict[str, Path]:
    """The files below `folder` by their path in the repository; cards written by others are left out."""
    found = {file.relative_to(folder).as_posix(): file for file in sorted(folder.rglob("*")) if file.is_file()}
    return {prefix + path: file for path, file in found.items() if file.name != CARD}


def _adapter_files(artifact: Row) -> dict[str, Path]:
    return _below(Path(artifact["document"]["path"]))


def _export_files(workspace: Workspace, artifact: Row) -> dict[str, Path]:
    """The merged model at the root, where `from_pretrained` looks, the GGUF files beside it, the adapter in `lora/`.

    The parity report stays here: it quotes rows of the data.
    """
    folder = Path(artifact["document"]["path"])
    provenance = lineage.file_of(workspace, artifact, "provenance.json")
    ggufs = [Path(file["path"]) for file in artifact["document"]["files"] if file["output"].startswith("gguf:")]
    return {
        **_below(folder / "merged"),
        **{file.name: file for file in [*ggufs, *([provenance] if provenance else [])]},
        **_below(folder / "lora", "lora/"),
    }


def _token() -> str | None:
    from huggingface_hub import get_token

    return get_token()


@contextmanager
def _answering(context: JobContext, plan: Plan, done: str) -> Generator[None]:
    """Turns what the Hub's client raises into Unavailable. The cause is not kept: a request in it holds the token."""
    import httpx
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    # The client wraps a failed upload in RuntimeError and a refused one in ValueError.
    except (HfHubHTTPError, httpx.HTTPError, OSError, RuntimeError, ValueError) as error:
        raise _failure(context, plan, error, done) from None


def _failure(context: JobContext, plan: Plan, error: Exception, done: str) -> Unavailable:
    """`hub_refused` with the Hub's status and words, `hub_unreachable`, or `hub_failed` with the client's words."""
    import httpx
    from huggingface_hub.errors import HfHubHTTPError

    causes: list[BaseException] = [error]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    answer = next((cause for cause in causes if isinstance(cause, HfHubHTTPError)), None)
    allowed = ""
    if answer is not None:
        status = answer.response.status_code
        code, what = "hub_refused", f"{hub_endpoint()} answered {status} for {plan.repo_id}"
        words = answer.server_message or ""
        allowed = HOW_TO_LOG_IN if status in (401, 403) else ""
    elif any(isinstance(cause, (OSError, httpx.HTTPError)) for cause in causes):
        offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") else ""
        code, what = "hub_unreachable", f"{hub_endpoint()} cannot be reached, or the connection broke off{offline}"
        words, allowed = "", "HF_ENDPOINT names a mirror."
    else:
        code, what, words = "hub_failed", f"The upload to {plan.repo_id} failed", str(causes[-1])
    said = public(context.workspace, " ".join(words.split())[:300]).rstrip(".")
    return Unavailable(code, f"{what}{f': {said}' if said else ''}.", allowed=allowed, next=plan.retry, done=done)


def _open_repository(context: JobContext, api: "HfApi", plan: Plan, *, private: bool, overwrite: bool) -> bool:
    """Creates the repository, or takes the one that is there; returns whether it is private. Raises Conflict."""
    from huggingface_hub.errors import RepositoryNotFoundError

    nothing = "Nothing was uploaded."
    with _answering(context, plan, nothing):
        try:
            there = api.model_info(plan.repo_id)
        except RepositoryNotFoundError:
            # Without exist_ok: where somebody makes it at this very moment, theirs is not to be written to.
            api.create_repo(plan.repo_id, private=private)
            return private
    arguments = {"artifact_id": plan.artifact["id"], "repo_id": plan.repo_id}
    if private and not there.private:
        raise Conflict(
            "repo_is_public",
            f"{plan.repo_id} exists and is public; private=true was asked for.",
            allowed="Choose another name, make the repository private on the Hub, or publish with private=false.",
            next=call("publish_to_hub", artifact_id=plan.artifact["id"], repo_id=f"{plan.repo_id}-private"),
            done=nothing,
        )
    held = {sibling.rfilename for sibling in there.siblings or []} - HUB_OWN
    if held and not overwrite:
        raise Conflict(
            "repo_exists",
            f"{plan.repo_id} exists and holds {len(held)} files.",
            allowed="Choose another name, or replace what it holds.",
            next=call("publish_to_hub", **arguments, overwrite=True, confirm=True),
            done=nothing,
        )
    return bool(there.private)


@contextmanager
def _staged(context: JobContext, plan: Plan) -> Generator[Path]:
    """The folder as the repository is to look, removed afterwards. Weights are links: they take no room."""
    staging = context.folder / "upload"
    shutil.rmtree(staging, ignore_errors=True)
    try:
        for path, file in plan.files.items():
            target = staging / path
            target.parent.mkdir(parents=True, exist_ok=True)
            if file.name in REWRITTEN:
                files.write_json(target, public(context.workspace, files.read_json(file)))
            elif key := NAMING_A_FOLDER.get(file.name):
                value = files.read_json(file)
                files.write_json(
                    target, {**value, **({key: public(context.workspace, value[key])} if key in value else {})}
                )
            else:
                _link(file, target)
        files.write_text(staging / CARD, plan.card)
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _link(file: Path, target: Path) -> None:
    try:
        os.link(file, target)
    except OSError:
        # Another disk, or a file system without hard links.
        target.symlink_to(file)


def _record(context: JobContext, plan: Plan, document: dict[str, Any]) -> str:
    publication_id = new_id("publication", plan.repo_id)
    context.workspace.store.add_artifact(
        publication_id, "publication", plan.repo_id, document, parents=[plan.artifact["id"]], job_id=context.job_id
    )
    visibility = "private" if document["private"] else "public"
    context.event("info", "published", f"{document['url']} ({visibility}).")
    return publication_id
