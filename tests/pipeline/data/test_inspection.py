"""What an agent sees of a dataset is what the trainer will see."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tunewright.pipeline import chat_template
from tunewright.pipeline.data import splits
from tunewright.pipeline.data.inspection import inspect
from tunewright.pipeline.data.prepare import prepare
from tunewright.pipeline.errors import TunewrightError
from tunewright.pipeline.tokens import estimate_tokens
from tunewright.pipeline.workspace import Workspace

Write = Callable[[str, Any], Path]
Alpaca = Callable[[int], list[dict[str, str]]]


def test_rows_are_shown_from_the_offset_on_across_row_groups(
    workspace: Workspace, write: Write, alpaca: Alpaca
) -> None:
    dataset = prepare(workspace, write("a.json", alpaca(4500)))
    train = [record.messages for record in splits.read(Path(dataset["document"]["path"]) / "train.parquet")]
    for offset in (0, 1895, 3790, len(train) - 2):
        shown = inspect(workspace, dataset["id"], rows=20, offset=offset)
        assert [row["messages"] for row in shown["rows"]] == train[offset : offset + 20]
        assert shown["rows"][0]["row"] == offset
        assert shown["rows_in_split"] == len(train)


def test_the_longest_texts_are_shortened_and_say_so_until_a_page_can_be_read(
    workspace: Workspace, write: Write
) -> None:
    answer = "b" * 60_000 + "end"
    dataset = prepare(workspace, write("p.json", [{"prompt": "a" * 2000, "response": answer}]))
    shown = inspect(workspace, dataset["id"])
    prompt, cut = (message["content"] for message in shown["rows"][0]["messages"])
    assert prompt == "a" * 2000
    assert cut.startswith("bbb") and cut.endswith("end")
    kept, said = re.subn(r" … \[[\d,]+ characters left out\] … ", "", cut)
    assert said == 1 and f"[{len(answer) - len(kept):,} characters left out]" in cut
    assert 2_900 < estimate_tokens(json.dumps(shown)) < 3_200


@pytest.mark.parametrize("text", ["word ", "词汇"])
def test_a_page_of_long_rows_stays_small_unless_many_are_asked_for(
    workspace: Workspace, write: Write, text: str
) -> None:
    turns = [{"role": role, "content": f"{n} " + text * 300} for n in range(8) for role in ("user", "assistant")]
    rows = [{"messages": [{**turn, "content": f"{i} {turn['content']}"} for turn in turns]} for i in range(30)]
    dataset = prepare(workspace, write("m.jsonl", rows), cleaning={"near_duplicate": "ignore"})
    for view in ("conversation", "rendered", "mask"):
        pages = [inspect(workspace, dataset["id"], rows=rows, view=view, model="toy") for rows in (3, 20)]
        few, many = (estimate_tokens(json.dumps(page, ensure_ascii=False)) for page in pages)
        assert few < 4_000 < many < 30_000, view


def test_rendered_shows_the_text_of_the_models_template(workspace: Workspace, write: Write, alpaca: Alpaca) -> None:
    dataset = prepare(workspace, write("a.json", alpaca(20)))
    shown = inspect(workspace, dataset["id"], view="rendered", model="toy", split="eval")["rows"]
    rows = [record.messages for record in splits.read(Path(dataset["document"]["path"]) / "eval.parquet")]
    template = chat_template.load(workspace, "toy")
    assert [row["text"] for row in shown] == [template.render(messages) for messages in rows]
    assert [row["tokens"] for row in shown] == [len(template.encode(messages)[0]) for messages in rows]


def test_a_single_row_is_shown_token_by_token_and_what_training_cuts_is_marked(
    workspace: Workspace, write: Write
) -> None:
    rows = [{"prompt": "Where is the cat?", "response": "On the roof of the house."}, {"prompt": "a", "response": "b"}]
    dataset = prepare(workspace, write("p.jsonl", rows))
    (row,) = inspect(workspace, dataset["id"], view="mask", model="toy", rows=1, max_seq_length=20)["rows"]
    assert sum(len(segment["pieces"]) for segment in row["segments"]) == row["tokens"] > 20
    assert all("".join(segment["pieces"]) == segment["text"] for segment in row["segments"])
    assert row["segments"][-1].get("cut") is True and not row["segments"][-1]["trained"]
    assert sum(len(segment["pieces"]) for segment in row["segments"] if not segment.get("cut")) == 20
    both = inspect(workspace, dataset["id"], view="mask", model="toy", rows=2)["rows"]
    assert not any("pieces" in segment for row in both for segment in row["segments"])


def test_mask_shows_that_answers_and_their_ends_alone_are_trained(workspace: Workspace, write: Write) -> None:
    turns = [
        {"role": "system", "content": "Be kind."}, {"role": "user", "content": "Grüß dich 🙂"},
        {"role": "assistant", "content": "你好 🙂"}, {"role": "user", "content": "Bye"},
        {"role": "assistant", "content": "Tschüß"},
    ]  # fmt: skip
    dataset = prepare(workspace, write("c.jsonl", [{"messages": turns}]))
    row = inspect(workspace, dataset["id"], view="mask", model="toy")["rows"][0]
    assert "".join(part["text"] for part in row["segments"]) == chat_template.load(workspace, "toy").render(turns)
    assert [part["text"] for part in row["segments"] if part["trained"]] == ["你好 🙂<|im_end|>", "Tschüß<|im_end|>"]
    assert 0 < row["trained_tokens"] < row["tokens"]


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        ({"offset": 5}, "offset_out_of_range", "has 5 rows"),
        ({"offset": -1}, "offset_out_of_range", "0 to 4"),
        ({"split": "eval"}, "offset_out_of_range", "No row was held out"),
        ({"view": "mask"}, "model_needed", "model="),
        ({"view": "rendered"}, "model_needed", "model="),
        ({"view": "tokens"}, "invalid_view", "rendered"),
        ({"split": "test"}, "invalid_view", "eval"),
    ],
)
def test_a_look_that_is_impossible_says_what_is_possible(
    workspace: Workspace, write: Write, alpaca: Alpaca, arguments: dict[str, Any], code: str, word: str
) -> None:
    dataset = prepare(workspace, write("a.json", alpaca(5)))
    with pytest.raises(TunewrightError, match=word) as raised:
        inspect(workspace, dataset["id"], **arguments)
    assert raised.value.code == code


def test_a_dataset_whose_files_are_gone_names_its_source(workspace: Workspace, write: Write, alpaca: Alpaca) -> None:
    file = write("a.json", alpaca(5))
    dataset = prepare(workspace, file)
    shutil.rmtree(dataset["document"]["path"])
    with pytest.raises(TunewrightError, match="prepare_dataset") as raised:
        inspect(workspace, dataset["id"])
    assert raised.value.code == "dataset_files_missing" and str(file) in str(raised.value)
