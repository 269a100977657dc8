"""What a GGUF is compared on."""

import unicodedata
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tunewright.pipeline.chat_template import ChatTemplate
from tunewright.pipeline.errors import TunewrightError
from tunewright.pipeline.exporting import verify
from tunewright.pipeline.workspace import Workspace


def test_the_corpus_holds_only_composed_characters() -> None:
    assert all(unicodedata.is_normalized("NFC", text) for text in verify.CORPUS)


def test_the_question_is_the_first_of_the_evaluation_rows(workspace: Workspace, tiny: Any, tmp_path: Path) -> None:
    folder = tmp_path / "dataset"
    folder.mkdir()
    rows = {
        "train": [[{"role": "user", "content": "trained"}, {"role": "assistant", "content": "yes"}]],
        "eval": [
            [
                {"role": "system", "content": "be brief"},
                {"role": "user", "content": "asked"},
                {"role": "assistant", "content": "answer"},
            ]
        ],
    }
    for split, messages in rows.items():
        pq.write_table(pa.table({"messages": messages}), folder / f"{split}.parquet")
    workspace.store.add_artifact("ds-x-0000", "dataset", "x", {"path": str(folder)}, parents=[])
    row = tiny.add_adapter(workspace, tmp_path, tmp_path, dataset_id="ds-x-0000")
    assert [message["content"] for message in verify.question_for(workspace, row)] == ["be brief", "asked"]
    (folder / "eval.parquet").unlink()
    assert [message["content"] for message in verify.question_for(workspace, row)] == ["trained"]


def test_without_its_dataset_a_greeting_is_asked(workspace: Workspace, tiny: Any, tmp_path: Path) -> None:
    row = tiny.add_adapter(workspace, tmp_path, tmp_path)
    assert verify.question_for(workspace, row) == [{"role": "user", "content": "Hello"}]


def test_another_template_is_found_with_its_first_difference(exported: Any, tiny: Any, tmp_path: Path) -> None:
    tiny.tokenizer(tmp_path)
    file = tmp_path / "chat_template.jinja"
    file.write_text(file.read_text(encoding="utf-8").replace("assistant\\n", "assistant \\n"), encoding="utf-8")
    with pytest.raises(TunewrightError, match="where training made") as caught:
        verify.check(exported.path("gguf:q8_0"), ChatTemplate(tmp_path), verify.CONVERSATIONS[0], log=tmp_path / "log")
    assert caught.value.code == "parity_failed"


def test_a_bos_that_training_did_not_have_is_found(exported: Any, tiny: Any, tmp_path: Path) -> None:
    tiny.tokenizer(tmp_path)
    file = tmp_path / "chat_template.jinja"
    file.write_text("<|endoftext|>" + file.read_text(encoding="utf-8"), encoding="utf-8")
    with pytest.raises(TunewrightError, match=r"the prompt '<.endoftext.>.*tokens instead of") as caught:
        verify.check(exported.path("gguf:q8_0"), ChatTemplate(tmp_path), verify.CONVERSATIONS[0], log=tmp_path / "log")
    assert caught.value.code == "parity_failed"


def test_thinking_the_other_way_round_is_found(exported: Any, adapter: Path, tmp_path: Path) -> None:
    template = ChatTemplate(adapter, enable_thinking=True)
    with pytest.raises(TunewrightError, match="think") as caught:
        verify.check(exported.path("gguf:q8_0"), template, verify.CONVERSATIONS[0], log=tmp_path / "log")
    assert caught.value.code == "parity_failed"


def test_a_conversation_that_the_template_refuses_is_left_out(exported: Any, tiny: Any, tmp_path: Path) -> None:
    tiny.tokenizer(tmp_path)
    file = tmp_path / "chat_template.jinja"
    refusal = "{%- if messages[0].role == 'system' %}{{ raise_exception('no system') }}{%- endif %}"
    file.write_text(refusal + file.read_text(encoding="utf-8"), encoding="utf-8")
    template = ChatTemplate(tmp_path)
    found = verify.check(exported.path("gguf:q8_0"), template, verify.CONVERSATIONS[0], log=tmp_path / "log")
    assert found["prompts"]["conversations"] == len(verify.CONVERSATIONS)
