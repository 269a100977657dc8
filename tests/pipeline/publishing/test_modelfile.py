"""The Modelfile: parameters, stops, context, and the Go template for old servers."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest

from tunewright.pipeline.chat_template import ChatTemplate
from tunewright.pipeline.errors import InvalidInput, NotFound
from tunewright.pipeline.publishing import modelfile
from tunewright.pipeline.store import Row
from tunewright.pipeline.workspace import Workspace

GGUF = Path("identity-q8_0.gguf")
Rewrite = Callable[..., Row]
USER = {"role": "user", "content": "Who?"}
SYSTEM = {"role": "system", "content": "Be brief."}
ANSWER = {"role": "assistant", "content": "Me."}


def render_go(template: str, messages: list[dict[str, str]]) -> str:
    """What Go's text/template makes of the few actions that the Modelfile's template uses."""
    has_system = any(message["role"] == "system" for message in messages)
    text = re.sub(r"\{\{ if not .System \}\}(.*?)\{\{ end \}\}", "" if has_system else r"\1", template, flags=re.S)
    before, turn, after = re.split(r"\{\{ range .Messages \}\}|\{\{ end \}\}", text)
    turns = [
        turn.replace("{{ .Role }}", message["role"]).replace("{{ .Content }}", message["content"])
        for message in messages
    ]
    assert "{{" not in before + after
    return before + "".join(turns) + after


@pytest.mark.parametrize("thinking", [False, True])
@pytest.mark.parametrize("messages", [[USER], [SYSTEM, USER], [SYSTEM, USER, ANSWER, USER]])
def test_the_go_template_writes_what_the_models_own_chatml_template_writes(
    toy_folder: Path, messages: list[dict[str, str]], thinking: bool
) -> None:
    template = ChatTemplate(toy_folder, enable_thinking=thinking)
    go = modelfile.go_template(template)
    assert go is not None
    assert render_go(go, messages) == template.render(messages, add_generation_prompt=True)


def with_template(folder: Path, source: str, target: Path) -> ChatTemplate:
    copytree(folder, target)
    (target / "chat_template.jinja").write_text(source, encoding="utf-8")
    return ChatTemplate(target)


def test_a_default_system_message_is_kept_in_the_go_template(toy_folder: Path, tmp_path: Path) -> None:
    source = (
        "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are Qwen.<|im_end|>\n{% endif %}"
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    template = with_template(toy_folder, source, tmp_path / "model")
    go = modelfile.go_template(template)
    assert go is not None
    for messages in ([USER], [SYSTEM, USER]):
        assert render_go(go, messages) == template.render(messages, add_generation_prompt=True)


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}<start_of_turn>{{ m.role }}\n{{ m.content }}<end_of_turn>\n{% endfor %}",
        # ChatML, but earlier answers come out in another form.
        "{% for m in messages %}{% set end = '\n<|im_end|>\n' if m.role == 'assistant' else '<|im_end|>\n' %}"
        "{{ '<|im_start|>' + m.role + '\n' + m.content + end }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
        # ChatML, but a system message is refused.
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    ],
)
def test_a_template_that_is_not_plain_chatml_gets_no_go_template(toy_folder: Path, tmp_path: Path, source: str) -> None:
    assert modelfile.go_template(with_template(toy_folder, source, tmp_path / "model")) is None


def test_sampling_stops_and_context_come_from_the_model(workspace: Workspace, export: Row) -> None:
    made = modelfile.build(workspace, export, GGUF)
    assert made.parameters == {
        "temperature": 0.7, "top_p": 0.8, "top_k": 20, "num_ctx": 2048, "stop": ["<|im_end|>", "<|endoftext|>"],
    }  # fmt: skip
    assert made.text.splitlines()[0] == "FROM identity-q8_0.gguf"
    assert 'PARAMETER stop "<|im_end|>"' in made.text.splitlines()
    assert "PARAMETER num_ctx 2048" in made.text.splitlines()
    assert f'TEMPLATE """{made.template}"""' in made.text


def test_given_parameters_go_over_the_models_own_and_stops_are_added(workspace: Workspace, export: Row) -> None:
    made = modelfile.build(workspace, export, GGUF, "Be brief.", {"temperature": 0, "seed": 7, "stop": "\n\n"})
    assert (made.parameters["temperature"], made.parameters["seed"], made.parameters["top_p"]) == (0, 7, 0.8)
    assert made.parameters["stop"] == ["<|im_end|>", "<|endoftext|>", "\n\n"]
    assert 'SYSTEM """Be brief."""' in made.text
    assert 'PARAMETER stop """\n\n"""' in made.text


def test_the_context_is_never_shorter_than_the_training_rows(
    workspace: Workspace, export: Row, rewrite: Rewrite
) -> None:
    longer = rewrite(export, max_seq_length=6000)
    assert modelfile.build(workspace, longer, GGUF).parameters["num_ctx"] == 6000


@pytest.mark.parametrize(("thinking", "expected"), [(False, (0.7, 0.8, 20)), (True, (None, None, None))])
def test_a_qwen3_without_generation_config_gets_the_cards_sampling_when_thinking_is_off(
    workspace: Workspace, adapter: Row, export: Row, rewrite: Rewrite, thinking: bool, expected: tuple[Any, ...]
) -> None:
    for artifact in (adapter, export):
        for file in Path(artifact["document"]["path"]).rglob("generation_config.json"):
            file.unlink()
    made = modelfile.build(workspace, rewrite(export, enable_thinking=thinking), GGUF).parameters
    assert tuple(made.get(name) for name in ("temperature", "top_p", "top_k")) == expected
    assert made["stop"] == ["<|im_end|>"]


def test_a_greedy_model_stays_greedy(workspace: Workspace, export: Row) -> None:
    file = Path(export["document"]["path"]) / "merged" / "generation_config.json"
    file.write_text(json.dumps({"do_sample": False, "top_k": 50}), encoding="utf-8")
    parameters = modelfile.build(workspace, export, GGUF).parameters
    assert parameters["temperature"] == 0.0
    assert "top_k" not in parameters


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"temprature": 0.5}, "temperature"),
        ({"temperature": 3}, "from 0.0 to 2.0"),
        ({"temperature": "hot"}, "from 0.0 to 2.0"),
        ({"temperature": float("nan")}, "from 0.0 to 2.0"),
        ({"top_k": 1.5}, "whole number"),
        ({"top_p": True}, "from 0.0 to 1.0"),
        ({"num_ctx": 256}, "At least 512"),
        ({"stop": ["ok", ""]}, "none empty"),
        ({"stop": 5}, "none empty"),
    ],
)
def test_a_wrong_parameter_is_refused_with_what_would_be_right(
    workspace: Workspace, export: Row, parameters: dict[str, Any], named: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        modelfile.build(workspace, export, GGUF, parameters=parameters)
    assert caught.value.code == "invalid_parameter"
    assert named in caught.value.allowed
    assert "repeat_penalty" in caught.value.allowed


def test_a_system_message_that_would_end_the_modelfiles_text_is_refused(workspace: Workspace, export: Row) -> None:
    with pytest.raises(InvalidInput, match="invalid_system"):
        modelfile.build(workspace, export, GGUF, 'Say """hi""".')


def test_an_export_that_lost_its_tokenizer_is_refused(workspace: Workspace, adapter: Row, export: Row) -> None:
    for artifact in (adapter, export):
        for file in Path(artifact["document"]["path"]).rglob("tokenizer.json"):
            file.unlink()
    with pytest.raises(NotFound, match="tokenizer_missing"):
        modelfile.build(workspace, export, GGUF)
