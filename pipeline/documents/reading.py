"""Chunks of documents, to write examples from: PDF, DOCX, PPTX, HTML, EPUB, Markdown and text.

Guarantees: a chunk's id depends on the bytes of its document and on the size asked for alone, and finds the chunk again
as long as the cache lasts, wherever the document has gone. Nothing is fetched: a source is a file, folder or glob, and
read only where files may be read (see `access`).
Light: what converts runs in a process of its own.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tunewright.pipeline import access
from tunewright.pipeline.documents import chunks, conversion
from tunewright.pipeline.documents.conversion import SUFFIXES, Document
from tunewright.pipeline.errors import InvalidInput, NotFound, TunewrightError, call, nearest
from tunewright.pipeline.tokens import estimate_tokens
from tunewright.pipeline.workspace import Workspace

MAX_DOCUMENTS = 500
# Below a folder: documents lie in some thousand entries, a home directory has millions.
MAX_ENTRIES = 20_000
# As hosts wait 60 s for a call.
USUAL_WAIT_S = 45.0
CHUNK_TOKENS = 800
SHA_DIGITS = 10
# Of chunks that are shown at a time: a host may cut a result of more than 4,000 tokens.
PAGE_TOKENS = 3000
FRAME_TOKENS = 60  # a chunk's id, the names of its fields
ID = re.compile(rf"ch-([0-9a-f]{{{SHA_DIGITS}}})-(\d{{2,5}})-(\d{{1,7}})")
WHAT_WORKS = f"A source is a document ({', '.join(SUFFIXES)}), a folder of such, or a glob."


@dataclass(frozen=True)
class Chunk:
    """A part of a document. `document` is the file's name, `headings` those it stands under from the outermost,
    `tokens` an estimate (see `tokens.estimate_tokens`)."""

    id: str
    document: str
    headings: list[str]
    text: str
    tokens: int


@dataclass(frozen=True)
class Reading:
    """What a source holds: its chunks in order, the names of its documents, and why others could not be read."""

    chunks: list[Chunk]
    documents: list[str]
    failures: list[TunewrightError]


def read(workspace: Workspace, source: str, chunk_tokens: int = CHUNK_TOKENS) -> list[Chunk]:
    """The chunks of every document that `source` names and that can be read (see `survey`)."""
    return survey(workspace, source, chunk_tokens).chunks


def survey(
    workspace: Workspace, source: str, chunk_tokens: int = CHUNK_TOKENS, wait_s: float = USUAL_WAIT_S
) -> Reading:
    """What `source` holds, documents sorted by path, in chunks of at most `chunk_tokens` estimated tokens.

    Raises InvalidInput (no document at all, none that can be read), NotFound, and Unavailable (`still_converting`)
    after `wait_s` seconds. Writes what it converts into the cache.
    """
    retry = call("read_documents", source=source, chunk_tokens=chunk_tokens)
    outcomes = conversion.documents(workspace, _paths(workspace, source), wait_s, retry=retry)
    # The same bytes under two names are read once.
    found = list({outcome.sha256: outcome for outcome in outcomes if isinstance(outcome, Document)}.values())
    failures = [outcome for outcome in outcomes if isinstance(outcome, TunewrightError)]
    if not found:
        raise failures[0]
    return Reading(
        [chunk for document in found for chunk in _chunks(document, chunk_tokens)],
        [document.name for document in found],
        failures,
    )


def find_chunk(workspace: Workspace, chunk_id: str) -> Chunk:
    """The chunk with this id, from the cache. Raises NotFound where its document was never read in this home."""
    return following(workspace, chunk_id)[0]


def following(workspace: Workspace, chunk_id: str) -> list[Chunk]:
    """The chunk with this id and those after it in its document. Raises NotFound as `find_chunk` does."""
    parsed = ID.fullmatch(chunk_id)
    document = conversion.kept(workspace, parsed[1]) if parsed else None
    if parsed and document:
        number = int(parsed[3])
        found = _chunks(document, int(parsed[2]))[number - 1 :] if number else []
        if found:
            return found
    raise NotFound(
        "chunk_not_found",
        f"No chunk has the id {chunk_id[:80]!r}.",
        allowed="read_documents gives ids; a chunk is kept as long as this home's cache.",
        next=call("read_documents", source="…"),
    )


def pages(chunks: Sequence[Chunk]) -> list[list[Chunk]]:
    """The chunks in pages of about PAGE_TOKENS, what stands around them counted."""
    made: list[list[Chunk]] = []
    size = 0
    for chunk in chunks:
        added = chunk.tokens + sum(map(estimate_tokens, [chunk.document, *chunk.headings])) + FRAME_TOKENS
        if made and size + added <= PAGE_TOKENS:
            made[-1].append(chunk)
            size += added
        else:
            made.append([chunk])
            size = added
    return made


def _chunks(document: Document, chunk_tokens: int) -> list[Chunk]:
    stem = f"ch-{document.sha256[:SHA_DIGITS]}-{chunk_tokens}"
    return [
        Chunk(f"{stem}-{number}", document.name, list(piece.headings), piece.text, piece.tokens)
        for number, piece in enumerate(chunks.cut(document.markdown, chunk_tokens), start=1)
    ]


def _paths(workspace: Workspace, source: str) -> list[Path]:
    """The documents that a source names, sorted. Raises InvalidInput, NotFound."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:", source):
        raise InvalidInput(
            "source_is_address",
            f"{source[:200]!r} is an address.",
            allowed=f"Documents are read from this machine alone: download it first. {WHAT_WORKS}",
            next=call("read_documents", source="…/page.html"),
        )
    path = _path(source)
    for looked_at in access.looked_at(path):
        access.readable(workspace, looked_at)
    if path.is_file():
        if path.suffix.lower() not in SUFFIXES:
            raise InvalidInput(
                "unsupported_document",
                f"{path} is a {path.suffix or 'file without a suffix'}.",
                allowed=f"{WHAT_WORKS} Save it as one of these; rows of data are read by prepare_dataset.",
                next=call("read_documents", source=str(path.with_suffix(".pdf"))),
            )
        return [path]
    found = _within(path) if path.is_dir() else _matching(path) if set(source) & set(access.GLOB_CHARACTERS) else None
    if found is None:
        raise _missing(path)
    if not found:
        raise NotFound(
            "no_documents", f"{source} holds no document.", allowed=WHAT_WORKS, next=call("read_documents", source="…")
        )
    if len(found) > MAX_DOCUMENTS:
        raise _too_many(source, f"{len(found)} documents")
    return sorted(found)


def _path(source: str) -> Path:
    if not source.strip():
        raise InvalidInput("invalid_source", "The source is an empty text.", allowed=WHAT_WORKS)
    try:
        path = Path(source).expanduser().absolute()
        path.exists()
    except (OSError, RuntimeError, ValueError) as error:  # no permission, ~ of an unknown user, a zero byte
        raise InvalidInput(
            "invalid_source", f"{source[:200]!r} is no path: {error!s:.80}.", allowed=WHAT_WORKS
        ) from None
    return path


def _within(folder: Path) -> list[Path]:
    found: list[Path] = []
    for number, entry in enumerate(folder.rglob("*")):
        if number > MAX_ENTRIES:
            raise _too_many(str(folder), f"more than {MAX_ENTRIES:,} entries")
        is_hidden = any(part.startswith((".", "~$")) for part in entry.relative_to(folder).parts)
        if entry.suffix.lower() in SUFFIXES and not is_hidden and entry.is_file():
            found.append(entry)
    return found


def _matching(pattern: Path) -> list[Path]:
    matches = Path(pattern.anchor).glob(str(pattern.relative_to(pattern.anchor)))
    try:
        return [match for match in matches if match.suffix.lower() in SUFFIXES and match.is_file()]
    except (ValueError, OSError) as error:
        raise InvalidInput(
            "invalid_source", f"The glob {str(pattern)[:200]!r} is broken: {error!s:.80}.", allowed=WHAT_WORKS
        ) from None


def _too_many(source: str, what: str) -> InvalidInput:
    return InvalidInput(
        "too_many_documents",
        f"{source} holds {what}.",
        allowed=f"At most {MAX_DOCUMENTS} documents at a time: name a folder of them, or a glob.",
        next=call("read_documents", source=f"{source}/…/*.pdf"),
    )


def _missing(path: Path) -> NotFound:
    if not path.parent.is_dir():
        allowed = f"Its folder does not exist. {WHAT_WORKS}"
    else:
        beside = [entry.name for entry in path.parent.glob("*") if entry.is_dir() or entry.suffix.lower() in SUFFIXES]
        allowed = f"In its folder: {nearest(path.name, sorted(beside))} {WHAT_WORKS}"
    return NotFound(
        "source_not_found", f"There is no {path}.", allowed=allowed, next=call("read_documents", source="…")
    )
