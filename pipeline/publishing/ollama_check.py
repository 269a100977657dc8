"""What is checked on a running Ollama server before a model gets its name: parameters, prompt and a first answer.

Covers the usual causes of "my model is different in Ollama": a lost or different template, the thinking switch the
other way round, a missing stop, a doubled BOS, lost parameters. Does not measure how good the answers are.
"""

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunewright.pipeline.chat_template import ChatTemplate, Message
from tunewright.pipeline.data import splits
from tunewright.pipeline.errors import TunewrightError, call
from tunewright.pipeline.publishing import lineage
from tunewright.pipeline.publishing.modelfile import Modelfile
from tunewright.pipeline.store import Row
from tunewright.pipeline.workspace import Workspace

if TYPE_CHECKING:
    from tunewright.pipeline.publishing.ollama_client import OllamaClient

HELLO: list[Message] = [{"role": "user", "content": "Hello"}]
REPLY_TOKENS = 96
THINK_TOKENS = ("<think>", "</think>")


def check(workspace: Workspace, client: "OllamaClient", model: str, export: Row, made: Modelfile) -> dict[str, Any]:
    """Checks `model` on the server; returns what was seen, ready to be stored. The model is unloaded afterwards.

    Raises TunewrightError `ollama_check_failed`, and whatever the client raises.
    """
    thinking = export["document"].get("enable_thinking", False)
    template = ChatTemplate(lineage.tokenizer_folder(workspace, export), enable_thinking=thinking)
    _check_parameters(export, client.show(model).parameters or "", made)
    messages, expected = _prompt(workspace, export, template, made)
    rendered = client.rendered(model, messages)
    if rendered is not None:
        _check_prompt(export, expected, rendered, _control_tokens(template))
    # Greedy, so that the same model passes or fails the same way again.
    options = {"temperature": 0, "num_predict": REPLY_TOKENS}
    reply = client.chat(model, messages, options=options, keep_alive=0)
    prompt_tokens = len(template.ids(expected))
    _check_reply(export, reply.message.content or "", reply.message.thinking or "", _control_tokens(template), thinking)
    if (reply.prompt_eval_count or 0) > prompt_tokens:
        raise _failed(
            export, f"the prompt has {reply.prompt_eval_count} tokens on the server and {prompt_tokens} in training: "
            "something is put in front of it, usually a second BOS",
        )  # fmt: skip
    return {
        "parameters": "kept",
        "prompt": "as trained" if rendered is not None else "not told by this server",
        "prompt_tokens": {"trained": prompt_tokens, "server": reply.prompt_eval_count},
        "asked": messages[-1]["content"][:500],
        "answered": (reply.message.content or "")[:500],
        "ended": reply.done_reason,
    }


def training_opening(workspace: Workspace, export: Row) -> list[Message]:
    """The first conversation of the dataset's evaluation rows (or training rows) up to its first question, or []."""
    dataset = lineage.dataset_of(workspace, export)
    return splits.first_question(Path(dataset["document"]["path"])) if dataset else []


def _prompt(workspace: Workspace, export: Row, template: ChatTemplate, made: Modelfile) -> tuple[list[Message], str]:
    """The messages to send, and the text that training would have made of them with the Modelfile's system message."""
    opening = training_opening(workspace, export)
    system: list[Message] = []
    if made.system is not None:
        # The Modelfile's own system message is what must arrive, so none is sent.
        system = [{"role": "system", "content": made.system}]
        opening = [message for message in opening if message["role"] != "system"]
    if opening:
        expected = template.render([*system, *opening], add_generation_prompt=True)
        if len(template.ids(expected)) + REPLY_TOKENS <= made.parameters["num_ctx"]:
            return opening, expected
    return HELLO, template.render([*system, *HELLO], add_generation_prompt=True)


def _control_tokens(template: ChatTemplate) -> list[str]:
    return [text for i in sorted(template.special_ids) if (text := template.tokenizer.id_to_token(i))]


def _check_parameters(export: Row, shown: str, made: Modelfile) -> None:
    """`shown` is the server's list, a name and a value per line, texts quoted as in JSON."""
    pairs = [tuple(line.strip().split(maxsplit=1)) for line in shown.splitlines() if line.strip()]
    numbers = dict(pair for pair in pairs if len(pair) == 2 and pair[0] != "stop")
    lost = [
        f"{name} {value}"
        for name, value in made.parameters.items()
        if name != "stop" and not math.isclose(float(numbers.get(name, "nan")), value, rel_tol=1e-5)
    ]
    stops = [json.dumps(stop, ensure_ascii=False) for stop in made.parameters["stop"]]
    lost += [f"stop {stop}" for stop in stops if ("stop", stop) not in pairs]
    if lost:
        raise _failed(export, f"the server did not keep {', '.join(lost)}")


def _check_prompt(export: Row, expected: str, rendered: str, control_tokens: list[str]) -> None:
    # The runtime puts a BOS in front of the tokens by itself, so the server may leave it out of the text.
    missing = expected.removesuffix(rendered)
    if rendered == expected or (missing != expected and missing in control_tokens):
        return
    same = next((i for i, (a, b) in enumerate(zip(expected, rendered, strict=False)) if a != b), len(rendered))
    start = max(same - 20, 0)
    raise _failed(
        export, f"the server's prompt differs from the training's: {rendered[start : start + 80]!r} instead of "
        f"{expected[start : start + 80]!r} (character {start})",
    )  # fmt: skip


def _check_reply(export: Row, content: str, thoughts: str, control_tokens: list[str], thinking: bool) -> None:
    """With thinking on, the answer may not have begun within REPLY_TOKENS; the thoughts count then."""
    if not content.strip() and not (thinking and thoughts.strip()):
        raise _failed(export, "the answer to the first prompt is empty")
    unwanted = [*control_tokens, *(() if thinking else THINK_TOKENS)]
    leaked = [token for token in unwanted if token in content]
    if leaked:
        raise _failed(export, f"the answer holds the control tokens {', '.join(leaked)}: {content[:200]!r}")


def _failed(export: Row, what: str) -> TunewrightError:
    outputs = [file["output"] for file in export["document"]["files"] if file["output"].startswith("gguf:")]
    return TunewrightError(
        "ollama_check_failed",
        f"On the Ollama server, {what}.",
        allowed="The model must get the prompt that it was trained on and answer it. Usual remedies: a newer Ollama, "
        "or the export made again with verify=true.",
        next=call("merge_and_export", adapter_id=export["document"]["adapter_id"], outputs=outputs),
        done="The model was removed again; a model that had the name before is unchanged.",
    )
