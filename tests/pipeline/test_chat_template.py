"""Rendering and the loss mask, against transformers itself where it has an opinion."""

import json
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from shutil import copyfile, copytree
from typing import Any

import pytest

from tunewright.pipeline.chat_template import ChatTemplate, Message
from tunewright.pipeline.errors import InvalidInput

# transformers may not be imported before Unsloth in one process, and Unsloth not at all here: a Python of its own.
TRANSFORMERS = """
import json, sys
from transformers import AutoTokenizer
cases = json.load(open(sys.argv[1], encoding="utf-8"))
answers = []
for case in cases:
    tokenizer = AutoTokenizer.from_pretrained(case["folder"])
    options = {"add_generation_prompt": case["prompt"], "enable_thinking": case["thinking"], "tools": case["tools"]}
    text = tokenizer.apply_chat_template(case["messages"], tokenize=False, **options)
    found = tokenizer.apply_chat_template(
        case["messages"], tokenize=True, return_dict=True, return_assistant_tokens_mask=case["mask"], **options
    )
    answers.append({"text": text, "ids": found["input_ids"], "mask": found.get("assistant_masks")})
print(json.dumps(answers))
"""
# Marks its answers, their ends included, as transformers wants them marked.
WITH_GENERATION = """\
{% for message in messages %}
{{ '<|im_start|>' + message['role'] + '\\n' }}
{%- if message['role'] == 'assistant' -%}
{% generation %}{{ message['content'] }}{{ '<|im_end|>' }}{% endgeneration %}
{%- else -%}
{{ message['content'] }}{{ '<|im_end|>' }}
{%- endif -%}
{{ '\\n' }}
{%- endfor -%}"""
# The filters, globals and statements that only transformers' own environment has.
WITH_EVERYTHING = """\
{{- eos_token }}{{ strftime_now('%Y') }}
{%- for message in messages %}
    {%- if loop.index > 3 %}
        {% break %}
    {%- endif %}
    {{ message | tojson(indent=2) }}
{% endfor %}
{{ {"ü": "<b>"} | tojson }}"""
# As Gemma's and Mistral's templates refuse what they cannot say.
WITHOUT_SYSTEM = """\
{%- if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{%- for message in messages %}{{ message['content'] | trim }}<|im_end|>{% endfor %}"""

FRANCE = {"role": "user", "content": "What is the capital of France?"}
PARIS = {"role": "assistant", "content": "The capital of France is Paris."}
BRIEF = {"role": "system", "content": "Be brief."}

RunPython = Callable[..., str]
WithTemplate = Callable[..., Path]


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


CALL = {"name": "weather", "arguments": {"city": "Oslo"}}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {}}}}}
]
CONVERSATIONS: dict[str, list[Message]] = {
    "question": [FRANCE],
    "answered": [FRANCE, PARIS],
    "system": [BRIEF, FRANCE, PARIS],
    "several turns": [FRANCE, PARIS, user("And of Italy?"), assistant("Rome."), user("Thanks")],
    "unicode": [user("Grüße, 你好 👩‍🚀!\tTab"), assistant("Ça va 🙂\n\n```py\nprint(1)\n```\n")],
    "reasoning": [FRANCE, assistant("<think>\nFrance, hm.\n</think>\n\nParis.")],
    "earlier reasoning": [FRANCE, assistant("<think>\nHm.\n</think>\n\nParis."), user("Sure?"), assistant("Yes.")],
    "a tool": [
        user("Cold in Oslo?"),
        {"role": "assistant", "content": "I look.", "tool_calls": [{"type": "function", "function": CALL}]},
        {"role": "tool", "content": "-4 °C"},
        assistant("Yes."),
    ],
    "control tokens in the text": [user("Say <|im_end|> and <think>"), assistant("<|im_start|>")],
}


@pytest.fixture
def with_template(toy_folder: Path, tmp_path: Path) -> WithTemplate:
    """A folder with the toy's tokenizer, another chat template, and changes to its tokenizer_config.json."""

    def make(source: str | None, **config: Any) -> Path:
        folder = tmp_path / f"model-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        copyfile(toy_folder / "tokenizer.json", folder / "tokenizer.json")
        if source is not None:
            (folder / "chat_template.jinja").write_text(source, encoding="utf-8")
        own = json.loads((toy_folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        (folder / "tokenizer_config.json").write_text(json.dumps({**own, **config}), encoding="utf-8")
        return folder

    return make


def as_transformers(run_python: RunPython, tmp_path: Path, cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    (tmp_path / "cases.json").write_text(json.dumps(cases), encoding="utf-8")
    return json.loads(run_python(TRANSFORMERS, tmp_path / "cases.json"))


def trained(template: ChatTemplate, messages: list[Message]) -> list[str]:
    """The stretches of text that carry loss."""
    ids, mask = template.encode(messages)
    assert len(ids) == len(mask) and ids == template.ids(template.render(messages))
    stretches = groupby(zip(ids, mask, strict=True), key=lambda pair: pair[1])
    return [
        template.tokenizer.decode([i for i, _ in pairs], skip_special_tokens=False)
        for carries, pairs in stretches
        if carries
    ]


def test_text_ids_and_mask_are_those_of_transformers(
    toy_folder: Path, with_template: WithTemplate, run_python: RunPython, tmp_path: Path
) -> None:
    marking = with_template(WITH_GENERATION)
    cases = [
        {"folder": str(folder), "messages": messages, "prompt": prompt, "thinking": thinking, "mask": folder == marking,
         "tools": TOOLS if name == "a tool" and folder == toy_folder else None}
        for folder in (toy_folder, marking, with_template(WITH_EVERYTHING))
        for name, messages in CONVERSATIONS.items()
        if name != "a tool" or folder == toy_folder
        for prompt in (False, True)
        for thinking in (False, True)
    ]  # fmt: skip
    for case, theirs in zip(cases, as_transformers(run_python, tmp_path, cases), strict=True):
        template = ChatTemplate(Path(case["folder"]), enable_thinking=case["thinking"])
        text = template.render(case["messages"], tools=case["tools"] or (), add_generation_prompt=case["prompt"])
        assert text == theirs["text"], case
        assert template.ids(text) == theirs["ids"], case
        if case["mask"] and not case["prompt"]:
            assert template.encode(case["messages"]) == (theirs["ids"], theirs["mask"]), case


@pytest.mark.parametrize(
    ("messages", "answers"),
    [
        ([FRANCE, PARIS], ["The capital of France is Paris.<|im_end|>"]),
        ([BRIEF, FRANCE, PARIS], ["The capital of France is Paris.<|im_end|>"]),
        ([FRANCE, PARIS, user("Italy?"), assistant("Rome.")], [PARIS["content"] + "<|im_end|>", "Rome.<|im_end|>"]),
        ([FRANCE, PARIS, user("And?")], [PARIS["content"] + "<|im_end|>"]),
        ([user("Say: yes"), assistant("yes"), user("yes"), assistant("yes")], ["yes<|im_end|>"] * 2),
        ([{"role": "system", "content": "Paris."}, user("Paris."), assistant("Paris.")], ["Paris.<|im_end|>"]),
        ([FRANCE, assistant("  Paris.  ")], ["  Paris.  <|im_end|>"]),
        ([FRANCE, assistant("Paris.\n")], ["Paris.\n<|im_end|>"]),
        ([user("Hi"), assistant("你好 👩‍🚀 é")], ["你好 👩‍🚀 é<|im_end|>"]),
        ([user("\uf8ff is a logo"), assistant("\uf8ff, yes.")], ["\uf8ff, yes.<|im_end|>"]),
        ([user("Say <|im_end|>"), assistant("<|im_end|>")], ["<|im_end|><|im_end|>"]),
        ([user("Hi"), assistant("a"), assistant("b")], ["a<|im_end|>", "b<|im_end|>"]),
        ([FRANCE], []),
        ([user("Hi"), assistant("")], []),
    ],
)
def test_loss_is_on_each_answer_and_the_token_that_ends_it_and_on_nothing_else(
    toy_folder: Path, messages: list[Message], answers: list[str]
) -> None:
    for thinking in (False, True):
        assert trained(ChatTemplate(toy_folder, enable_thinking=thinking), messages) == answers


def test_reasoning_is_learned_from_where_the_thinking_prompt_ends(toy_folder: Path) -> None:
    template = ChatTemplate(toy_folder, enable_thinking=True)
    reply = "<think>\nFrance, hm.\n</think>\n\nParis."
    messages = [FRANCE, assistant(reply)]
    assert trained(template, messages) == [reply + "<|im_end|>"]
    prompt = template.render([FRANCE], add_generation_prompt=True)
    assert template.render(messages) == f"{prompt}{reply}<|im_end|>\n"


def test_an_answer_without_reasoning_is_learned_from_where_the_prompt_without_thinking_ends(toy_folder: Path) -> None:
    template = ChatTemplate(toy_folder, enable_thinking=False)
    ids, mask = template.encode([FRANCE, PARIS])
    prompt = template.render([FRANCE], add_generation_prompt=True)
    assert prompt.endswith("<think>\n\n</think>\n\n")
    assert ids[: mask.index(1)] == template.ids(prompt)


def test_reasoning_that_the_template_drops_from_earlier_turns_is_not_trained(toy_folder: Path) -> None:
    messages = CONVERSATIONS["earlier reasoning"]
    assert trained(ChatTemplate(toy_folder), messages) == ["Paris.<|im_end|>", "Yes.<|im_end|>"]


def test_calls_of_tools_are_trained_and_what_the_tool_says_is_not(toy_folder: Path) -> None:
    template = ChatTemplate(toy_folder)
    call = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call><|im_end|>'
    messages = CONVERSATIONS["a tool"]
    assert trained(template, messages) == [f"I look.\n{call}", "Yes.<|im_end|>"]
    silent = [messages[0], {**messages[1], "content": ""}, *messages[2:]]
    assert trained(template, silent) == [call, "Yes.<|im_end|>"]
    ids, mask = template.encode(silent, TOOLS)
    assert '"name": "weather", "parameters"' in template.tokenizer.decode(ids[: mask.index(1)])


def test_a_template_that_trims_is_followed(with_template: WithTemplate) -> None:
    template = ChatTemplate(with_template(WITHOUT_SYSTEM))
    assert trained(template, [user(" Hi "), assistant("  Hello. ")]) == ["Hello.<|im_end|>"]


def test_a_template_that_refuses_a_role_says_so(with_template: WithTemplate) -> None:
    template = ChatTemplate(with_template(WITHOUT_SYSTEM))
    with pytest.raises(InvalidInput) as caught:
        template.encode([BRIEF, FRANCE, PARIS])
    assert str(caught.value).startswith(
        "template_refused: The model's chat template refuses the roles system, user, assistant: System role not "
        "supported."
    )


@pytest.mark.parametrize(
    "hostile",
    ["{{ ''.__class__.__mro__[1].__subclasses__() }}", "{{ messages.append(1) }}"],
)
def test_a_template_cannot_reach_out_of_its_sandbox(with_template: WithTemplate, hostile: str) -> None:
    with pytest.raises(InvalidInput, match="template_refused"):
        ChatTemplate(with_template(hostile)).render([FRANCE])


def test_a_template_that_is_no_jinja_is_refused(with_template: WithTemplate) -> None:
    with pytest.raises(InvalidInput, match=r"line 2") as caught:
        ChatTemplate(with_template("{{ 'fine' }}\n{% for %}")).render([FRANCE])
    assert caught.value.code == "broken_chat_template"


@pytest.mark.parametrize(
    "config",
    [
        {"chat_template": "{{ bos_token }}{{ messages[0]['content'] }}"},
        {
            "chat_template": [
                {"name": "tool_use", "template": "no"},
                {"name": "default", "template": "{{ bos_token }}Hi"},
            ]
        },
    ],
)
def test_a_template_inside_the_tokenizer_config_is_found(with_template: WithTemplate, config: dict[str, Any]) -> None:
    template = ChatTemplate(with_template(None, bos_token={"content": "<|endoftext|>", "lstrip": False}, **config))
    assert template.render([user("Hi")]) == "<|endoftext|>Hi"


def test_a_base_model_without_a_template_is_refused_for_chats_and_counts_raw_text(with_template: WithTemplate) -> None:
    template = ChatTemplate(with_template(None))
    assert len(template.ids("Once upon a time")) > 3
    with pytest.raises(InvalidInput, match=r"no_chat_template: .* is a base model"):
        template.render([FRANCE])


def test_a_model_without_a_fast_tokenizer_is_refused(toy_folder: Path, tmp_path: Path) -> None:
    copytree(toy_folder, tmp_path / "slow")
    (tmp_path / "slow" / "tokenizer.json").unlink()
    with pytest.raises(InvalidInput, match="no_fast_tokenizer"):
        ChatTemplate(tmp_path / "slow")
