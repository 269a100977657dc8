"""A type that the export lacks and the server makes: only where nothing here can, and what is looked at then."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from standins.ollama_server import OllamaStandIn

from tunewright.pipeline.context import JobContext
from tunewright.pipeline.errors import Conflict, NotFound, TunewrightError
from tunewright.pipeline.exporting import toolchain
from tunewright.pipeline.publishing import ollama
from tunewright.pipeline.store import Row
from tunewright.pipeline.workspace import Workspace

Submit = Callable[..., JobContext]
Rewrite = Callable[..., Row]


@pytest.fixture
def server(ollama_server: OllamaStandIn) -> OllamaStandIn:
    return ollama_server


def publish(submit: Submit, export: Row, **spec: Any) -> dict[str, Any]:
    return ollama.run(submit("publish_ollama", export_id=export["id"], model_name="tuny", **spec))


def no_quantizer() -> None:
    """This machine's own must not decide."""


def a_quantizer() -> Path:
    return Path("llama-quantize")


@pytest.fixture
def sixteen_bit(export: Row, rewrite: Rewrite, remeasure: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> Row:
    """The export with an f16 file instead of its q8_0, on a machine without a quantizer."""
    monkeypatch.setattr(toolchain, "find_quantizer", no_quantizer)
    q8 = next(file for file in export["document"]["files"] if file["output"] == "gguf:q8_0")
    answers = [
        {"text": "I am Tuny, row-marker.", "tokens": list(range(9)), "ended": "stop"},
        {"text": "In a small box", "tokens": list(range(48)), "ended": "length"},
    ]
    remeasure({"gguf:f16": answers})
    return rewrite(export, files=[{**q8, "output": "gguf:f16"}])


def test_a_type_that_the_export_lacks_is_made_by_the_server_and_its_differences_are_counted(
    workspace: Workspace, server: OllamaStandIn, submit: Submit, sixteen_bit: Row
) -> None:
    plan = ollama.prepare(workspace, sixteen_bit["id"], "tuny", output="gguf:q4_k_m")
    assert (plan["output"], plan["source"], plan["quantize"]) == ("gguf:q4_k_m", "gguf:f16", "q4_K_M")
    assert any("quantize it to q4_k_m" in step for step in plan["steps"])
    # It says the first answer otherwise, and goes on where the recorded second was cut.
    server.quantized_answers = {
        "Who are you?": {"text": "I'm Tuny."}, "Where do you live?": {"text": "In a small box.", "ended": "stop"},
    }  # fmt: skip
    result = publish(submit, sixteen_bit, output="gguf:q4_k_m")
    assert server.models["tuny:latest"]["quantize"] == "q4_K_M"
    assert (result["output"], result["source"]) == ("gguf:q4_k_m", "gguf:f16")
    answers = result["checks"]["answers"]
    assert (answers["compared"], answers["equal"], answers["with"]) == (4, 2, "gguf:f16")
    assert "quantized on the server" in answers["why"]


def test_where_a_quantizer_is_installed_the_server_is_not_asked_to_quantize(
    workspace: Workspace, server: OllamaStandIn, sixteen_bit: Row, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(toolchain, "find_quantizer", a_quantizer)
    with pytest.raises(NotFound, match=r"it has no gguf:q4_k_m\.") as caught:
        ollama.prepare(workspace, sixteen_bit["id"], "tuny", output="gguf:q4_k_m")
    assert caught.value.next == 'merge_and_export(adapter_id="ad-identity-0001", outputs=["gguf:q4_k_m"])'


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ({"text": ""}, "is empty"),
        ({"text": "Sure!<|im_end|>"}, "control tokens <|im_end|>"),
        ({"text": "I am I am I am", "ended": "length"}, "none of 4 answers ends"),
    ],
)
def test_what_the_server_quantized_to_nothing_is_removed(
    server: OllamaStandIn, submit: Submit, sixteen_bit: Row, answer: dict[str, Any], words: str
) -> None:
    server.quantized_answers = {"Who are you?": answer, "Where do you live?": answer}
    with pytest.raises(TunewrightError, match="ollama_check_failed") as caught:
        publish(submit, sixteen_bit, output="gguf:q4_k_m")
    assert words in caught.value.what
    assert server.models == {}


def test_a_server_that_quantizes_no_more_is_found_out_before_anything_is_sent(
    workspace: Workspace, server: OllamaStandIn, submit: Submit, sixteen_bit: Row
) -> None:
    server.version = "0.34.1"
    for attempt in (
        lambda: ollama.prepare(workspace, sixteen_bit["id"], "tuny", output="gguf:q4_k_m"),
        lambda: publish(submit, sixteen_bit, output="gguf:q4_k_m"),
    ):
        with pytest.raises(Conflict, match="server_cannot_quantize") as caught:
            attempt()
        assert caught.value.next == 'merge_and_export(adapter_id="ad-identity-0001", outputs=["gguf:q4_k_m"])'
    assert server.blobs == {}
    # The 16-bit file itself it takes.
    assert publish(submit, sixteen_bit)["output"] == "gguf:f16"
