"""Chat templates and tokens without transformers: the one place where conversations become what a model is trained on.

The trainer, `inspect_dataset` and the token statistics all call `ChatTemplate.encode`, so what is shown is what is
trained. Rendering follows transformers' own environment (same sandbox, filters and globals); the tokenizer is the
model's `tokenizer.json`. Models that carry no `tokenizer.json` are refused.

A template is a program of whoever made the model: it reaches nothing outside, and one that fails or does not come to an
end is refused. Not guaranteed: that it takes no more memory than there is.
"""

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from jinja2 import Template, TemplateError, TemplateSyntaxError, nodes, pass_context
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Encoding, Tokenizer

from tunewright.pipeline import models
from tunewright.pipeline.errors import InvalidInput
from tunewright.pipeline.workspace import Workspace

Message = dict[str, Any]
Tools = Sequence[Mapping[str, Any]]

# Private-use characters. Where one that the conversation does not hold lands in the text, an answer begins.
MARKS = tuple(map(chr, range(0xE000, 0xF900)))
# A conversation of a thousand turns takes a tenth of a second.
RENDER_LIMIT_S = 10.0
# What operators, filters and methods raise inside a template that is wrong; jinja passes it on as it is.
FAILURES = (
    TemplateError, ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError, SyntaxError, TypeError,
    ValueError,
)  # fmt: skip
# The name of the moment at which rendering is given up, among the template's variables.
DEADLINE = "_tunewright_deadline"


class _Generation(Extension):
    """Accepts transformers' `{% generation %}` blocks, which mark answers; the text inside is kept as it is."""

    tags = {"generation"}  # noqa: RUF012 - jinja's own contract

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_keep"), [], [], body).set_lineno(line)

    def _keep(self, caller: Macro) -> str:
        return str(caller())


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox, in which time passes: each turn of a loop and each call looks at the clock."""

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        for loop in tree.find_all(nodes.For):
            loop.iter = nodes.Filter(loop.iter, "in_time", [], [], None, None).set_lineno(loop.lineno)
        tree.set_environment(self)
        return tree

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        _look_at_clock(context)
        return super().call(context, obj, *args, **kwargs)


def _look_at_clock(context: Context) -> None:
    if time.monotonic() > context[DEADLINE]:
        raise TemplateError(f"it did not come to an end within {RENDER_LIMIT_S:g} s")


@pass_context
def _in_time(context: Context, items: Iterable[Any]) -> Iterator[Any]:
    for item in items:
        _look_at_clock(context)
        yield item


def _raise(message: str) -> None:
    raise TemplateError(message)


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    # jinja2's annotations know only its own filters and globals.
    filters: dict[str, Any] = environment.filters  # pyright: ignore[reportAssignmentType]
    filters |= {"tojson": _tojson, "in_time": _in_time}
    offered: dict[str, Any] = environment.globals  # pyright: ignore[reportAssignmentType]
    offered |= {"raise_exception": _raise, "strftime_now": _strftime_now}
    return environment


def _text(value: Any) -> str | None:
    """A special token of tokenizer_config.json: a string, or an object that holds one."""
    text = cast("dict[str, Any]", value).get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else None


class ChatTemplate:
    """The chat template and tokenizer of one model folder, with thinking switched on or off."""

    def __init__(self, folder: Path, *, enable_thinking: bool = False) -> None:
        """Reads `tokenizer_config.json`; the tokenizer and the template when they are needed. Raises InvalidInput."""
        self.folder, self.enable_thinking = folder, enable_thinking
        if not (folder / "tokenizer.json").is_file():
            raise InvalidInput(
                "no_fast_tokenizer",
                f"{folder} has no tokenizer.json.",
                allowed="Tunewright needs the model's fast tokenizer; most repositories at unsloth/ carry one.",
            )
        config_file = folder / "tokenizer_config.json"
        config = models.read_object(config_file) if config_file.is_file() else {}
        self._special = {k: text for k, v in config.items() if k.endswith("_token") and (text := _text(v))}
        self._named_template = config.get("chat_template")

    @cached_property
    def source(self) -> str:
        """The template's Jinja. Raises InvalidInput where the model has none: raw text is counted without one."""
        try:
            return self._read_source(self._named_template)
        except (OSError, UnicodeDecodeError) as error:
            raise self._broken(str(error)) from error

    @cached_property
    def _template(self) -> Template:
        source = self.source
        try:
            return _environment().from_string(source)
        except TemplateSyntaxError as error:
            raise self._broken(f"line {error.lineno}: {error.message}") from error
        except FAILURES as error:
            raise self._broken(f"{type(error).__name__}: {error}") from error

    def _broken(self, why: str) -> InvalidInput:
        return InvalidInput(
            "broken_chat_template", f"The chat template of {self.folder} is no Jinja: {why[:300]}.",
            allowed="Fetch the model again, or take another.", next="list_models()",
        )  # fmt: skip

    def _read_source(self, named: Any) -> str:
        file = self.folder / "chat_template.jinja"
        if file.is_file():
            return file.read_text(encoding="utf-8")
        source = named
        if isinstance(source, list):  # several by name: [{"name": "default", "template": …}, …]
            entries = [cast("dict[str, Any]", entry) for entry in cast("list[Any]", source) if isinstance(entry, dict)]
            source = next((entry.get("template") for entry in entries if entry.get("name") == "default"), None)
        if not isinstance(source, str):
            raise InvalidInput(
                "no_chat_template",
                f"{self.folder} has no chat template: it is a base model.",
                allowed="Use the instruct version of the model.",
                next='list_models(query="instruct")',
            )
        return source

    @cached_property
    def tokenizer(self) -> Tokenizer:
        file = self.folder / "tokenizer.json"
        try:
            return Tokenizer.from_file(str(file))
        except Exception as error:  # what tokenizers raises has no narrower class
            raise InvalidInput(
                "broken_tokenizer", f"{file} is no tokenizer: {str(error)[:200]}.",
                allowed="Fetch the model again, or take another.", next="list_models()",
            ) from error  # fmt: skip

    @cached_property
    def special_ids(self) -> set[int]:
        """Ids of the control tokens: never shown, never to stand in data."""
        return {i for i, token in self.tokenizer.get_added_tokens_decoder().items() if token.special}

    @property
    def control_tokens(self) -> list[str]:
        """The texts of `special_ids`, in the order of their ids."""
        return [text for i in sorted(self.special_ids) if (text := self.tokenizer.id_to_token(i))]

    @property
    def has_thinking_switch(self) -> bool:
        return "enable_thinking" in self.source

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Tools = (),
        add_generation_prompt: bool = False,
        enable_thinking: bool | None = None,
    ) -> str:
        """The text of a conversation as the model sees it; `enable_thinking` overrides the template's setting.

        `tools` are the functions that may be called, in OpenAI's form.
        """
        thinking = self.enable_thinking if enable_thinking is None else enable_thinking
        template = self._template
        try:
            return template.render(
                messages=list(messages), add_generation_prompt=add_generation_prompt, enable_thinking=thinking,
                tools=list(tools) or None, documents=None, **self._special,
                **{DEADLINE: time.monotonic() + RENDER_LIMIT_S},
            )  # fmt: skip
        except FAILURES as error:
            roles = ", ".join(message["role"] for message in messages[:6])
            raise InvalidInput(
                "template_refused",
                f"The model's chat template refuses the roles {roles}: {str(error)[:300] or type(error).__name__}.",
                allowed="Some models take no system message, or want user and assistant in turn.",
            ) from error

    def ids(self, text: str) -> list[int]:
        """Token ids of rendered text; the template has written its own control tokens, so none are added."""
        return self._encoding(text).ids

    def _encoding(self, text: str) -> Encoding:
        try:
            return self.tokenizer.encode(text, add_special_tokens=False)
        except TypeError as error:  # a template can write half of a surrogate pair
            raise self._broken("it writes what is no Unicode text") from error

    def document_ids(self, text: str) -> list[int]:
        """Token ids of raw text as a whole document: with the tokenizer's own begin, where it has one, and its end."""
        ids = self.tokenizer.encode(text).ids
        end = self.tokenizer.token_to_id(self._special.get("eos_token") or "")
        return ids if end is None or ids[-1:] == [end] else [*ids, end]

    def tokens(self, ids: Sequence[int]) -> list[str]:
        """The text of each token."""
        return [self.tokenizer.decode([i], skip_special_tokens=False) for i in ids]

    def encode(self, messages: Sequence[Message], tools: Tools = ()) -> tuple[list[int], list[int]]:
        """Token ids of the conversation and its loss mask (same length): 1 on what the assistant says, else 0.

        What is trained is each answer, the tools it calls, and the token that ends its turn, so that the model learns
        to stop; the header and an empty thinking block are part of the prompt, as when it answers later.
        """
        text = self.render(messages, tools=tools)
        encoding = self._encoding(text)
        # Each is made anew whenever it is asked for.
        ids, offsets = encoding.ids, encoding.offsets
        mask = [0] * len(ids)
        for begin, end in self._answer_spans(messages, tools, text):
            inside = [i for i, (a, b) in enumerate(offsets) if a < end and b > begin]
            if not inside:
                continue
            for i in inside:
                mask[i] = 1
            following = inside[-1] + 1
            if following < len(mask) and ids[following] in self.special_ids:
                mask[following] = 1
        return ids, mask

    def _answer_spans(self, messages: Sequence[Message], tools: Tools, text: str) -> list[tuple[int, int]]:
        """Character spans of the answers: what changes in the text when an answer is replaced by a mark."""
        mark = next(mark for mark in MARKS if mark not in text)
        spans: list[tuple[int, int]] = []
        for number, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            # Without its calls: they are part of what the mark stands for.
            marked_turn = {"role": "assistant", "content": mark}
            marked = self.render([*messages[:number], marked_turn, *messages[number + 1 :]], tools=tools)
            begin = marked.find(mark)
            if begin < 0:
                continue
            tail = marked[begin + 1 :]
            if not text.startswith(marked[:begin]):
                # The answer has its own thinking block instead of an empty one: trained whole, as a prompt with
                # thinking leaves it to the model.
                prompt = self.render(messages[:number], tools=tools, add_generation_prompt=True, enable_thinking=True)
                begin = next((i for i, (a, b) in enumerate(zip(text, prompt, strict=False)) if a != b), len(prompt))
            end = len(text) - len(tail) if text.endswith(tail) else len(text)
            spans.append((begin, end))
        return spans


def load(workspace: Workspace, model: str, *, enable_thinking: bool = False) -> ChatTemplate:
    """The chat template of a model by name (see `models.resolve`), fetching its small files where needed."""
    return ChatTemplate(models.tokenizer_folder(workspace, model), enable_thinking=enable_thinking)
