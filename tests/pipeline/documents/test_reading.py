"""Documents of every format as chunks, ids that last, and refusals in the agreed form."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tunewright.pipeline.documents import reading
from tunewright.pipeline.errors import InvalidInput, NotFound, TunewrightError
from tunewright.pipeline.workspace import Workspace

TEXT = "Stoneware is fired until it is dense; earthenware stays porous."


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory, library: Path) -> Workspace:
    """A workspace that has read the whole library."""
    workspace = Workspace.open(tmp_path_factory.mktemp("home") / "home")
    reading.survey(workspace, str(library), 300)
    return workspace


@pytest.mark.parametrize(
    ("name", "headings", "texts"),
    [
        ("firing.pdf", [], ["The first firing drives water out of the clay.", "Cool slowly (12 hours)"]),
        ("manual.docx", ["3 Safety", "3.2 Poisoning"], ["Lead is toxic."]),
        ("glazes.epub", [], ["# Celadon\n\nIron in reduction.", "# Tenmoku"]),
        ("slides.pptx", [], ["# Loading a kiln\n\nLeave a finger's width", "# Slide 2\n\nProp the lid"]),
        ("handbook.html", ["Kiln handbook"], ["## Safety", "**spyhole**", "| 6 | 1222 |"]),
        ("notes.md", ["Notes"], ["Stoneware is fired to maturity."]),
        ("log.txt", [], ["opened two days later."]),
    ],
)
def test_every_format_is_read(
    converted: Workspace, library: Path, name: str, headings: list[str], texts: list[str]
) -> None:
    (chunk,) = reading.read(converted, str(library / name), 300)
    assert (chunk.document, chunk.headings) == (name, headings)
    for text in texts:
        assert text in chunk.text
    assert "never read" not in chunk.text and "Slide number" not in chunk.text


def test_a_folder_is_read_in_the_order_of_its_names(converted: Workspace, library: Path) -> None:
    read = reading.survey(converted, str(library), 300)
    assert read.documents == sorted(path.name for path in library.iterdir())
    assert [chunk.document for chunk in read.chunks] == read.documents
    assert read.failures == []


def test_a_glob_names_some_of_them(converted: Workspace, library: Path) -> None:
    assert reading.survey(converted, f"{library}/*.[mt]*", 300).documents == ["log.txt", "notes.md"]


def test_the_next_page_costs_no_conversion(
    converted: Workspace, library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading.conversion, "CONVERTER", "no.such.module")
    assert reading.read(converted, str(library / "firing.pdf"), 100)


def test_ids_depend_on_the_bytes_and_the_size_alone(workspace: Workspace, tmp_path: Path) -> None:
    one, other = tmp_path / "a.md", tmp_path / "elsewhere" / "b.txt"
    other.parent.mkdir()
    for path in (one, other):
        path.write_text(f"# Clay\n\n{TEXT * 20}", encoding="utf-8")
    ids = [[chunk.id for chunk in reading.read(workspace, str(path), 100)] for path in (one, other)]
    assert len(ids[0]) > 2
    assert ids[0] == ids[1]
    assert not set(ids[0]) & {chunk.id for chunk in reading.read(workspace, str(one), 101)}


def test_a_chunk_is_found_again_when_its_document_is_gone_and_the_server_new(
    workspace: Workspace, tmp_path: Path
) -> None:
    path = tmp_path / "clay.md"
    path.write_text(f"# Clay\n\n{TEXT * 20}", encoding="utf-8")
    chunks = reading.read(workspace, str(path), 100)
    path.unlink()
    again = Workspace.open(workspace.home.root)
    assert [reading.find_chunk(again, chunk.id) for chunk in chunks] == chunks


def test_a_chunk_that_is_not_there_is_said(workspace: Workspace, tmp_path: Path) -> None:
    path = tmp_path / "clay.md"
    path.write_text(TEXT, encoding="utf-8")
    (chunk,) = reading.read(workspace, str(path), 100)
    for unknown in (chunk.id[:-1] + "2", chunk.id[:-1] + "0", "ch-0123456789-800-1", "ch-*-800-1", "nonsense", ""):
        with pytest.raises(NotFound, match="chunk_not_found: No chunk has the id"):
            reading.find_chunk(workspace, unknown)


def test_the_same_document_under_two_names_is_read_once(workspace: Workspace, tmp_path: Path) -> None:
    for name in ("a.md", "b.md"):
        (tmp_path / name).write_text(TEXT, encoding="utf-8")
    read = reading.survey(workspace, str(tmp_path / "*.md"), 100)
    assert len(read.chunks) == 1


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "gb18030"])
def test_other_encodings_are_recognised(workspace: Workspace, tmp_path: Path, encoding: str) -> None:
    text = "陶器在窑里慢慢烧成，釉料随之熔化。这是我们在工作中学到的方法，请大家看一看。"
    (tmp_path / "a.txt").write_bytes(text.encode(encoding))
    (chunk,) = reading.read(workspace, str(tmp_path / "a.txt"), 100)
    assert chunk.text == text


def test_what_a_text_is_wrapped_in_is_left_out(workspace: Workspace, tmp_path: Path) -> None:
    written = f"---\ntitle: Clay\n---\r\n# Clay\r\n\r\n![kiln](data:image/png;base64,AAAA)\r\n{TEXT}\x00   \r\n"
    (tmp_path / "a.md").write_bytes(written.replace("---\n", "---\r\n").encode())
    (chunk,) = reading.read(workspace, str(tmp_path / "a.md"), 200)
    assert (chunk.headings, chunk.text) == (["Clay"], f"![kiln]()\n{TEXT}")


def test_hidden_files_and_other_kinds_are_passed_over(workspace: Workspace, tmp_path: Path) -> None:
    for name in (".git/readme.md", "~$manual.docx", "photo.png", "deep/er/clay.MD"):
        path = tmp_path / "folder" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(TEXT, encoding="utf-8")
    assert reading.survey(workspace, str(tmp_path / "folder"), 200).documents == ["clay.MD"]


@pytest.mark.parametrize(
    ("source", "kind", "says"),
    [
        ("https://example.org/a.pdf", InvalidInput, "source_is_address: 'https://example.org/a.pdf' is an address"),
        ("file:///etc/hosts", InvalidInput, "source_is_address"),
        ("{library}/hand.html", NotFound, "Nearest: handbook.html"),
        ("{library}/no/such.pdf", NotFound, "Its folder does not exist"),
        ("{library}/*.xml", NotFound, "no_documents"),
        ("{library}/rows.csv", InvalidInput, r"unsupported_document: .*rows\.csv is a \.csv.*prepare_dataset"),
        ("x" * 5000, InvalidInput, "invalid_source: 'x.*is no path"),
        ("\0", InvalidInput, "invalid_path"),
        (" ", InvalidInput, "invalid_source"),
    ],
)
def test_a_source_that_is_none_is_refused(
    workspace: Workspace, library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    source: str, kind: type[TunewrightError], says: str,
) -> None:  # fmt: skip
    copy = shutil.copytree(library, tmp_path / "library")
    (copy / "rows.csv").write_text("a,b\n", encoding="utf-8")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(kind, match=says):
        reading.read(workspace, source.format(library=copy))


def test_more_documents_than_can_be_read_at_once_are_refused(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "MAX_DOCUMENTS", 2)
    for number in range(3):
        (tmp_path / f"{number}.md").write_text(f"{TEXT} {number}", encoding="utf-8")
    with pytest.raises(InvalidInput, match=r"too_many_documents: .* holds 3 documents"):
        reading.read(workspace, str(tmp_path / "*.md"))


def test_reading_imports_nothing_heavy(run_python: Callable[..., str], library: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from tunewright.pipeline.workspace import Workspace; from tunewright.pipeline.documents import "
        "reading; reading.read(Workspace.open(sys.argv[1]), sys.argv[2]); print(*sys.modules)"
    )
    loaded = set(run_python(code, tmp_path / "home", library / "handbook.html").split())
    heavy = {"markitdown", "onnxruntime", "magika", "pandas", "numpy", "pyarrow", "torch", "transformers", "datasets"}
    assert not loaded & heavy
