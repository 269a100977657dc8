"""What the parity gate writes is what publishing reads: its own document, of numbers and answers made up here.

That the numbers are right is tested with the gate.
"""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from standins.ollama_server import OllamaStandIn

from tunewright.pipeline.context import JobContext
from tunewright.pipeline.errors import Conflict, TunewrightError
from tunewright.pipeline.exporting import parity
from tunewright.pipeline.exporting.parity import in_llama
from tunewright.pipeline.exporting.parity.cases import Cases
from tunewright.pipeline.exporting.parity.distance import Distance
from tunewright.pipeline.exporting.parity.in_llama import Measured
from tunewright.pipeline.exporting.runtime import Reply
from tunewright.pipeline.publishing import card, gate, ollama
from tunewright.pipeline.store import Row
from tunewright.pipeline.workspace import Workspace

Submit = Callable[..., JobContext]
CLOSE = Distance(kl=5.8e-4, top1=0.993, top1_confident=1.0, margin=0.01, loss=2.01)
BROKEN = Distance(kl=3.0, top1=0.1, top1_confident=0.1, margin=5.0, loss=9.0)
NOISE = Distance(kl=1.3e-4, top1=0.996, top1_confident=1.0, margin=0.01, loss=2.0)


def replies(cases: Cases) -> list[Reply]:
    """An answer to each conversation; every other one is cut at its length."""
    ways: list[Any] = ["stop", "length"] * len(cases.asked)
    return [
        {"text": f"Answer {number}", "finish_reason": ways[number], "tokens": [5, 6, cases.ends[0]]}
        for number in range(len(cases.asked))
    ]


@pytest.fixture
def document(
    submit: Submit, adapter: Row, export: Row, toy_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    """The gate's document of the export: its q8_0 passed, a q4_0 is broken, a q3_k_m cannot be loaded."""
    distances = {"gguf:q8_0": CLOSE, "gguf:q4_0": BROKEN, "gguf:q3_k_m": None}

    def in_transformers(context: JobContext, cases: Cases, *_: Any) -> Any:
        given = [SimpleNamespace(text=reply["text"], tokens=reply["tokens"]) for reply in replies(cases)]
        answers = SimpleNamespace(given=given, dtype="float32", margin=0.0)
        merge = SimpleNamespace(distance=NOISE, max_logit_difference=0.01)
        return SimpleNamespace(
            logprobs=None, loss=2.0, losses=[2.0], device="cpu", noise=NOISE, answers=answers, merge=merge, notes=[]
        )

    def in_llama_cpp(gguf: Path, cases: Cases, *_: Any, **__: Any) -> Measured:
        found = distances[gguf.name]
        if found is None:
            return Measured(["gguf_not_loadable: it is cut short"], 1000, {}, {}, None, [])
        return Measured([], 1000, {"equal": True}, {"equal": True}, found, replies(cases))

    monkeypatch.setattr(parity, "_reference", in_transformers)
    monkeypatch.setattr(in_llama, "measure", in_llama_cpp)
    found = parity.measure(
        submit("export"), adapter=adapter, base=toy_folder, source=toy_folder, merged=toy_folder, adapter_scale=1.0,
        ggufs={output: Path(output) for output in distances},
    )  # fmt: skip
    (Path(export["document"]["path"]) / "parity.json").write_text(json.dumps(found), encoding="utf-8")
    return found


@pytest.fixture
def gated(document: dict[str, Any], export: Row, rewrite: Callable[..., Row]) -> Row:
    (q8,) = (file for file in export["document"]["files"] if file["output"] == "gguf:q8_0")
    files = [q8, {**q8, "output": "gguf:q4_0"}, {**q8, "output": "gguf:q3_k_m"}]
    return rewrite(export, files=files, parity=parity.summary(document))


def test_every_answer_of_the_document_is_compared_on_the_server(
    ollama_server: OllamaStandIn, submit: Submit, document: dict[str, Any], gated: Row
) -> None:
    asked = [messages[-1]["content"] for messages in document["cases"]["asked"]]
    assert len(asked) == 10
    ollama_server.answers = {
        question: {"text": answer["text"], "ended": answer["ended"]}
        for question, answer in zip(asked, document["outputs"]["gguf:q8_0"]["answers"], strict=True)
    }
    result = ollama.run(submit("publish_ollama", export_id=gated["id"], model_name="tuny"))
    assert result["output"] == document["recommendation"]["output"] == "gguf:q8_0"
    assert result["checks"]["answers"] == {"compared": 20, "equal": 20, "ties": 0, "with": "gguf:q8_0"}
    ollama_server.answers[asked[9]] = {"text": "Something else"}
    with pytest.raises(TunewrightError, match="'Something else' instead of 'Answer 9'"):
        ollama.run(submit("publish_ollama", export_id=gated["id"], model_name="other"))


def test_the_gate_stops_what_the_document_says_failed_and_nothing_else(gated: Row) -> None:
    assert gate.require(gated, ["gguf:q8_0"], force=False, retry="…") == []
    for output, words in (("gguf:q4_0", "it is broken"), ("gguf:q3_k_m", "gguf_not_loadable")):
        with pytest.raises(Conflict, match=f"parity_failed: .*{output}: {words}"):
            gate.require(gated, [output], force=False, retry="…")


def test_the_card_shows_the_documents_numbers(workspace: Workspace, gated: Row) -> None:
    text = card.build(workspace, gated, "me/tuny", ["gguf:q8_0", "gguf:q4_0", "gguf:q3_k_m"])
    assert "| noise floor of bf16 | | 0.00013 | 0.996 | | | |" in text
    assert "| 0.00058 | 0.993 | 2.01 | 10 of 10 | passed |" in text
    assert "| 3 | 0.1 | 9 | 10 of 10 | **failed** |" in text
    assert "| – | – | – | – | **failed** |" in text
    assert "Against base and adapter unmerged, KL 0.00013." in text
    assert "Recommended: `gguf:q8_0`" in text and "row-marker" not in text
