"""What documents do to the converter, and what of that reaches the server: an error, and nothing more."""

import os
import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from standins.documents import pdf, write_epub

from tunewright.pipeline.documents import conversion, reading
from tunewright.pipeline.errors import InvalidInput, Unavailable
from tunewright.pipeline.workspace import Workspace

# A converter that dies, or stays, when it comes to a document so named; else the real one.
UNRULY = """
import json, os, signal, sys, time
from pathlib import Path
from tunewright.pipeline.documents import convert
convert_one = convert._convert
def unruly(converter, source):
    if "crash" in source.name:
        os.kill(os.getpid(), signal.SIGSEGV)
    if "slow" in source.name:
        while not source.with_name("go").exists():
            time.sleep(0.01)
    return convert_one(converter, source)
convert._convert = unruly
convert.main()
"""


@pytest.fixture
def unruly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "unruly_converter.py").write_text(UNRULY, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(conversion, "CONVERTER", "unruly_converter")


@pytest.fixture(scope="module")
def refusals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What is said of each bad document, all read at once."""
    folder = tmp_path_factory.mktemp("bad")
    (folder / "scan.pdf").write_bytes(pdf([[], [], []]))
    (folder / "locked.pdf").write_bytes(pdf([["secret"]], locked=True))
    (folder / "broken.pdf").write_bytes(b"%PDF-1.4\nnonsense")
    (folder / "unmapped.pdf").write_bytes(pdf([[f"({'cid:7'})" * 30, "a title"]]))
    (folder / "broken.docx").write_bytes(b"PK\x03\x04nonsense")
    (folder / "old.docx").write_bytes(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600))
    (folder / "picture.pptx").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    (folder / "empty.html").write_text("<html></html>", encoding="utf-8")
    (folder / "blank.txt").write_text(" \n\n", encoding="utf-8")
    (folder / "bytes.txt").write_bytes(bytes(range(128, 256)) * 40)
    (folder / "large.txt").write_bytes(b"a" * (conversion.MAX_TEXT_BYTES + 1))
    write_epub(folder / "locked.epub", ["<p>secret</p>"], locked=True)
    _write_bomb(folder / "bomb.docx")
    workspace = Workspace.open(tmp_path_factory.mktemp("home") / "home")
    sources = sorted(folder.iterdir())
    outcomes = conversion.documents(workspace, sources, 60, retry="read_documents(…)")
    assert not any(isinstance(outcome, conversion.Document) for outcome in outcomes)
    return {source.name: str(outcome) for source, outcome in zip(sources, outcomes, strict=True)}


def _write_bomb(path: Path) -> None:
    """A zip archive whose directory says that 3 GB are in it."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("word/document.xml", b"0" * 100_000)
    written = bytearray(path.read_bytes())
    directory = written.rindex(b"PK\x01\x02")
    written[directory + 24 : directory + 28] = struct.pack("<I", 3_000_000_000)
    path.write_bytes(written)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("scan.pdf", "document_without_text: scan.pdf has 3 pages without text: they are pictures (a scan). Recognise"),
        ("unmapped.pdf", "has 1 pages without text: its fonts do not say which letters they show."),
        ("locked.pdf", "document_locked: locked.pdf has a password. Save a copy without a password"),
        ("locked.epub", "document_locked: locked.epub is encrypted."),
        ("old.docx", "document_locked: old.docx has a password, or is an old Office file."),
        ("broken.pdf", "document_unreadable: broken.pdf is no PDF that can be read (PDFSyntaxError: No /Root object"),
        ("broken.docx", "document_unreadable: broken.docx is no DOCX that can be read (BadZipFile"),
        ("picture.pptx", "document_unreadable: picture.pptx is no PPTX that can be read"),
        ("empty.html", "document_without_text: empty.html holds no text."),
        ("blank.txt", "document_without_text: blank.txt holds no text."),
        ("bytes.txt", "unknown_encoding: "),
        ("large.txt", "has 50 MB. At most 50 MB; give a part of it."),
        ("bomb.docx", "document_too_large: bomb.docx (0.0 MB) unpacks to 3000 MB. At most 1074 MB;"),
    ],
)
def test_a_document_that_cannot_be_read_is_said_so(refusals: dict[str, str], name: str, says: str) -> None:
    assert says in refusals[name]
    assert "Next: read_documents(source=" in refusals[name]
    assert "Traceback" not in refusals[name]


def test_one_bad_document_does_not_keep_the_others_back(workspace: Workspace, tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(pdf([[]]))
    (tmp_path / "b.pdf").write_bytes(pdf([["Clay is plastic."]]))
    read = reading.survey(workspace, str(tmp_path / "*.pdf"), 200)
    assert [chunk.document for chunk in read.chunks] == ["b.pdf"]
    assert [failure.code for failure in read.failures] == ["document_without_text"]


def test_a_source_without_one_readable_document_is_an_error(workspace: Workspace, tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text(" ", encoding="utf-8")
    with pytest.raises(InvalidInput, match=r"document_without_text: a\.md holds no text"):
        reading.survey(workspace, str(tmp_path / "a.md"), 200)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_document_without_permission_is_said(workspace: Workspace, tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("Clay.", encoding="utf-8")
    (tmp_path / "a.md").chmod(0)
    with pytest.raises(InvalidInput, match="unreadable_file"):
        reading.survey(workspace, str(tmp_path / "a.md"), 200)


@pytest.mark.usefixtures("unruly")
def test_a_crash_is_blamed_on_its_document_and_the_rest_is_converted(workspace: Workspace, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("a", "b-crash", "c"):
        (folder / f"{name}.html").write_text(f"<p>Clay {name}.</p>", encoding="utf-8")
    read = reading.survey(workspace, str(folder), 200)
    assert read.documents == ["a.html", "c.html"]
    (failure,) = read.failures
    assert str(failure).startswith("conversion_crashed: The converter died of b-crash.html")


@pytest.mark.usefixtures("unruly")
def test_who_stops_waiting_finds_it_converted_later(workspace: Workspace, tmp_path: Path) -> None:
    path = tmp_path / "slow.html"
    path.write_text("<p>Clay.</p>", encoding="utf-8")
    with pytest.raises(Unavailable, match=r"still_converting: 1 of 1 .*slow\.html.*Next: read_documents") as raised:
        reading.survey(workspace, str(path), 200, wait_s=0.2)
    assert str(path) in raised.value.next
    (tmp_path / "go").touch()
    # The process that was started above does it: a new one would not know the document's pace.
    running = (workspace.home.cache / "documents" / "running.json").read_text(encoding="utf-8")
    assert [chunk.text for chunk in reading.survey(workspace, str(path), 200).chunks] == ["Clay."]
    assert '"pid"' in running
    assert not (workspace.home.cache / "documents" / "running.json").exists()


def test_a_failure_is_remembered_for_an_hour(workspace: Workspace, tmp_path: Path) -> None:
    path = tmp_path / "a.html"
    path.write_text("<html></html>", encoding="utf-8")
    with pytest.raises(InvalidInput):
        reading.survey(workspace, str(path), 200)
    (error,) = (workspace.home.cache / "documents").glob("*.error.json")
    made = error.stat().st_mtime_ns
    with pytest.raises(InvalidInput):
        reading.survey(workspace, str(path), 200)
    assert error.stat().st_mtime_ns == made
    os.utime(error, (time.time() - 3700, time.time() - 3700))
    with pytest.raises(InvalidInput):
        reading.survey(workspace, str(path), 200)
    assert time.time() - error.stat().st_mtime < 600


def test_the_converter_reaches_neither_network_nor_programs(run_python: Callable[..., str]) -> None:
    code = """
import socket, subprocess, sys
from tunewright.pipeline.documents import convert
convert._confine()
for attempt in (lambda: socket.create_connection(("127.0.0.1", 9)), lambda: subprocess.run([sys.executable])):
    try:
        attempt()
    except PermissionError as error:
        print(error)
"""
    assert run_python(code).splitlines() == [
        "socket.getaddrinfo while converting a document", "subprocess.Popen while converting a document",
    ]  # fmt: skip


def test_the_converter_has_no_more_memory_than_it_is_given(run_python: Callable[..., str]) -> None:
    code = """
from tunewright.pipeline.documents import convert
convert.MEMORY_LIMIT_BYTES = 2**29
convert._confine()
try:
    bytearray(2**30)
except MemoryError:
    print("refused")
"""
    assert run_python(code) == "refused\n"


def test_a_document_that_takes_too_long_is_given_up(run_python: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text("<p>Clay.</p>", encoding="utf-8")
    code = """
import json, os, sys, threading
from pathlib import Path
from tunewright.pipeline.documents import convert
convert.TIME_LIMIT_S = 0.1
convert._convert = lambda converter, source: threading.Event().wait(60)
folder = Path(sys.argv[1])
tasks = [{"source": str(folder / "a.html"), "name": "a", "result": str(folder / "r"), "error": str(folder / "e")}]
(folder / "tasks.json").write_text(json.dumps(tasks), encoding="utf-8")
sys.argv[1:] = [str(folder / "tasks.json")]
child = os.fork()
if not child:
    convert.main()
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), json.loads((folder / "e").read_text())["code"])
"""
    assert run_python(code, tmp_path) == "1 document_too_slow\n"
