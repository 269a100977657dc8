"""From a request to the exact specification of a `generate_examples` job: what can be refused at once is. Light."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from tunewright.pipeline.documents import reading
from tunewright.pipeline.errors import Conflict, InvalidInput, NotFound, call
from tunewright.pipeline.generation.endpoint import Endpoint
from tunewright.pipeline.generation.prompts import ExampleKind
from tunewright.pipeline.ids import PREFIX
from tunewright.pipeline.store import Row
from tunewright.pipeline.workspace import Workspace

# Documents that could not be read, of a folder of many.
MAX_SHOWN = 5


class GenerationArguments(BaseModel):
    """How many examples of what kind, from pieces of what size, asked for how many at a time; with their bounds.

    Without descriptions: the names say it, and tools/list must stay small.
    """

    model_config = ConfigDict(extra="forbid")

    count: Annotated[int, Field(ge=1, le=20_000)] = 100
    kind: ExampleKind = "qa"
    chunk_tokens: Annotated[int, Field(ge=100, le=8000)] = 800
    concurrency: Annotated[int, Field(ge=1, le=64)] = 4


def check(
    workspace: Workspace,
    source: str,
    endpoint: str,
    model: str,
    name: str | None,
    arguments: GenerationArguments,
    *,
    confirm: bool,
) -> Row:
    """The spec of the job. Converts the documents (kept in the cache), asks the endpoint which models it has.

    Nothing of the documents is sent. Raises InvalidInput, NotFound, Unavailable, and Conflict (`not_confirmed`) before
    anything but a loopback address is spoken to.
    """
    teacher = Endpoint.of(endpoint)
    given: dict[str, Any] = {"source": source, "endpoint": endpoint, "model": model, **arguments.model_dump()}
    given |= {"name": name} if name else {}
    found = reading.survey(workspace, source, arguments.chunk_tokens)
    title = name or f"{_stem(source)}-{arguments.kind}"
    _require_new(workspace, title, next=call("generate_examples", **given | {"name": "…"}))
    if not teacher.is_loopback and not confirm:
        raise Conflict(
            "not_confirmed",
            f"The text of {source} ({len(found.chunks)} chunks) would be sent to {teacher.url}; confirm was not set.",
            allowed='Ask the user. A teacher on this machine (endpoint="ollama") needs no confirmation.',
            next=call("generate_examples", **given, confirm=True),
            done="Nothing was sent.",
        )
    retry = call("generate_examples", **given, **({"confirm": True} if confirm else {}))
    teacher.require_model(model, next=retry)
    return {
        # The worker runs in another folder.
        "source": str(Path(source).expanduser().absolute()),
        "endpoint": teacher.url,
        "model": model,
        "name": title,
        **arguments.model_dump(),
        "chunks": len(found.chunks),
        "unreadable": [f"{failure.code}: {failure.what}" for failure in found.failures[:MAX_SHOWN]],
    }


def _require_new(workspace: Workspace, title: str, *, next: str) -> None:
    """Raises InvalidInput where a name would be taken for the id of something that is there, or for its beginning."""
    try:
        known = title.startswith(f"{PREFIX['dataset']}-") or workspace.store.artifact(title)
    except NotFound:
        return
    except InvalidInput:  # ambiguous: the beginning of several ids
        known = True
    if known:
        raise InvalidInput(
            "invalid_name",
            f"{title!r} is an id, or the beginning of one.",
            allowed="The examples become a dataset of their own: give it another name.",
            next=next,
        )


def _stem(source: str) -> str:
    """What the documents are called: the file's or folder's name, of a glob the folder's."""
    path = Path(source).expanduser().absolute()
    while set(path.name) & set("*?["):
        path = path.parent
    return path.stem or "documents"
