"""What is compared: the adapter's own rows within a budget, and every way to ask that training can answer for."""

import unicodedata
from pathlib import Path
from typing import Any

import pytest

from tunewright.pipeline import files
from tunewright.pipeline.chat_template import ChatTemplate
from tunewright.pipeline.data import splits
from tunewright.pipeline.data.rows import Record
from tunewright.pipeline.exporting.parity import cases, texts
from tunewright.pipeline.exporting.parity.cases import Cases
from tunewright.pipeline.workspace import Workspace


def chat(*turns: str, system: str = "") -> Record:
    """Turns of the user and the assistant, in turn."""
    messages = [{"role": "system", "content": system}] if system else []
    messages += [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)]
    return Record(kind="sft", messages=messages)


def collect(
    workspace: Workspace, tiny: Any, base: Path, folder: Path, rows: dict[str, list[Record]], **document: Any
) -> Cases:
    folder.mkdir()
    for split, records in rows.items():
        splits.write(splits.split_file(folder, split), records[0].kind, records)
    workspace.store.add_artifact("ds-x-0000", "dataset", "x", {"path": str(folder)}, parents=[])
    row = tiny.add_adapter(workspace, base, base, dataset_id="ds-x-0000", **document)
    return cases.collect(workspace, row, base, base)


def questions(found: Cases) -> list[str]:
    return [messages[-1]["content"] for messages in found.asked]


def test_the_corpus_holds_only_composed_characters() -> None:
    assert all(unicodedata.is_normalized("NFC", text) for text in texts.CORPUS)


def test_every_plain_token_of_the_vocabulary_is_asked_for(base: Path) -> None:
    template = ChatTemplate(base)
    asked = [line for text in texts.vocabulary(template) for line in text.split("\n")]
    single = {line for line in asked if len(template.ids(line)) == 1}
    vocabulary = template.tokenizer.get_vocab(with_added_tokens=False)
    assert {token.replace("Ġ", " ") for token in vocabulary if token.strip("Ġ").isascii() and token.isprintable()} <= (
        single | {"<|endoftext|>", "<|im_start|>", "<|im_end|>"}
    )


def test_evaluation_rows_are_scored_and_training_rows_fill_up_the_questions(
    workspace: Workspace, tiny: Any, base: Path, tmp_path: Path
) -> None:
    rows = {
        "train": [chat("trained", "yes"), chat("asked", "again")],
        "eval": [chat("asked", "answer", system="brief")],
    }
    found = collect(workspace, tiny, base, tmp_path / "data", rows)
    assert (found.split, len(found.scored), len(found.asked)) == ("eval", 1, cases.ASKED)
    assert questions(found)[:3] == ["asked", "trained", "asked"] and found.asked[0][0]["content"] == "brief"
    assert questions(found)[3] == texts.QUESTIONS[0][0]


def test_only_the_answer_is_scored_with_the_token_that_ends_it(
    workspace: Workspace, tiny: Any, base: Path, tmp_path: Path
) -> None:
    found = collect(workspace, tiny, base, tmp_path / "data", {"eval": [chat("asked", "4.5 m", "more", "no")]})
    assert found.template.tokenizer.decode(found.targets, skip_special_tokens=False) == "4.5 m<|im_end|>"


def test_the_budget_holds_and_short_rows_come_before_long_ones(
    workspace: Workspace, tiny: Any, base: Path, tmp_path: Path
) -> None:
    rows = [chat(f"{'long ' * 900}", "yes")] + [chat(f"question {i}", "word " * 100) for i in range(20)]
    found = collect(workspace, tiny, base, tmp_path / "data", {"eval": rows})
    assert questions(found) == [f"question {i}" for i in range(10)]
    assert sum(len(one.ids) for one in found.scored) <= cases.SCORED_TOKENS
    assert len(found.targets) <= cases.SCORED_POSITIONS and len(found.scored) == 10


def test_a_prompt_that_is_too_long_even_alone_keeps_its_end(
    workspace: Workspace, tiny: Any, base: Path, tmp_path: Path
) -> None:
    found = collect(workspace, tiny, base, tmp_path / "data", {"eval": [chat("9 " * 3000, "13 dogs")]})
    (one,) = found.scored
    assert len(one.ids) == cases.SCORED_TOKENS
    assert found.template.tokenizer.decode(found.targets) == "13 dogs"


def test_raw_text_is_scored_as_a_document_and_built_in_questions_are_asked(
    workspace: Workspace, tiny: Any, base: Path, tmp_path: Path
) -> None:
    rows = {"train": [Record(kind="text", text="The quick brown fox.")]}
    found = collect(workspace, tiny, base, tmp_path / "data", rows)
    assert found.scored[0].ids == found.template.document_ids("The quick brown fox.")
    assert found.scored[0].positions == list(range(1, len(found.scored[0].ids)))
    assert questions(found) == [question for question, _ in texts.QUESTIONS]


def test_without_a_dataset_built_in_answers_are_scored(workspace: Workspace, tiny: Any, base: Path) -> None:
    found = cases.collect(workspace, tiny.add_adapter(workspace, base, base), base, base)
    assert (found.dataset_id, found.split, len(found.scored)) == (None, None, len(texts.QUESTIONS))


@pytest.mark.parametrize(("trained", "expected"), [(False, [False] * 3), (True, [True, True, False])])
def test_what_is_expected_where_thinking_is_left_open_turned_on_and_turned_off(
    workspace: Workspace, tiny: Any, base: Path, trained: bool, expected: list[bool]
) -> None:
    row = tiny.add_adapter(workspace, base, base, enable_thinking=trained)
    found = cases.collect(workspace, row, base, base)
    hello = [prompt for prompt in found.prompts if prompt.messages == texts.CONVERSATIONS[0] and not prompt.tools]
    assert [prompt.enable_thinking for prompt in hello[-3:]] == [None, True, False]
    assert ["<think>" not in prompt.text for prompt in hello[-3:]] == expected


def test_tools_are_asked_for_where_the_template_knows_them(
    workspace: Workspace, tiny: Any, base: Path, tmp_path: Path
) -> None:
    row = chat("weather?", "3 degrees")
    row.tools = [{"type": "function", "function": {"name": "rows_own", "description": "", "parameters": {}}}]
    found = collect(workspace, tiny, base, tmp_path / "data", {"eval": [row]})
    with_tools = [prompt.text for prompt in found.prompts if prompt.tools]
    assert any("<tool_response>" in text for text in with_tools) and any("rows_own" in text for text in with_tools)
    plain = tmp_path / "plain"
    plain.mkdir()
    tiny.tokenizer(plain)
    template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    (plain / "chat_template.jinja").write_text(template, encoding="utf-8")
    other = cases.collect(workspace, tiny.add_adapter(workspace, plain, base), plain, base)
    assert other.prompts and not any(prompt.tools for prompt in other.prompts)


def test_a_conversation_that_the_template_refuses_is_left_out(
    workspace: Workspace, tiny: Any, base: Path, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    tiny.tokenizer(source)
    file = source / "chat_template.jinja"
    refusal = "{%- if messages[0].role == 'system' %}{{ raise_exception('no system') }}{%- endif %}"
    file.write_text(refusal + file.read_text(encoding="utf-8"), encoding="utf-8")
    found = cases.collect(workspace, tiny.add_adapter(workspace, source, base), source, base)
    assert found.prompts and all(prompt.messages[0]["role"] != "system" for prompt in found.prompts)


def test_ends_are_the_tokenizers_the_generation_configs_and_what_training_teaches(
    workspace: Workspace, tiny: Any, base: Path, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    tiny.tokenizer(source)
    config = files.read_json(source / "tokenizer_config.json")
    files.write_json(source / "tokenizer_config.json", config | {"eos_token": {"content": "<|endoftext|>"}})
    files.write_json(source / "generation_config.json", {"eos_token_id": 7})
    found = cases.collect(workspace, tiny.add_adapter(workspace, source, base), source, source)
    assert (found.ends, found.eos) == ([0, 2, 7], "<|endoftext|>")
