"""The Modelfile: parameters, stops, context, and the Go template for old servers."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
from standins.ollama_server import render_go

from tunewright.pipeline.chat_template import ChatTemplate
from tunewright.pipeline.errors import InvalidInput, NotFound, call
from tunewright.pipeline.publishing import modelfile
from tunewright.pipeline.store import Row
from tunewright.pipeline.workspace import Workspace

GGUF = Path("identity-q8_0.gguf")
build = partial(modelfile.build, retry=partial(call, "publish_to_ollama", export_id="ex-1", model_name="tuny"))
Rewrite = Callable[..., Row]
USER = {"role": "user", "content": "Who?"}
SYSTEM = {"role": "system", "content": "Be brief."}
ANSWER = {"role": "assistant", "content": "Me."}


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
    made = build(workspace, export, GGUF)
    assert made.parameters == {
        "temperature": 0.7, "top_p": 0.8, "top_k": 20, "num_ctx": 2048, "stop": ["<|im_end|>", "<|endoftext|>"],
    }  # fmt: skip
    assert made.text.splitlines()[0] == "FROM identity-q8_0.gguf"
    assert 'PARAMETER stop "<|im_end|>"' in made.text.splitlines()
    assert "PARAMETER num_ctx 2048" in made.text.splitlines()
    assert f'TEMPLATE """{made.template}"""' in made.text


def test_given_parameters_go_over_the_models_own_and_stops_are_added(workspace: Workspace, export: Row) -> None:
    made = build(workspace, export, GGUF, "Be brief.", {"temperature": 0, "seed": 7, "stop": "\n\n"})
    assert (made.parameters["temperature"], made.parameters["seed"], made.parameters["top_p"]) == (0, 7, 0.8)
    assert made.parameters["stop"] == ["<|im_end|>", "<|endoftext|>", "\n\n"]
    assert 'SYSTEM """Be brief."""' in made.text
    assert 'PARAMETER stop """\n\n"""' in made.text


def test_the_context_is_never_shorter_than_the_training_rows(
    workspace: Workspace, export: Row, rewrite: Rewrite
) -> None:
    longer = rewrite(export, max_seq_length=6000)
    assert build(workspace, longer, GGUF).parameters["num_ctx"] == 6000


@pytest.mark.parametrize(("thinking", "expected"), [(False, (0.7, 0.8, 20)), (True, (None, None, None))])
def test_a_qwen3_without_generation_config_gets_the_cards_sampling_when_thinking_is_off(
    workspace: Workspace, adapter: Row, export: Row, rewrite: Rewrite, thinking: bool, expected: tuple[Any, ...]
) -> None:
    for artifact in (adapter, export):
        for file in Path(artifact["document"]["path"]).rglob("generation_config.json"):
            file.unlink()
    made = build(workspace, rewrite(export, enable_thinking=thinking), GGUF).parameters
    assert tuple(made.get(name) for name in ("temperature", "top_p", "top_k")) == expected
    assert made["stop"] == ["<|im_end|>"]


def test_a_greedy_model_stays_greedy(workspace: Workspace, export: Row) -> None:
    file = Path(export["document"]["path"]) / "merged" / "generation_config.json"
    file.write_text(json.dumps({"do_sample": False, "top_k": 50}), encoding="utf-8")
    parameters = build(workspace, export, GGUF).parameters
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
        build(workspace, export, GGUF, parameters=parameters)
    assert caught.value.code == "invalid_parameter"
    assert named in caught.value.allowed
    assert "repeat_penalty" in caught.value.allowed
    assert caught.value.next == 'publish_to_ollama(export_id="ex-1", model_name="tuny", parameters={})'


def test_the_call_that_is_named_keeps_the_parameters_that_are_right(workspace: Workspace, export: Row) -> None:
    with pytest.raises(InvalidInput) as caught:
        build(workspace, export, GGUF, parameters={"seed": 7, "temprature": 0.1})
    assert caught.value.next.endswith('parameters={"seed": 7})')


def test_an_empty_system_message_is_none_whatever_the_preset_says(workspace: Workspace, export: Row) -> None:
    made = build(workspace, export, GGUF, system="", preset="retrieval")
    assert made.system is None and "SYSTEM" not in made.text
    assert made.parameters["temperature"] == 0.1


def test_a_system_message_that_would_end_the_modelfiles_text_is_refused(workspace: Workspace, export: Row) -> None:
    with pytest.raises(InvalidInput, match="invalid_system") as caught:
        build(workspace, export, GGUF, 'Say """hi""".')
    assert caught.value.next.endswith("system=\"Say '''hi'''.\")")


def test_an_export_that_lost_its_tokenizer_is_refused(workspace: Workspace, adapter: Row, export: Row) -> None:
    for artifact in (adapter, export):
        for file in Path(artifact["document"]["path"]).rglob("tokenizer.json"):
            file.unlink()
    with pytest.raises(NotFound, match="tokenizer_missing"):
        build(workspace, export, GGUF)


def test_the_go_template_says_what_it_cannot(toy_folder: Path, tmp_path: Path) -> None:
    template = ChatTemplate(toy_folder)
    assert modelfile.lacks(template, modelfile.go_template(template)) == ["tools", "switching thinking on or off"]
    plain = with_template(
        toy_folder,
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
        tmp_path / "plain",
    )
    assert modelfile.lacks(plain, modelfile.go_template(plain)) == []
    other = with_template(toy_folder, "{% for m in messages %}[{{ m.content }}]{% endfor %}", tmp_path / "other")
    assert modelfile.lacks(other, None) == ["the chat template, which is not plain ChatML"]


def test_a_preset_goes_over_the_model_and_what_is_given_over_the_preset(workspace: Workspace, export: Row) -> None:
    made = build(workspace, export, GGUF, preset="retrieval")
    assert (made.parameters["temperature"], made.parameters["top_p"]) == (0.1, 0.8)
    assert "from nothing else" in (made.system or "")
    assert f'SYSTEM """{made.system}"""' in made.text
    given = build(workspace, export, GGUF, "Be brief.", {"temperature": 0.3}, "retrieval")
    assert (given.parameters["temperature"], given.system) == (0.3, "Be brief.")


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ("assistant", {"temperature": 0.7, "top_p": 0.8, "top_k": 20}),
        ("deterministic", {"temperature": 0.0}),
        ("creative", {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.05}),
    ],
)
def test_presets_change_the_sampling_alone(
    workspace: Workspace, export: Row, preset: str, expected: dict[str, Any]
) -> None:
    made = build(workspace, export, GGUF, preset=preset)
    assert {name: made.parameters[name] for name in expected} == expected
    assert (made.system, made.parameters["num_ctx"]) == (None, 2048)


def test_retrieval_has_room_for_the_context_as_far_as_the_model_can_read(workspace: Workspace, export: Row) -> None:
    assert build(workspace, export, GGUF, preset="retrieval").parameters["num_ctx"] == 2048
    file = Path(export["document"]["path"]) / "merged" / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**config, "max_position_embeddings": 40960}), encoding="utf-8")
    assert build(workspace, export, GGUF, preset="retrieval").parameters["num_ctx"] == 8192
    assert build(workspace, export, GGUF).parameters["num_ctx"] == 4096


def test_an_unknown_preset_is_refused_with_those_there_are(workspace: Workspace, export: Row) -> None:
    with pytest.raises(InvalidInput, match="unknown_preset") as caught:
        build(workspace, export, GGUF, preset="retrival")
    assert caught.value.allowed.startswith("Nearest: retrieval")


def test_a_system_message_that_the_template_refuses_is_refused(workspace: Workspace, export: Row) -> None:
    file = Path(export["document"]["path"]) / "merged" / "chat_template.jinja"
    source = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    file.write_text(source + file.read_text(encoding="utf-8"), encoding="utf-8")
    with pytest.raises(InvalidInput, match="template_refused"):
        build(workspace, export, GGUF, preset="retrieval")
    assert build(workspace, export, GGUF).system is None
