"""read_documents and add_examples as an agent uses them: from a document to rows, chunk by chunk."""

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from mcp import Client
from mcp.types import Tool
from standins.documents import pdf

from tunewright.pipeline.tokens import estimate_tokens
from tunewright.pipeline.workspace import Workspace

pytestmark = pytest.mark.anyio

Call = Callable[..., Awaitable[dict[str, Any]]]
Refused = Callable[..., Awaitable[str]]
Write = Callable[[str, str], Path]

SENTENCES = "Cobalt gives blue in every glaze. Iron gives green in reduction and amber in oxidation. "
MAX_RESULT_TOKENS = 4000
# Both tools in tools/list, which has 30 KB for about 20 tools.
MAX_LISTED_BYTES = 2450


def book(sections: int, repeat: int = 12) -> str:
    return "# Glazes\n\n" + "".join(f"## Colour {number}\n\n{SENTENCES * repeat}\n\n" for number in range(sections))


def steps(answer: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {step["tool"]: step["arguments"] for step in answer["next_steps"]}


async def test_a_document_is_shown_page_by_page(call: Call, write: Write) -> None:
    answer = await call("read_documents", source=str(write("glazes.md", book(30))), chunk_tokens=300)
    assert (answer["documents"], answer["total_chunks"], answer["pages"]) == (1, 30, 4)
    seen = [answer]
    while "read_documents" in steps(seen[-1]):
        seen.append(await call("read_documents", **steps(seen[-1])["read_documents"]))
    assert len(seen) == 4
    shown = [chunk for page in seen for chunk in page["chunks"]]
    assert [chunk["headings"] for chunk in shown] == [["Glazes", f"Colour {number}"] for number in range(30)]
    for page in seen:
        assert estimate_tokens(json.dumps(page, ensure_ascii=False)) < MAX_RESULT_TOKENS


@pytest.mark.parametrize("chunk_tokens", [100, 2500])
async def test_no_page_is_too_large_for_a_host(call: Call, write: Write, chunk_tokens: int) -> None:
    source = write("glazes.md", book(20, 1) + book(3, 150) + "陶器在窑里慢慢烧成，釉料随之熔化。" * 900)
    answer = await call("read_documents", source=str(source), chunk_tokens=chunk_tokens)
    for page in range(1, answer["pages"] + 1):
        shown = await call("read_documents", source=str(source), chunk_tokens=chunk_tokens, page=page)
        assert estimate_tokens(json.dumps(shown, ensure_ascii=False)) < MAX_RESULT_TOKENS


async def test_a_pdf_is_read_and_one_that_cannot_be_is_named(call: Call, tmp_path: Path) -> None:
    (tmp_path / "good.pdf").write_bytes(pdf([["Clay is plastic when wet."]]))
    (tmp_path / "scan.pdf").write_bytes(pdf([[]]))
    answer = await call("read_documents", source=str(tmp_path / "*.pdf"))
    assert [chunk["text"] for chunk in answer["chunks"]] == ["Clay is plastic when wet."]
    (unread,) = answer["unread"]
    assert unread.startswith("document_without_text: scan.pdf has 1 pages without text")


async def test_a_page_that_is_not_there_and_an_address_are_refused(refused: Refused, write: Write) -> None:
    source = str(write("glazes.md", book(1)))
    assert "no_such_page: page=3" in (text := await refused("read_documents", source=source, page=3))
    assert "There are 1 pages." in text and "page=1" in text
    assert "source_is_address" in await refused("read_documents", source="https://example.org/a.pdf")
    assert "Allowed: integer from 100 to 2500" in await refused("read_documents", source=source, chunk_tokens=20)


async def test_from_a_document_to_rows_by_the_next_steps_alone(call: Call, write: Write) -> None:
    shown = await call("read_documents", source=str(write("glazes.md", book(3, 40))), chunk_tokens=900)
    send = steps(shown)["add_examples"]
    assert (send["dataset"], send["source_chunk"]) == ("glazes", shown["chunks"][0]["id"])
    # As it stands, the form is refused: nobody trains on it by mistake.
    unfilled = await call("add_examples", **send)
    assert (unfilled["accepted"], unfilled["dataset_id"], unfilled["refused"][0]["reason"]) == (0, None, "empty")
    send["examples"] = [{"prompt": "What does cobalt give?", "response": "Blue, in every glaze."}]
    added = await call("add_examples", **send)
    assert (added["accepted"], added["refused"], added["train_rows"], added["eval_rows"]) == (1, [], 1, 0)
    following = await call("read_documents", **steps(added)["read_documents"])
    assert following["chunks"][0]["id"] == shown["chunks"][1]["id"]
    send |= {"examples": [{"question": "And iron?", "answer": "Green."}], "source_chunk": following["chunks"][0]["id"]}
    again = await call("add_examples", **send)
    assert again["dataset_id"] == added["dataset_id"]
    rows = await call("inspect_dataset", **steps(again)["inspect_dataset"])
    assert [row["messages"][0]["content"] for row in rows["rows"]] == ["What does cobalt give?", "And iron?"]
    last = await call(
        "add_examples", dataset="glazes", examples=send["examples"], source_chunk=shown["chunks"][-1]["id"]
    )
    assert "read_documents" not in steps(last)


async def test_refused_examples_come_back_with_their_reasons(call: Call) -> None:
    good = {"prompt": "What does cobalt give?", "response": "Blue, in every glaze."}
    bad = [good, {"prompt": "Who is {{name}}?", "response": "A potter."}, {"colour": "blue"}]
    answer = await call("add_examples", dataset="glazes", examples=[good, *bad])
    assert answer["accepted"] == 1
    assert [(one["index"], one["reason"]) for one in answer["refused"]] == [
        (1, "duplicate"), (2, "placeholders"), (3, "unknown_layout"),
    ]  # fmt: skip


async def test_even_a_hundred_refusals_are_a_small_result(call: Call) -> None:
    bad = [{f"colour {letter} {number}": "blue" * 50 for letter in "abcdefgh"} for number in range(100)]
    answer = await call("add_examples", dataset="glazes", examples=bad)
    assert [one["index"] for one in answer["refused"]] == list(range(100))
    assert "colour a 0" in answer["refused"][0]["why"]
    assert estimate_tokens(json.dumps(answer)) < MAX_RESULT_TOKENS


async def test_training_is_offered_once_there_are_enough_rows(call: Call) -> None:
    def examples(begin: int) -> list[dict[str, str]]:
        return [{"prompt": f"Cone {n}?", "response": f"It bends at {n * 7} degrees."} for n in range(begin, begin + 60)]

    first = await call("add_examples", dataset="cones", examples=examples(0))
    assert "plan_finetune" not in steps(first)
    second = await call("add_examples", dataset=first["dataset_id"], examples=examples(60))
    assert second["train_rows"] + second["eval_rows"] == 120
    assert steps(second)["plan_finetune"]["dataset_id"] == first["dataset_id"]


async def test_what_cannot_be_added_is_said(refused: Refused) -> None:
    example = {"prompt": "Q?", "response": "A."}
    assert "at least 1 item" in await refused("add_examples", dataset="a", examples=[])
    assert "at most 100 items" in await refused("add_examples", dataset="a", examples=[example] * 101)
    assert "artifact_not_found" in await refused("add_examples", dataset="ds-nothing-0000", examples=[example])
    text = await refused("add_examples", dataset="a", examples=[example], source_chunk="ch-0123456789-800-1")
    assert "chunk_not_found" in text and "Next: read_documents(" in text


async def test_a_dataset_in_use_is_left_alone(call: Call, refused: Refused, workspace: Workspace) -> None:
    made = await call("add_examples", dataset="glazes", examples=[{"prompt": "Q?", "response": "A."}])
    workspace.store.add_artifact("ad-x-0000", "adapter", "x", {}, parents=[made["dataset_id"]])
    text = await refused("add_examples", dataset="glazes", examples=[{"prompt": "P?", "response": "B."}])
    assert text.startswith("dataset_in_use: ") and 'Next: add_examples(dataset="glazes-2"' in text


async def test_both_tools_are_told_briefly(tools: dict[str, Tool], client: Client) -> None:
    listed = [
        tools[name].model_dump(mode="json", by_alias=True, exclude_none=True)
        for name in ("read_documents", "add_examples")
    ]
    assert len(json.dumps(listed, separators=(",", ":"))) < MAX_LISTED_BYTES
    assert tools["read_documents"].annotations is not None and tools["read_documents"].annotations.read_only_hint
