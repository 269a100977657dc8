"""What every tool shares: the server class that turns failures into errors for agents, and the common result parts."""

import inspect
import logging
import os
import re
import threading
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, is_dataclass
from functools import partial, wraps
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, ParamSpec, TypeVar, Union, cast, get_args, get_origin

import anyio
import anyio.to_thread
from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError, UnexpectedToolError
from mcp.server.stdio import stdio_server
from mcp.shared.exceptions import MCPError
from mcp.types import INVALID_PARAMS, CallToolResult, GetPromptResult, InputRequiredResult, Prompt, TextContent, Tool
from pydantic import BaseModel, Field, GetJsonSchemaHandler, ValidationError
from pydantic_core import CoreSchema, ErrorDetails, to_json

from tunewright.pipeline import files, redact
from tunewright.pipeline.errors import TunewrightError, nearest
from tunewright.pipeline.workspace import Workspace

log = logging.getLogger("tunewright")
# The words of a name in any of the usual spellings: export_model, exportModel, export-model.
WORD = re.compile(r"[A-Z]?[a-z]{2,}|[A-Z]{2,}")
NAMED_TOOLS = 3
# So many arguments are all named to who guessed one: what is meant is often spelt otherwise (limit, rows).
FEW_ARGUMENTS = 16
KEPT_OF_WORD, MAX_ERROR_CHARACTERS = 300, 3000
# How other servers' tools for the same begin a word of their names.
ELSEWHERE = {
    "train": "start_finetune", "sft": "start_finetune", "dpo": "start_finetune", "infer": "chat_with_adapter",
    "predict": "chat_with_adapter", "eval": "validate_adapter", "push": "publish_to_hub", "upload": "publish_to_hub",
    "stop": "cancel_job", "log": "get_status", "progress": "get_status", "vram": "plan_finetune",
}  # fmt: skip
LONG_WORD = re.compile(rf"\S{{{KEPT_OF_WORD + 100},}}")
LENGTHS = ("minLength", "maxLength", "minItems", "maxItems", "maxProperties")
JSON_TYPES = {
    str: "string", int: "integer", float: "number", bool: "boolean", list: "array", tuple: "array", dict: "object",
    NoneType: "null",
}  # fmt: skip
# What pydantic adds to a place to say which branch of a union it tried: str, WeightedSource, list[union[…]].
UNION_BRANCH = re.compile(r"[A-Z\[]|^(str|int|float|bool)$")


@dataclass(frozen=True)
class App:
    """What the server's lifespan gives every tool."""

    workspace: Workspace


AppContext = Context[App]


def workspace_of(ctx: AppContext) -> Workspace:
    return ctx.request_context.lifespan_context.workspace


P = ParamSpec("P")
T = TypeVar("T")

# Most calls run in one of these. The interpreter runs one at a time whatever their number, while each keeps a
# connection to the store and what malloc sets aside for it: fifty clients made a server grow until it held 113 MB with
# anyio's forty, 110 with six.
THREADS = 8


def limit_threads() -> None:
    """Of the running event loop: at most THREADS for calls, besides those of `run_apart` and `run_in_thread`."""
    anyio.to_thread.current_default_thread_limiter().total_tokens = THREADS


async def run_apart(work: Callable[[], T]) -> T:
    """Runs `work` that may wait for a network in a thread of its own, so that no other call waits for a free one."""
    return await anyio.to_thread.run_sync(work, limiter=anyio.CapacityLimiter(1))


def apart(tool: Callable[P, T]) -> Callable[P, Awaitable[T]]:
    """The tool as one whose calls run in threads of their own: it may wait for a network."""

    @wraps(tool)
    async def in_own_thread(*args: P.args, **kwargs: P.kwargs) -> T:
        return await run_apart(partial(tool, *args, **kwargs))

    return in_own_thread


async def run_in_thread(work: Callable[[], T], stop: threading.Event) -> T:
    """Runs `work` of minutes in a thread of its own. When the call is cancelled sets `stop`, which it must look at."""
    try:
        return await anyio.to_thread.run_sync(work, abandon_on_cancel=True, limiter=anyio.CapacityLimiter(1))
    except anyio.get_cancelled_exc_class():
        stop.set()
        raise


class NextStep(BaseModel):
    """A call that makes sense now, ready to send."""

    tool: str
    arguments: dict[str, Any] = Field(default_factory=dict[str, Any])
    why: str = ""


class Result(BaseModel):
    """The base of every tool's result.

    Its published schema names its parts, and their types where they have one and always are. What is inside a part is
    told by the part itself where it is read: told in the schema as well it took a fifth of the list of tools, and 20 ms
    of each start to make.
    """

    next_steps: list[NextStep] = Field(default_factory=list[NextStep])

    @classmethod
    def __get_pydantic_json_schema__(cls, _: CoreSchema, __: GetJsonSchemaHandler) -> dict[str, Any]:
        parts: dict[str, dict[str, Any]] = {}
        for name, field in cls.model_fields.items():
            types = _json_types(field.annotation)
            parts[name] = {"type": types.pop()} if len(types) == 1 else {}
        return {"type": "object", "properties": parts}


def _json_types(annotation: Any) -> set[str]:
    """What JSON calls the values of an annotation; nothing of Any."""
    origin = get_origin(annotation)
    if origin in (Union, UnionType):
        return {name for option in get_args(annotation) for name in _json_types(option)}
    if origin is Literal:
        return {name for value in get_args(annotation) for name in _json_types(type(value))}
    if origin is Annotated:
        return _json_types(get_args(annotation)[0])
    kind = origin or annotation
    if isinstance(kind, type) and (is_dataclass(kind) or issubclass(kind, BaseModel)):
        return {"object"}
    return {JSON_TYPES[kind]} if kind in JSON_TYPES else set()


def step(tool: str, why: str, **arguments: Any) -> NextStep:
    return NextStep(tool=tool, arguments=arguments, why=why)


class TunewrightServer(MCPServer[App]):
    """MCPServer whose tools refuse unknown arguments and whose every failure reads as pipeline/errors.py says."""

    async def call_tool(
        self, name: str, arguments: dict[str, Any], context: Context[App, Any] | None = None
    ) -> CallToolResult | InputRequiredResult:
        if tool := self._tool_manager.get_tool(name):
            _refuse_truths(name, tool.parameters["properties"], arguments)
        try:
            result = await super().call_tool(name, arguments, context)
        except ToolError as error:
            raise ToolError(_bounded(redact.without_secrets(await self._explain(name, error)))) from None
        except SystemExit as error:
            # A library that calls sys.exit would stop the event loop with the wire still open: the client would hang.
            raise ToolError(_unforeseen(name, error)) from None
        return _told_as_text(result) if isinstance(result, CallToolResult) else result

    async def get_prompt(
        self, name: str, arguments: dict[str, Any] | None = None, context: Context[App, Any] | None = None
    ) -> GetPromptResult | InputRequiredResult:
        try:
            return await super().get_prompt(name, arguments, context)
        except ValueError as error:
            # The SDK would answer with an internal error, and log a traceback for each misspelt name.
            known = "; ".join(_usage(prompt) for prompt in await self.list_prompts())
            raise MCPError(INVALID_PARAMS, f"{error}. Prompts: {known}.") from None

    async def _explain(self, name: str, error: ToolError) -> str:
        cause = error.__cause__
        if isinstance(cause, TunewrightError):
            return str(cause)
        # The SDK reports a result that fails its own schema as unexpected; that is no fault of the arguments.
        if isinstance(cause, ValidationError) and not isinstance(error, UnexpectedToolError):
            tool = next(tool for tool in await self.list_tools() if tool.name == name)
            return _argument_errors(name, tool.input_schema, cause)
        if cause is None:
            tools = await self.list_tools()
            return f"unknown_tool: There is no tool {name!r}. {_meant(name, tools)} Nothing was done."
        return _unforeseen(name, cause)

    async def run_stdio_on(self, wire: int) -> None:
        """Serves until stdin ends, answering on the descriptor `wire`, which it closes.

        `run()` answers on descriptor 1 and puts it aside only while it serves: a thread that prints a moment before or
        after that breaks the protocol. Reaches into `_lowlevel_server`, as `run_stdio_async` does.
        """
        server = self._lowlevel_server
        with os.fdopen(wire, "w", encoding="utf-8") as output:
            async with stdio_server(stdout=anyio.wrap_file(output)) as (requests, answers):
                await server.run(requests, answers, server.create_initialization_options())

    def seal(self) -> None:
        """Makes every registered tool refuse arguments that it does not have. To be called after registration.

        The SDK drops them silently, so a misspelt argument would be ignored. Also drops what tells an agent nothing:
        titles that pydantic makes of names, the indentation of docstrings. This reaches into `fn_metadata`, which is
        private to the SDK; tests/tools/test_framework.py holds it.
        """
        for tool in self._tool_manager.list_tools():
            model = tool.fn_metadata.arg_model
            model.model_config["extra"] = "forbid"
            model.model_rebuild(force=True)
            tool.parameters["additionalProperties"] = False
            tool.description = inspect.cleandoc(tool.description)
            _shorten(tool.parameters)
            _shorten_optional(tool.parameters)


def _told_as_text(result: CallToolResult) -> CallToolResult:
    """The structured answer also as text, for hosts that read no other; pictures stay behind it.

    Without the indentation that the SDK gives it, which makes up half of the tokens of a curve.
    """
    text = TextContent(type="text", text=to_json(result.structured_content, inf_nan_mode="null").decode())
    pictures = [block for block in result.content if not isinstance(block, TextContent)]
    return result.model_copy(update={"content": [text, *pictures]})


def _usage(prompt: Prompt) -> str:
    """A prompt's name and arguments: `finetune(data, goal?, model?)`."""
    names = (argument.name + ("" if argument.required else "?") for argument in prompt.arguments or [])
    return f"{prompt.name}({', '.join(names)})"


def _bounded(text: str) -> str:
    """An error without the length of what was given: a caller's own megabyte tells it nothing."""
    shorter = LONG_WORD.sub(lambda match: f"{match[0][:KEPT_OF_WORD]}…", text)
    return shorter if len(shorter) <= MAX_ERROR_CHARACTERS else f"{shorter[:MAX_ERROR_CHARACTERS]}…"


def _meant(name: str, tools: Sequence[Tool]) -> str:
    """The tools that speak of what a guessed name says (`export_model`, `startFinetune`), else the nearest spelt."""
    words = [word.lower() for word in WORD.findall(name)]
    told = {tool.name: f"{tool.name} {tool.title} {tool.description}".lower() for tool in tools}
    # A word that many tools speak of (model, adapter) tells them apart less than one that few do.
    weight = {word: 1 / (1 + sum(word in text for text in told.values())) for word in words}
    score = {tool: sum(weight[word] for word in words if word in text) for tool, text in told.items()}
    for begin, tool in ELSEWHERE.items():
        if tool in score and any(word.startswith(begin) for word in words):
            score[tool] += 1
    best = sorted((tool for tool in told if score[tool]), key=lambda tool: -score[tool])[:NAMED_TOOLS]
    spelt = nearest(name, list(told))
    return f"{spelt} About that: {', '.join(best)}." if best else spelt


def _unforeseen(name: str, cause: BaseException) -> str:
    """Only the kind of failure: its own text may hold a secret."""
    log.error("tool %s failed", name, exc_info=cause)
    if files.is_disk_full(cause):
        return (
            f"no_disk_space: {name} failed, because the disk of the data home is full. Free some space; "
            "Next: list_artifacts(). What was half-written is removed."
        )
    return (
        f"internal_error: {name} failed with {type(cause).__name__}, which was not foreseen; the server's log "
        "(stderr) has the traceback. Next: check_environment(). What was done is not known: see get_status()."
    )


def _shorten(schema: Any) -> None:
    """Removes titles, `additionalProperties: true`, which is the default, and how long a text or a list may be: the
    server still refuses what is out of all proportion, and says so. A property called title is a schema, and stays.
    """
    if isinstance(schema, dict):
        node = cast("dict[str, Any]", schema)
        if isinstance(node.get("title"), str):
            del node["title"]
        if node.get("additionalProperties") is True:
            del node["additionalProperties"]
        for length in LENGTHS:
            if isinstance(node.get(length), int):
                del node[length]
        for value in node.values():
            _shorten(value)
    elif isinstance(schema, list):
        for value in cast("list[Any]", schema):
            _shorten(value)


def _shorten_optional(parameters: dict[str, Any]) -> None:
    """Of an argument that may be left out the schema says its type alone.

    Not that null, which the server takes too, is the same as nothing, nor that a switch is off, a number nought and a
    list empty: both together took a sixth of the list.
    """
    properties: dict[str, dict[str, Any]] = parameters.get("properties", {})
    for name, schema in properties.items():
        options: list[dict[str, Any]] = schema.get("anyOf", [])
        if {"type": "null"} in options and schema.get("default", 0) is None:
            kept = [option for option in options if option != {"type": "null"}]
            del schema["default"], schema["anyOf"]
            properties[name] = {**kept[0], **schema} if len(kept) == 1 else {"anyOf": kept, **schema}
        elif schema.get("default", 1) in (False, "", [], {}):
            del schema["default"]
    for inner in parameters.get("$defs", {}).values():
        _shorten_optional(inner)


def _argument_errors(tool: str, schema: dict[str, Any], error: ValidationError) -> str:
    """The first few argument errors in one line: never the rejected value's surroundings, nor a documentation URL."""
    properties: dict[str, dict[str, Any]] = schema.get("properties", {})
    # One for each argument, the innermost: a union reports every branch that did not fit.
    worst: dict[str, ErrorDetails] = {}
    for problem in error.errors(include_url=False):
        field = str(problem["loc"][0])
        if field not in worst or len(problem["loc"]) > len(worst[field]["loc"]):
            worst[field] = problem
    parts = [_argument_error(tool, properties, field, problem) for field, problem in list(worst.items())[:4]]
    return f"invalid_arguments: {' '.join(parts)} Next: {tool}(…), corrected. Nothing was done."


def _refuse_truths(tool: str, properties: dict[str, dict[str, Any]], arguments: dict[str, Any]) -> None:
    """Raises ToolError where true or false is given for a number: pydantic would take max_steps=true for one step."""
    wrong: list[str] = []
    for field, schema in properties.items():
        types = {option.get("type") for option in schema.get("anyOf", [schema])}
        if isinstance(arguments.get(field), bool) and types & {"integer", "number"} and "boolean" not in types:
            wrong.append(f"{field}={arguments[field]}: Input should be a number. {_allowed(schema)}")
    if wrong:
        raise ToolError(f"invalid_arguments: {' '.join(wrong)} Next: {tool}(…), corrected. Nothing was done.")


def _argument_error(tool: str, properties: dict[str, dict[str, Any]], field: str, problem: ErrorDetails) -> str:
    inner = [str(part) for part in problem["loc"][1:]]
    if problem["type"] == "extra_forbidden":
        if not inner:
            known = f" It has: {', '.join(properties)}." if len(properties) <= FEW_ARGUMENTS else ""
            return f"{field!r} is no argument of {tool}. {nearest(field, _akin(field.lower(), properties))}{known}"
        return f"{field!r} holds {inner[-1]!r}, which is not known there."
    where = ".".join([field, *(part for part in inner if not UNION_BRANCH.search(part))])
    if problem["type"] == "missing":
        return f"{where!r} is required."
    allowed = _allowed(properties.get(field, {})) if where == field else ""
    return f"{where}={repr(problem['input'])[:60]}: {problem['msg']}. {allowed}".strip()


def _akin(field: str, properties: dict[str, dict[str, Any]]) -> list[str]:
    """The arguments that `field` abbreviates (lr, rank) or spells out (num_train_epochs), else all of them."""
    akin = [
        name
        for name in properties
        if field in name.split("_") or field == "".join(word[0] for word in name.split("_")) or name in field
    ]
    return akin or sorted(properties)


def _allowed(schema: dict[str, Any]) -> str:
    options: list[dict[str, Any]] = schema.get("anyOf", [schema])
    words: list[str] = []
    for option in options:
        if "enum" in option or "const" in option:
            words.append("one of " + ", ".join(str(value) for value in option.get("enum", [option.get("const")])))
        elif option.get("type") not in (None, "null"):
            low = option.get("minimum", option.get("exclusiveMinimum"))
            high = option.get("maximum", option.get("exclusiveMaximum"))
            bounds = f" from {low} to {high}" if low is not None and high is not None else ""
            words.append(f"{option['type']}{bounds}")
    return f"Allowed: {' or '.join(words)}." if words else ""


def with_arguments(model: type[BaseModel]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Gives a tool that ends in `**name` the fields of `model` as its own flat arguments: bounds stand in one place."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(function, eval_str=True)
        own = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        fields = [
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=field.get_default(call_default_factory=True),
                annotation=Annotated[(field.annotation, *field.metadata, Field(description=field.description))],
            )
            for name, field in model.model_fields.items()
        ]  # fmt: skip
        function.__signature__ = signature.replace(parameters=[*own, *fields])  # type: ignore[attr-defined]
        return function

    return decorate
