"""What llama.cpp's converter is given to read."""

from pathlib import Path
from typing import Any

import pytest

from tunewright.pipeline import files
from tunewright.pipeline.chat_template import ChatTemplate
from tunewright.pipeline.exporting import gguf

HELLO = [{"role": "user", "content": "Hello"}]


@pytest.fixture
def merged(tiny: Any, tmp_path: Path) -> Path:
    folder = tmp_path / "merged"
    folder.mkdir()
    tiny.tokenizer(folder)
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    (tmp_path / "layout").mkdir()
    return tmp_path / "layout"


def edit_config(folder: Path, **changes: Any) -> None:
    file = folder / "tokenizer_config.json"
    files.write_json(file, files.read_json(file) | changes)


def test_thinking_is_switched_off_inside_the_template_of_the_copy_only(merged: Path, layout: Path) -> None:
    gguf.lay_out(merged, layout, enable_thinking=False)
    as_trained = ChatTemplate(merged).render(HELLO, add_generation_prompt=True, enable_thinking=False)
    assert ChatTemplate(layout).render(HELLO, add_generation_prompt=True, enable_thinking=True) == as_trained
    assert ChatTemplate(merged).render(HELLO, add_generation_prompt=True, enable_thinking=True) != as_trained


def test_the_template_of_a_model_trained_with_thinking_is_left_alone(merged: Path, layout: Path) -> None:
    gguf.lay_out(merged, layout, enable_thinking=True)
    assert ChatTemplate(layout).source == ChatTemplate(merged).source


def test_a_template_without_the_switch_is_left_alone(merged: Path, layout: Path) -> None:
    plain = "{% for message in messages %}{{ message.content }}{% endfor %}"
    (merged / "chat_template.jinja").write_text(plain, encoding="utf-8")
    gguf.lay_out(merged, layout, enable_thinking=False)
    assert ChatTemplate(layout).source == plain


def test_an_older_template_in_the_config_cannot_win(merged: Path, layout: Path) -> None:
    edit_config(merged, chat_template="{{ 'old' }}")
    gguf.lay_out(merged, layout, enable_thinking=False)
    assert "chat_template" not in files.read_json(layout / "tokenizer_config.json")
    assert "old" not in ChatTemplate(layout).render(HELLO)


@pytest.mark.parametrize(("written", "read"), [("LlamaTokenizerFast", "PreTrainedTokenizerFast"), ("X", "X")])
def test_a_llama_class_does_not_hide_a_byte_level_tokenizer(
    written: str, read: str, merged: Path, layout: Path
) -> None:
    edit_config(merged, tokenizer_class=written)
    gguf.lay_out(merged, layout, enable_thinking=False)
    assert files.read_json(layout / "tokenizer_config.json")["tokenizer_class"] == read
    assert files.read_json(merged / "tokenizer_config.json")["tokenizer_class"] == written


def test_weights_are_linked_not_copied(merged: Path, layout: Path) -> None:
    gguf.lay_out(merged, layout, enable_thinking=False)
    assert (layout / "model.safetensors").is_symlink()
    assert (layout / "model.safetensors").read_bytes() == b"weights"
