"""The dry run: what would be published, from which file, under which name, and what stands against it."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from standins.ollama_server import OllamaStandIn

from tunewright.pipeline.errors import Conflict, InvalidInput, NotFound
from tunewright.pipeline.publishing import ollama
from tunewright.pipeline.store import Row
from tunewright.pipeline.workspace import Workspace

Rewrite = Callable[..., Row]
OLD = {
    "digest": "sha256:old", "parameters": {}, "template": None, "system": None, "jinja": "", "architecture": "x",
    "quantize": "",
}  # fmt: skip


@pytest.fixture
def server(ollama_server: OllamaStandIn) -> OllamaStandIn:
    return ollama_server


def gguf_of(export: Row) -> Path:
    return Path(next(file["path"] for file in export["document"]["files"] if file["output"] == "gguf:q8_0"))


def test_the_dry_run_tells_what_would_be_done_and_changes_nothing(
    workspace: Workspace, server: OllamaStandIn, export: Row
) -> None:
    server.models["tuny:latest"] = OLD
    answer = ollama.prepare(workspace, export["id"], "tuny")
    assert answer["model_name"] == "tuny:latest"
    assert answer["output"] == "gguf:q8_0"
    assert answer["digest"] == f"sha256:{hashlib.sha256(gguf_of(export).read_bytes()).hexdigest()}"
    assert answer["server"] == {"url": server.url, "version": "0.33.0"}
    assert answer["name_taken"] is True
    assert any("overwrite=true" in warning for warning in answer["warnings"])
    assert server.models == {"tuny:latest": OLD}
    assert server.blobs == {}
    assert workspace.store.artifacts("publication") == []
    json.dumps(answer)


@pytest.mark.usefixtures("no_ollama")
def test_the_dry_run_works_without_a_server_and_says_so(workspace: Workspace, export: Row) -> None:
    answer = ollama.prepare(workspace, export["id"], "tuny")
    assert answer["server"] == {"url": "http://127.0.0.1:9", "version": None}
    assert answer["name_taken"] is None
    assert any("No Ollama server answers" in warning for warning in answer["warnings"])
    assert "PARAMETER num_ctx 2048" in answer["modelfile"]
    assert "password" not in json.dumps(answer)


def test_the_dry_run_warns_of_a_system_message_that_training_had(
    workspace: Workspace, server: OllamaStandIn, export: Row, dataset: Row
) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    messages = [{"role": r, "content": f"the {r}'s words"} for r in ("system", "user", "assistant")]
    parquet.write_table(pa.table({"messages": [messages]}), Path(dataset["document"]["path"]) / "eval.parquet")
    assert any("the system's words" in w for w in ollama.prepare(workspace, export["id"], "tuny")["warnings"])
    assert ollama.prepare(workspace, export["id"], "tuny", system="Be brief.")["warnings"] == []


def test_the_dry_run_warns_of_a_server_that_cannot_run_the_template(
    workspace: Workspace, server: OllamaStandIn, export: Row
) -> None:
    for file in Path(export["document"]["path"]).rglob("chat_template.jinja"):
        file.write_text("{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}", encoding="utf-8")
    assert ollama.prepare(workspace, export["id"], "tuny")["warnings"] == []
    server.version = "0.24.0"
    (warning,) = ollama.prepare(workspace, export["id"], "tuny")["warnings"]
    assert "cannot do with this model: the chat template" in warning


@pytest.mark.parametrize("name", ["", "two words", "a/b/c/d", "-x", "x:", "x:ü", "x" * 81, "../x"])
def test_a_name_that_ollama_would_refuse_is_refused_before(workspace: Workspace, export: Row, name: str) -> None:
    with pytest.raises(InvalidInput, match="invalid_model_name") as caught:
        ollama.prepare(workspace, export["id"], name)
    assert "publish_to_ollama(" in caught.value.next


@pytest.mark.usefixtures("no_ollama")
@pytest.mark.parametrize(
    ("name", "full"),
    [
        ("tuny", "tuny:latest"),
        ("Me/Tuny_1.5:q8", "Me/Tuny_1.5:q8"),
        ("host.example:5000/me/tuny", "host.example:5000/me/tuny:latest"),
        ("registry.ollama.ai/library/tuny", "tuny:latest"),
    ],
)
def test_a_good_name_is_completed_as_the_server_lists_it(
    workspace: Workspace, export: Row, name: str, full: str
) -> None:
    assert ollama.prepare(workspace, export["id"], name)["model_name"] == full


@pytest.mark.usefixtures("no_ollama")
def test_a_push_needs_an_owner_in_the_name(workspace: Workspace, export: Row) -> None:
    with pytest.raises(InvalidInput, match="push_needs_namespace"):
        ollama.prepare(workspace, export["id"], "tuny", push=True)


@pytest.mark.usefixtures("no_ollama")
def test_the_best_gguf_is_taken_and_none_is_refused_with_the_call_that_makes_one(
    workspace: Workspace, export: Row, rewrite: Rewrite
) -> None:
    q8 = next(file for file in export["document"]["files"] if file["output"] == "gguf:q8_0")
    rewrite(export, files=[{**q8, "output": "gguf:bf16"}, {**q8, "output": "gguf:f16"}])
    assert ollama.prepare(workspace, export["id"], "tuny")["output"] == "gguf:f16"
    rewrite(export, files=[{**q8, "output": "merged_16bit"}])
    with pytest.raises(NotFound, match="no_gguf") as caught:
        ollama.prepare(workspace, export["id"], "tuny")
    assert caught.value.next == 'merge_and_export(adapter_id="ad-identity-0001", outputs=["gguf:q8_0"])'


@pytest.mark.usefixtures("no_ollama")
def test_what_the_parity_recommends_is_taken_unless_another_is_named(
    workspace: Workspace, export: Row, rewrite: Rewrite
) -> None:
    q8 = next(file for file in export["document"]["files"] if file["output"] == "gguf:q8_0")
    parity = {**export["document"]["parity"], "recommendation": {"output": "gguf:q4_k_m", "why": "small enough"}}
    rewrite(export, files=[q8, {**q8, "output": "gguf:q4_k_m"}], parity=parity)
    assert ollama.prepare(workspace, export["id"], "tuny")["output"] == "gguf:q4_k_m"
    assert ollama.prepare(workspace, export["id"], "tuny", output="gguf:q8_0")["output"] == "gguf:q8_0"
    rewrite(export, files=[q8], parity=parity)
    assert ollama.prepare(workspace, export["id"], "tuny")["output"] == "gguf:q8_0"
    with pytest.raises(InvalidInput, match="unknown_output") as caught:
        ollama.prepare(workspace, export["id"], "tuny", output="q8")
    assert "gguf:q8_0" in caught.value.allowed


@pytest.mark.usefixtures("no_ollama")
def test_an_output_that_the_export_lacks_and_no_server_makes_is_refused(workspace: Workspace, export: Row) -> None:
    with pytest.raises(NotFound, match="it has no gguf:q6_k") as caught:
        ollama.prepare(workspace, export["id"], "tuny", output="gguf:q6_k")
    assert caught.value.next == 'merge_and_export(adapter_id="ad-identity-0001", outputs=["gguf:q6_k"])'
    # It has no 16-bit file to make it of.
    with pytest.raises(NotFound, match="it has no gguf:q4_k_m"):
        ollama.prepare(workspace, export["id"], "tuny", output="gguf:q4_k_m")


@pytest.mark.usefixtures("no_ollama")
def test_a_gguf_that_was_changed_after_the_export_is_refused(workspace: Workspace, export: Row) -> None:
    with gguf_of(export).open("ab") as file:
        file.write(b"more")
    with pytest.raises(Conflict, match="file_changed"):
        ollama.prepare(workspace, export["id"], "tuny")
