"""Documents as Markdown, converted once and kept in the cache under the hash of their bytes.

Guarantees: a document that was converted is never converted again, wherever it lies; one conversion runs at a time in a
home; the converter is a process of its own, whose crash, hang or hunger is an error here and nothing more; it goes on
when the caller stops waiting, or dies. A failure is remembered for an hour. Light.
"""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from tunewright.pipeline import access, files, processes
from tunewright.pipeline.data.encodings import ESCAPED, Decoding
from tunewright.pipeline.documents.markdown import tidied
from tunewright.pipeline.errors import InvalidInput, TunewrightError, Unavailable, call
from tunewright.pipeline.workspace import Workspace

CONVERTER = "tunewright.pipeline.documents.convert"
TEXT_SUFFIXES = (".md", ".markdown", ".txt", ".text", ".rst")
CONVERTED_SUFFIXES = (".pdf", ".docx", ".pptx", ".html", ".htm", ".xhtml", ".epub")
SUFFIXES = (*CONVERTED_SUFFIXES, *TEXT_SUFFIXES)
MAX_BYTES = 500_000_000
MAX_TEXT_BYTES = 50_000_000
FAILURE_KEPT_S = 3600
POLL_S = 0.05
# Of what the converter wrote before it died, the last is shown.
LOG_CHARACTERS = 300


@dataclass(frozen=True)
class Document:
    """A document in Markdown. `name` is its file's name when it was first read, `sha256` that of its bytes."""

    name: str
    sha256: str
    markdown: str


@dataclass(frozen=True)
class _Place:
    """Where a document lies, links resolved, and where in the cache what becomes of it."""

    name: str
    source: Path
    sha256: str
    result: Path
    error: Path

    def is_done(self) -> bool:
        return self.result.exists() or self.error.exists()


def cache_folder(workspace: Workspace) -> Path:
    folder = workspace.home.cache / "documents"
    folder.mkdir(exist_ok=True)
    return folder


def documents(
    workspace: Workspace, sources: Sequence[Path], wait_s: float, *, retry: str
) -> list[Document | TunewrightError]:
    """The documents in the same order, or of each why it cannot be read.

    Waits for conversions at most `wait_s` seconds, then raises Unavailable (`still_converting`): the same call again,
    which `retry` is the text of, waits on. Writes into the cache.
    """
    deadline = time.monotonic() + wait_s
    found = [_place(workspace, source) for source in sources]
    # Two files of the same bytes are one document.
    places = list({place.sha256: place for place in found if isinstance(place, _Place)}.values())
    for place in places:
        _forget_old_failure(place)
        if not place.is_done() and place.source.suffix.lower() in TEXT_SUFFIXES:
            _read_text(place)
    waiting = [place for place in places if not place.is_done()]
    try:
        _convert(workspace, waiting, deadline)
    except TimeoutError:
        left = [place.name for place in waiting if not place.is_done()]
        raise Unavailable(
            "still_converting",
            f"{len(left)} of {len(sources)} documents are not converted yet: {', '.join(left[:3])} …",
            allowed="The conversion goes on by itself, at most 15 minutes a document.",
            next=retry,
            done="What is converted is kept.",
        ) from None
    return [_outcome(place) if isinstance(place, _Place) else place for place in found]


def kept(workspace: Workspace, sha256_prefix: str) -> Document | None:
    """The document in the cache whose bytes' hash begins so."""
    found = sorted(cache_folder(workspace).glob(f"{sha256_prefix}*.json"))
    results = [path for path in found if not path.name.endswith(".error.json")]
    return _load(results[0]) if results else None


def _load(result: Path) -> Document:
    held = files.read_json(result)
    return Document(held["name"], result.stem, held["markdown"])


def _outcome(place: _Place) -> Document | TunewrightError:
    return _load(place.result) if place.result.exists() else InvalidInput(**files.read_json(place.error))


def _place(workspace: Workspace, source: Path) -> _Place | InvalidInput:
    limit = MAX_TEXT_BYTES if source.suffix.lower() in TEXT_SUFFIXES else MAX_BYTES
    try:
        real = access.readable(workspace, source)
        size = real.stat().st_size
        if size > limit:
            what, allowed = f"{source} has {size / 1e6:.0f} MB.", f"At most {limit / 1e6:.0f} MB; give a part of it."
            return _refused("document_too_large", what, allowed, source)
        file = access.open_real(real)
        if file is None:
            return _refused("unreadable_file", f"{source} is no regular file.", "Give a file.", source)
        with file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
    except InvalidInput as refusal:
        return refusal
    except OSError as error:
        what, allowed = f"{source} cannot be read: {error.strerror}.", "Make it readable, or give a copy."
        return _refused("unreadable_file", what, allowed, source)
    # The same bytes are read in another way under another suffix: HTML as text, say.
    form = "text" if source.suffix.lower() in TEXT_SUFFIXES else source.suffix.lower()
    sha256 = hashlib.sha256(f"{form} {content}".encode()).hexdigest()
    folder = cache_folder(workspace)
    # A converter goes by the suffix, which what a link of the Hub's cache leads to does not have.
    lies_at = real if real.suffix.lower() == source.suffix.lower() else source
    return _Place(source.name, lies_at, sha256, folder / f"{sha256}.json", folder / f"{sha256}.error.json")


def _refused(code: str, what: str, allowed: str, source: Path) -> InvalidInput:
    retry = call("read_documents", source=f"…/{source.stem}.md")
    return InvalidInput(code, what, allowed=allowed, next=retry, done="Nothing of it was read.")


def _forget_old_failure(place: _Place) -> None:
    if place.error.exists() and time.time() - place.error.stat().st_mtime > FAILURE_KEPT_S:
        place.error.unlink(missing_ok=True)


def _read_text(place: _Place) -> None:
    """Text needs no converter: only its encoding is found out."""
    decoding = Decoding(place.source)
    try:
        text = "".join(decoding.text_pieces(iter([place.source.read_bytes()])))
    except InvalidInput as error:
        retry = call("read_documents", source=str(place.source))
        files.write_json(place.error, error.to_dict() | {"next": retry, "done": "Nothing was read."})
        return
    markdown = tidied(ESCAPED.sub("\ufffd", text))
    if markdown:
        files.write_json(place.result, {"name": place.name, "markdown": markdown})
        return
    refusal = _refused("document_without_text", f"{place.name} holds no text.", "Give a file with text.", place.source)
    files.write_json(place.error, refusal.to_dict())


def _convert(workspace: Workspace, places: Sequence[_Place], deadline: float) -> None:
    """Has every document converted. Raises TimeoutError at `deadline`; the converter goes on."""
    if not places:
        return
    folder = cache_folder(workspace)
    # filelock's Timeout is a TimeoutError.
    with FileLock(folder / "lock", timeout=max(0, deadline - time.monotonic()), thread_local=False):
        _await_running(folder, deadline)
        while waiting := [place for place in places if not place.is_done()]:
            _start(folder, waiting)
            _await_running(folder, deadline)
            if not waiting[0].is_done():
                _blame(folder, waiting[0])


def _start(folder: Path, places: Sequence[_Place]) -> None:
    tasks = [{"source": str(p.source), "name": p.name, "result": str(p.result), "error": str(p.error)} for p in places]
    files.write_json(folder / "tasks.json", tasks)
    log = folder / "converter.log"
    log.unlink(missing_ok=True)
    pid = processes.start_detached(CONVERTER, [str(folder / "tasks.json")], log)
    files.write_json(folder / "running.json", {"pid": pid, "started": processes.start_time(pid)})


def _await_running(folder: Path, deadline: float) -> None:
    """Waits until the converter that was started last has ended. Raises TimeoutError at `deadline`."""
    marker = folder / "running.json"
    if not marker.exists():
        return
    running = files.read_json(marker)
    while processes.is_alive(running["pid"], running["started"]):
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(POLL_S)
    marker.unlink()


def _blame(folder: Path, culprit: _Place) -> None:
    """The converter takes the documents in order: it died of the first that it left undone, without a word."""
    log = " ".join((folder / "converter.log").read_text(encoding="utf-8", errors="replace").split())
    failure = _refused(
        "conversion_crashed",
        f"The converter died of {culprit.name}: {log[-LOG_CHARACTERS:] or 'killed, or out of memory'}.",
        "Give a part of it, or its text as .md or .txt.",
        culprit.source,
    )
    files.write_json(culprit.error, failure.to_dict())
