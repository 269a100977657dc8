"""The converter, a program of its own: `python -P -m …documents.convert TASKS`, documents to Markdown one by one.

TASKS is a JSON file: `[{"source": …, "name": …, "result": …, "error": …}, …]`. Of each, in order, either `result`
(`{"name": …, "markdown": …}`) or `error` (a TunewrightError's fields) is written whole. Guarantees: no network and no
other program; bounded memory and time for each document; what kills it (a crash of a library, a full memory) leaves
the files of the documents before. Heavy: imports markitdown, which brings onnxruntime and pandas.
"""

import logging
import os
import re
import resource
import sys
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunewright.pipeline import files
from tunewright.pipeline.documents.chunks import HEADING
from tunewright.pipeline.documents.markdown import tidied
from tunewright.pipeline.errors import InvalidInput, TunewrightError, call

if TYPE_CHECKING:
    from markitdown import FailedConversionAttempt, MarkItDown

TIME_LIMIT_S = 900
MEMORY_LIMIT_BYTES = 6 * 2**30
MAX_UNPACKED_BYTES = 2**30
MAX_MARKDOWN_CHARACTERS = 50_000_000
# Events of the interpreter that a conversion has no use for.
FORBIDDEN = ("socket.connect", "socket.getaddrinfo", "socket.sendto", "subprocess.Popen", "os.system", "os.exec")

OLE = b"\xd0\xcf\x11\xe0"  # the container of old Office files, and of new ones with a password
SLIDE = re.compile(r"^<!-- Slide number: (\d+) -->$", re.MULTILINE)
UNMAPPED = re.compile(r"\(cid:\d+\)")
# Of a text with so many letters that its fonts do not name, the rest is not worth reading.
MAX_UNMAPPED_SHARE = 0.2


def main() -> None:
    """Converts every document of the task file in turn."""
    _confine()
    converter = _markitdown()
    for task in files.read_json(Path(sys.argv[1])):
        source, error = Path(task["source"]), Path(task["error"])
        watchdog = threading.Timer(TIME_LIMIT_S, _give_up, [source, error])
        watchdog.daemon = True
        watchdog.start()
        try:
            files.write_json(Path(task["result"]), {"name": task["name"], "markdown": _convert(converter, source)})
        except TunewrightError as failure:
            files.write_json(error, failure.to_dict())
        finally:
            watchdog.cancel()


def refused(code: str, what: str, allowed: str, source: Path) -> InvalidInput:
    return InvalidInput(
        code, what, allowed=allowed, next=call("read_documents", source=f"…/{source.stem}.md"), done="Nothing was read."
    )


def _confine() -> None:
    def refuse(event: str, arguments: tuple[Any, ...]) -> None:
        if event in FORBIDDEN:
            raise PermissionError(f"{event} while converting a document")

    sys.addaudithook(refuse)
    # Of the address space a library reserves far more than it uses; this counts what it may write to.
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_LIMIT_BYTES, MEMORY_LIMIT_BYTES))
    logging.disable()  # pdfminer warns about every second font


def _give_up(source: Path, error: Path) -> None:
    failure = refused(
        "document_too_slow",
        f"{source.name} was not converted within {TIME_LIMIT_S // 60} minutes.",
        "Give a part of it, or its text.",
        source,
    )
    files.write_json(error, failure.to_dict())
    # A library that does not return cannot be stopped otherwise.
    os._exit(1)


def _markitdown() -> "MarkItDown":
    # MIT, Microsoft's, released every few weeks: one surface over pdfminer, mammoth, python-pptx and BeautifulSoup.
    from markitdown import MarkItDown
    from markitdown.converters import DocxConverter, EpubConverter, HtmlConverter, PdfConverter, PptxConverter

    # Neither its plugins nor what would unpack archives or ask the network.
    converter = MarkItDown(enable_builtins=False, enable_plugins=False)
    for known in (HtmlConverter(), EpubConverter(), PptxConverter(), DocxConverter(), PdfConverter()):
        converter.register_converter(known)
    return converter


def _convert(converter: "MarkItDown", source: Path) -> str:
    """The document as Markdown. Raises InvalidInput where it has none that can be read."""
    from markitdown import FileConversionException, StreamInfo, UnsupportedFormatException

    with source.open("rb") as file:
        head = file.read(1024)
        _refuse_locked(source, head)
        file.seek(0)
        try:
            # By a stream, not by its path: a name is never taken for an address.
            converted = converter.convert_stream(file, stream_info=StreamInfo(extension=source.suffix.lower()))
        except (FileConversionException, UnsupportedFormatException, RecursionError, MemoryError) as error:
            raise _broken(source, error) from error
    markdown = tidied(FINISHING.get(source.suffix.lower(), str)(converted.markdown))
    if len(markdown) > MAX_MARKDOWN_CHARACTERS:
        raise refused(
            "document_too_large",
            f"{source.name} unpacks to {len(markdown) / 1e6:.0f} million characters.",
            f"At most {MAX_MARKDOWN_CHARACTERS / 1e6:.0f} million; give a part of it.",
            source,
        )
    if not markdown or _is_unmapped(markdown):
        raise _textless(source, is_unmapped=bool(markdown))
    return markdown


def _refuse_locked(source: Path, head: bytes) -> None:
    """Raises InvalidInput where a password, DRM or an unbelievable size keeps the document closed."""
    if head.startswith(OLE):
        raise _locked(source, "has a password, or is an old Office file")
    if b"%PDF-" in head and _pdf_pages(source) is None:
        raise _locked(source, "has a password")
    if not zipfile.is_zipfile(source):
        return
    with zipfile.ZipFile(source) as archive:
        entries = archive.infolist()
        encryption = next((entry for entry in entries if entry.filename == "META-INF/encryption.xml"), None)
        # Fonts alone are often obfuscated; the text is read all the same.
        if any(entry.flag_bits & 1 for entry in entries) or (
            encryption and encryption.file_size < MAX_UNPACKED_BYTES and b"html" in archive.read(encryption)
        ):
            raise _locked(source, "is encrypted")
    unpacked = sum(entry.file_size for entry in entries)
    if unpacked > MAX_UNPACKED_BYTES:
        raise refused(
            "document_too_large",
            f"{source.name} ({source.stat().st_size / 1e6:.1f} MB) unpacks to {unpacked / 1e6:.0f} MB.",
            f"At most {MAX_UNPACKED_BYTES / 1e6:.0f} MB; give a part of it, without its pictures.",
            source,
        )


def _pdf_pages(source: Path) -> int | None:
    """How many pages a PDF has; 0 where that cannot be read, None where it needs a password."""
    from pdfminer.pdfdocument import PDFDocument, PDFPasswordIncorrect
    from pdfminer.pdfpage import PDFPage
    from pdfminer.pdfparser import PDFParser
    from pdfminer.psexceptions import PSException

    with source.open("rb") as file:
        try:
            return sum(1 for _ in PDFPage.create_pages(PDFDocument(PDFParser(file))))
        except PDFPasswordIncorrect:
            return None
        except (PSException, ValueError, TypeError, KeyError, AttributeError):  # what broken files make pdfminer raise
            return 0


def _locked(source: Path, why: str) -> InvalidInput:
    return refused(
        "document_locked",
        f"{source.name} {why}.",
        "Save a copy without a password, in a current format (PDF, DOCX, PPTX, EPUB).",
        source,
    )


def _broken(source: Path, error: Exception) -> InvalidInput:
    attempts: list[FailedConversionAttempt] = getattr(error, "attempts", None) or []
    cause = next((attempt.exc_info[1] for attempt in attempts if attempt.exc_info), error)
    reason = " ".join(f"{type(cause).__name__}: {cause}".split())[:300].rstrip(".")
    return refused(
        "document_unreadable",
        f"{source.name} is no {source.suffix.lower()[1:].upper()} that can be read ({reason}).",
        "Open it in its program and save it anew, or give its text as .md or .txt.",
        source,
    )


def _textless(source: Path, *, is_unmapped: bool) -> InvalidInput:
    pages = _pdf_pages(source) if source.suffix.lower() == ".pdf" else None
    if not pages:
        return refused("document_without_text", f"{source.name} holds no text.", "Give a file with text.", source)
    lacking = "its fonts do not say which letters they show" if is_unmapped else "they are pictures (a scan)"
    return refused(
        "document_without_text",
        f"{source.name} has {pages} pages without text: {lacking}.",
        "Recognise its text first (for example: ocrmypdf --force-ocr in.pdf out.pdf), then read the result.",
        source,
    )


def _is_unmapped(markdown: str) -> bool:
    return sum(map(len, UNMAPPED.findall(markdown))) > MAX_UNMAPPED_SHARE * len(markdown)


def _with_slide_headings(markdown: str) -> str:
    """Every slide below a heading: its title, else its number."""

    def heading(match: re.Match[str]) -> str:
        rest = markdown[match.end() :].lstrip("\n")
        return "" if HEADING.match(rest) else f"# Slide {match[1]}"

    return SLIDE.sub(heading, markdown)


def _with_paragraphs(text: str) -> str:
    """Pages of a PDF are parted by form feeds."""
    return text.replace("\f", "\n\n")


FINISHING: dict[str, Callable[[str], str]] = {".pptx": _with_slide_headings, ".pdf": _with_paragraphs}


if __name__ == "__main__":
    main()
