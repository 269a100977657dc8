"""Of a conversation with branches the line is read that a reader would follow."""

import json
from pathlib import Path
from typing import Any

import pytest

from tunewright.pipeline.data import layouts, splits, trees
from tunewright.pipeline.data.prepare import prepare
from tunewright.pipeline.workspace import Workspace

Node = dict[str, Any]


def node(parent: str | None, children: list[Any], role: str = "", *parts: Any, kind: str = "text", **more: Any) -> Node:
    message = {"author": {"role": role}, "content": {"content_type": kind, "parts": list(parts)}, **more}
    return {"message": message if role else None, "parent": parent, "children": children}


def export(**nodes: Node) -> Node:
    """A conversation of ChatGPT's export, whose root holds no message and whose system message is blank."""
    top = {"root": node(None, ["sys"]), "sys": node("root", ["a"], "system", "")}
    return {"title": "Soup", "current_node": list(nodes)[-1], "mapping": {**top, **nodes}}


def reply(role: str, text: str, *replies: Node, **more: Any) -> Node:
    return {"role": role, "text": text, "replies": list(replies), **more}


ASKED = node("sys", ["b", "c"], "user", "Why is soup hot?")
OLD = node("a", [], "assistant", "Because.")
NEW = node("a", ["d"], "assistant", "It was boiled.", recipient="all")
THANKS = node("c", ["e"], "user", "Thanks!")
HIDDEN = {"is_visually_hidden_from_conversation": True}
PICTURE = {"content_type": "image_asset_pointer", "asset_pointer": "file-service://x"}
VOICE = {"content_type": "audio_transcription", "text": "Why is soup hot?"}

LINES: dict[str, tuple[Node, list[Any]]] = {
    "an answer asked for anew": (
        export(a=ASKED, b=OLD, c=NEW), [("user", "Why is soup hot?"), ("assistant", "It was boiled.")],
    ),
    "nodes in another order": (
        export(c=NEW, b=OLD, a=ASKED), [("user", "Why is soup hot?"), ("assistant", "It was boiled.")],
    ),
    "a search": (
        export(
            a=ASKED, b=OLD, c=NEW, d=THANKS, e=node("d", ["f"], "assistant", "search(…)", recipient="web"),
            f=node("e", ["g"], "tool", "1 hit"), g=node("f", [], "assistant", "A hit says so."),
        ),
        [("user", "Why is soup hot?"), ("assistant", "It was boiled."), ("user", "Thanks!")],
    ),
    "thoughts, instructions, hidden and empty words": (
        export(
            a=node("sys", ["b"], "user", "I am a cook.", kind="user_editable_context"),
            b=node("a", ["c"], "user", "Secretly.", metadata=HIDDEN), c=node("b", ["d"], "assistant", ""),
            d=node("c", ["e"], "user", VOICE, kind="multimodal_text"),
            e=node("d", ["f"], "assistant", "Hm.", kind="thoughts"), f=node("e", [], "assistant", "It was boiled."),
        ),
        [("user", "Why is soup hot?"), ("assistant", "It was boiled.")],
    ),
    "a circle": (export(a=node("sys", ["sys"], "user", "Hi")), [("user", "Hi")]),
    "children that are none": (export(a=node("sys", [["x"]], "user", "Hi")), [("user", "Hi")]),
    "nothing but a root": ({"mapping": {"root": node(None, [])}}, []),
    "the best ranked replies": (
        {"mapping": reply(
            "prompter", "Why?", reply("assistant", "No idea.", rank=1), reply("assistant", "Boiled.", rank=0),
            reply("assistant", "Buy soup!", deleted=True, rank=-1),
        )},
        [("prompter", "Why?"), ("assistant", "Boiled.")],
    ),
    "replies that nobody ranked": (
        {"mapping": reply("prompter", "Why?", reply("assistant", "First."), reply("assistant", "Second.", rank=None))},
        [("prompter", "Why?"), ("assistant", "First.")],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", LINES)
def test_the_line_is_the_one_that_was_gone_on_with_or_ranked_best(case: str) -> None:
    row, expected = LINES[case]
    found = trees.line(row["mapping"])
    assert found is not None and [(turn["role"], turn["content"]) for turn in found.turns] == expected
    assert bool(found.cut) == (case == "a search")


@pytest.mark.parametrize("value", [{}, {"a": 1}, {"role": "user", "text": "Hi"}, {"a": {"message": {}}}, {"a": []}])
def test_what_is_no_tree_has_no_line(value: Node) -> None:
    assert trees.line(value) is None


def test_chatgpts_export_is_prepared_as_it_comes(workspace: Workspace, tmp_path: Path) -> None:
    picture = node("sys", ["b"], "user", "What is this?", PICTURE, kind="multimodal_text")
    told = [
        export(a=node("sys", ["b"], "user", f"What is the price of soup {number}?"),
               b=node("a", ["c"], "assistant", f"Soup {number} costs {number} crowns."),
               c=node("b", [], "user", "Thanks, that is all for now."))
        for number in range(1, 21)
    ]  # fmt: skip
    source = tmp_path / "conversations.json"
    source.write_text(json.dumps([*told, export(a=picture, b=node("a", [], "assistant", "Soup."))]), encoding="utf-8")
    document = prepare(workspace, str(source), eval_fraction=0)["document"]
    assert next(splits.read(Path(document["path"]) / "train.parquet")).messages == [
        {"role": "user", "content": "What is the price of soup 1?"},
        {"role": "assistant", "content": "Soup 1 costs 1 crowns."},
    ]
    assert {reason: entry["count"] for reason, entry in document["dropped"].items()} == {"malformed": 1}
    assert document["dropped"]["malformed"]["examples"][0]["why"].startswith(
        "a picture or another part that is no text"
    )


def test_openassistants_trees_are_recognised() -> None:
    row = {
        "message_tree_id": "x",
        "tree_state": "ready",
        "prompt": reply("prompter", "Why?", reply("assistant", "So.")),
    }
    layout = layouts.find([row], "trees.jsonl")
    assert [(m["role"], m["content"]) for m in layouts.to_record(layout, row).messages] == [
        ("user", "Why?"), ("assistant", "So."),
    ]  # fmt: skip
