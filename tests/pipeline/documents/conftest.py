"""A small library of documents, one of every format."""

from pathlib import Path

import pytest
from standins.documents import pdf, write_docx, write_epub, write_pptx

HTML = """<html><head><title>Kiln handbook</title><style>h1 {color: red}</style></head><body>
<h1>Kiln handbook</h1><p>Clay is fired at 1,260 degrees.</p>
<h2>Safety</h2><p>Wear goggles when you look into the <b>spyhole</b>.</p>
<table><tr><th>Cone</th><th>Degrees</th></tr><tr><td>6</td><td>1222</td></tr></table>
<script>alert("never read")</script></body></html>"""


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one good document of every format. Not to be written to."""
    folder = tmp_path_factory.mktemp("library")
    page = [["Bisque firing", "The first firing drives water out of the clay."], ["Cool slowly (12 hours) below 600."]]
    (folder / "firing.pdf").write_bytes(pdf(page))
    write_docx(
        folder / "manual.docx", [("Heading1", "3 Safety"), ("Heading2", "3.2 Poisoning"), ("", "Lead is toxic.")]
    )
    write_epub(
        folder / "glazes.epub", ["<h1>Celadon</h1><p>Iron in reduction.</p>", "<h1>Tenmoku</h1><p>More iron.</p>"]
    )
    write_pptx(folder / "slides.pptx")
    (folder / "handbook.html").write_text(HTML, encoding="utf-8")
    (folder / "notes.md").write_text("# Notes\n\nStoneware is fired to maturity.\n", encoding="utf-8")
    (folder / "log.txt").write_text("Fired at noon; opened two days later.\n", encoding="utf-8")
    return folder
