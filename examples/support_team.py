"""A conversation from "Make this model talk like our support team" to a published model, played and written down.

`python examples/support_team.py OWNER/NAME OLLAMA_NAME` plays it on this machine and prints it as Markdown. It uploads
the tuned toy, private, to the Hub as OWNER/NAME (HF_ENDPOINT, HF_TOKEN), and to the Ollama server of OLLAMA_HOST.
transcript.md is such a run; tests/examples/test_transcript.py made it, with stand-ins for both services.

Every call is made and every figure comes from its result. The words of the two people stand here. Where they claim what
a run might not bear out, `Conversation.holds` looks first: a transcript that says what is not so is never written.
"""

import asyncio
import json
import sys
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from mcp import Client

from tunewright.examples.session import Answer, ToolFailed, call, connect, follow

DATA = Path(__file__).parent / "data" / "support_tickets.jsonl"
GREETING = "Hello from Fernhill!"
QUESTIONS = ("My chain fell off, what now?", "Do you sell tents?")
# What the toy needs of the plan's arguments to be others: it has four million parameters.
FOR_THE_TOY: dict[str, Any] = {"learning_rate": 3e-3, "lora_rank": 32, "lora_alpha": 32, "epochs": 6}
# An answer of the team has some eighty of the toy's tokens.
ANSWER_TOKENS = 96
WIDTH = 100

HEAD = """\
# From "Make this model talk like our support team" to a published model

Mara has a bicycle shop and a file of support tickets. Her assistant is an agent with Tunewright's tools. The words are
written; **every call and every result below is from one real run** over stdio (`examples/support_team.py`). Results are
shortened to what the assistant needed of them: `…` marks what was cut out of a text, and whole fields are left out.
Where a job took longer than one call waits, the call was made again, and the last answer is shown.

The model is the built-in toy of four million parameters, so that this runs in minutes on any laptop. **A toy learns
form, not sense**: keep that in mind when it speaks. The shop, its tickets and its people are made up."""


class Contradicted(RuntimeError):
    """The run does not bear out what the words say."""


@dataclass
class Conversation:
    """The conversation so far, as Markdown. `instead` says what to write in the place of this machine's own names."""

    client: Client
    instead: Mapping[str, str]
    parts: list[str] = field(default_factory=list[str])
    calls: list[tuple[str, Answer]] = field(default_factory=list[tuple[str, Answer]])

    def mara(self, text: str) -> None:
        self.parts.append(f"**Mara:** {text}")

    def assistant(self, text: str) -> None:
        self.parts.append(f"**Assistant:** {text}")

    async def call(self, tool: str, shown: Callable[[Answer], Answer], **arguments: Any) -> Answer:
        """Calls the tool and writes down the call, and what `shown` takes of the result."""
        answer = await call(self.client, tool, **arguments)
        self._write(tool, arguments, shown(answer))
        return answer

    async def refused(self, tool: str, **arguments: Any) -> None:
        """Calls a tool that must refuse, and writes down the error. Raises Contradicted where it does not."""
        try:
            await call(self.client, tool, **arguments)
        except ToolFailed as error:
            what, _, ways_on = str(error).partition(". ")
            self._write(tool, arguments, {"error": f"{what}. … Next: {ways_on.partition('Next: ')[2]}"})
            return
        raise Contradicted(f"{tool}({arguments}) was to be refused")

    async def job(self, started: Answer, shown: Callable[[Answer], Answer]) -> Answer:
        """Follows a job to its end and writes down the last look at it. Raises ToolFailed unless it succeeded."""
        status = await follow(self.client, started["job_id"])
        look = started["next_steps"][0]
        self._write(look["tool"], look["arguments"], {"state": status["state"], **shown(status)})
        return status["result"]

    def holds(self, true: bool, claim: str) -> None:
        if not true:
            raise Contradicted(claim)

    def _write(self, tool: str, arguments: Answer, shown: Answer) -> None:
        self.calls.append((tool, arguments))
        given = ", ".join(f"{name}={_literal(value)}" for name, value in arguments.items())
        lines = [line for name, value in shown.items() for line in self._shown(name, value)]
        # Not a block of Python: it would be formatted by whoever formats this repository.
        self.parts.append("\n".join(["```text", *_wrapped(self._here(f"→ {tool}({given})")), *lines, "```"]))

    def _here(self, text: str) -> str:
        for own, other in self.instead.items():
            text = text.replace(own, other)
        return text

    def _shown(self, name: str, value: object) -> list[str]:
        """A field of a result as YAML: one line where it fits, lists item by item, long texts as a block."""
        text = self._here(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)).rstrip("\n")
        if isinstance(value, list) and len(text) > WIDTH:
            items = [_wrapped(f"  - {self._here(str(item))}") for item in cast("list[object]", value)]
            return [f"{name}:", *(line for item in items for line in item)]
        if isinstance(value, str) and ("\n" in text or len(text) > WIDTH):
            lines = [
                part for line in text.split("\n") for part in textwrap.wrap(line, WIDTH, break_on_hyphens=False) or [""]
            ]
            return [f"{name}: |", *(f"  {line}".rstrip() for line in lines)]
        return [f"{name}: {text}"]


def _wrapped(line: str) -> list[str]:
    return textwrap.wrap(line, WIDTH, subsequent_indent="    ", break_on_hyphens=False)


def _literal(value: object) -> str:
    """As Python: strings in double quotes, inside lists and dictionaries too."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str | list | dict) else repr(value)


def fields(*names: str) -> Callable[[Answer], Answer]:
    return lambda answer: {name: answer[name] for name in names}


def _counts(found: Mapping[str, Answer]) -> dict[str, int]:
    return {reason: entry["count"] for reason, entry in found.items()}


def _prepared(answer: Answer) -> Answer:
    found = {kind: answer["found"][kind] for kind in ("secrets", "personal_data") if kind in answer["found"]}
    cleaned = {part: _counts(answer[part]) for part in ("dropped", "mended")}
    return {**fields("dataset_id", "rows_read", "train_rows", "eval_rows")(answer), **cleaned, "found": found}


async def play(client: Client, repo_id: str, model_name: str, instead: Mapping[str, str]) -> Conversation:
    """Plays the conversation. Raises ToolFailed where a call fails, Contradicted where the words would not be true."""
    conversation = Conversation(client, {f"{DATA.parent}/": "", **instead})
    dataset_id = await _data(conversation)
    adapter_id = await _training(conversation, dataset_id)
    await _judging(conversation, adapter_id)
    export_id = await _export(conversation, adapter_id)
    await _to_hub(conversation, export_id, repo_id)
    await _to_ollama(conversation, export_id, model_name)
    return conversation


async def _data(talk: Conversation) -> str:
    talk.mara(
        "Make this model talk like our support team. The tickets are in `support_tickets.jsonl`, the model is the "
        "toy. I want to see the whole way once before I pay for a GPU."
    )
    talk.assistant("Then I look at the machine and at your file first.")
    await talk.call("check_environment", lambda a: {"device": a["device"], "toy_model": a["usable"]["toy_model"]})
    await talk.refused("prepare_dataset", source=str(DATA), model="toy")
    talk.assistant(
        "The columns have names of their own, and the error guesses which is which. Its sample agrees: `customer` "
        "asks, `agent` answers. I also hold back 15 % of the tickets instead of 5 %, or there would be four or five "
        "to judge by."
    )
    given: dict[str, Any] = {
        "source": str(DATA), "model": "toy", "mapping": {"prompt": "customer", "response": "agent"},
        "eval_fraction": 0.15,
    }  # fmt: skip
    first = await talk.call("prepare_dataset", _prepared, **given)
    dropped, mended = _counts(first["dropped"]), _counts(first["mended"])
    talk.assistant(
        f"Of {first['rows_read']} tickets {dropped['duplicate'] + dropped['near_duplicate']} say what another one "
        f"says, and {dropped['empty']} were never answered: they are left out. In {mended['control_tokens']} answers "
        f"some bot had left `<|im_end|>` behind, and {mended['html']} held HTML; both are taken out, or the model "
        "would learn to print them.\n\n"
        f"Two things I do not decide alone. There is a **password** in {first['found']['secrets']['password_in_url']} "
        f"answer, inside a web address, and {first['found']['personal_data']['phone']} customers left their **phone "
        "number**. A model can say such things to anybody."
    )
    talk.mara("A password?! Leave that ticket out. And hide the numbers.")
    chosen = {"secrets": "drop", "personal_data": "mask"}
    dataset = await talk.call("prepare_dataset", _prepared, **given, cleaning=chosen)
    talk.holds(not {"secrets", "personal_data"} & dataset["found"].keys(), "the second dataset is clean")
    dataset_id = dataset["dataset_id"]
    await talk.call("inspect_dataset", _masked, dataset_id=dataset_id, view="mask", rows=1, model="toy")
    talk.assistant(
        f"Clean: {dataset['train_rows']} tickets to train on, {dataset['eval_rows']} held back. Above is one as the "
        "model will see it. It reads the first part and learns the second: your team's answer and the token that "
        "ends it. Do change that password, please; others have read the tickets too."
    )
    return dataset_id


def _masked(answer: Answer) -> Answer:
    read, learned, *_ = (part["text"] for part in answer["rows"][0]["segments"])
    return {"only read": read.rstrip(), "learned": learned}


async def _training(talk: Conversation, dataset_id: str) -> str:
    talk.mara("Done. How would you train it?")
    reasons = ("epochs", "lora_rank", "max_seq_length")
    plan = await talk.call(
        "plan_finetune",
        lambda a: {
            **fields("device", "peak_gib", "steps", "time_s")(a),
            **{f"why {name}": a["reasons"][name] for name in reasons}, "warnings": a["warnings"][0],
        },
        dataset_id=dataset_id, model="toy",
    )  # fmt: skip
    train = plan["next_steps"][0]
    planned = train["arguments"]
    talk.assistant(
        f"With LoRA, which trains a small addition and leaves the model as it is: {planned['epochs']:g} passes, "
        f"{plan['steps']} steps. That suits a real model. The toy is some two thousand times smaller than Qwen3-8B "
        f"and wants larger steps: a learning rate of {FOR_THE_TOY['learning_rate']:g} instead of "
        f"{planned['learning_rate']:g}, a higher rank and {FOR_THE_TOY['epochs']} passes.\n\n"
        "To be honest about what comes: it can learn how your letters begin, how they end and how long they are. "
        "What a puncture is, it cannot. And the plan's warning is for you: so few tickets teach a tone, no knowledge."
    )
    talk.mara("Understood. Go.")
    started = await talk.call(train["tool"], fields("job_id", "state", "plan"), **planned | FOR_THE_TOY)
    result = await talk.job(
        started, lambda status: {**_curves(status), "adapter_id": status["result"]["adapter_id"]},
    )  # fmt: skip
    first, last = result["train_loss_first"], result["train_loss_last"]
    talk.holds(last < 0.7 * first, "the training loss has fallen")
    talk.assistant(
        f"The loss fell from {first:.2f} to {last:.2f}; on the tickets held back, which it never trained on, it ends "
        f"at {result['eval_loss']:.2f}. Let us hear it, beside the model as it was."
    )
    return result["adapter_id"]


def _curves(status: Answer) -> Answer:
    return {name: {at: curve[at] for at in ("first", "last")} for name, curve in status["shape"].items()}


async def _judging(talk: Conversation, adapter_id: str) -> None:
    for question in QUESTIONS:
        reply = await talk.call(
            "chat_with_adapter", lambda a: {who: a[who]["text"] for who in ("base", "tuned")},
            adapter_id=adapter_id, prompt=question, compare_with_base=True, temperature=0, max_new_tokens=ANSWER_TOKENS,
        )  # fmt: skip
        tuned, base = reply["tuned"]["text"], reply["base"]["text"]
        talk.holds(tuned.startswith(GREETING) and GREETING not in base, "only the tuned one greets")
    talk.mara("It says hello like us! But what does it say then?")
    talk.assistant("Nothing. That is what I meant by form. Now with figures, on the tickets that were held back.")
    started = await talk.call(
        "validate_adapter", fields("job_id", "state"), adapter_id=adapter_id, max_new_tokens=ANSWER_TOKENS
    )
    result = await talk.job(started, lambda status: {"sentence": status["result"]["sentence"], **_measured(status)})
    loss, chrf, exact = (result["metrics"][name] for name in ("loss", "chrf", "exact_match"))
    talk.holds(loss["difference"]["high"] < 0 < chrf["difference"]["low"], "better, with the interval clear of zero")
    talk.holds(exact["tuned"]["value"] == 0, "no answer is right word for word")
    talk.assistant(
        "It is closer to your team, and not by chance: likeness in letters (chrF, of 100) went from "
        f"{chrf['base']['value']:.0f} to {chrf['tuned']['value']:.0f}, and the brackets stay clear of zero. But not "
        f"one of {result['samples']} answers is right: the likeness is your greeting, your farewell and the length. I "
        "would put this model before no customer. As a rehearsal it has shown what it should."
    )


def _measured(status: Answer) -> Answer:
    metrics = status["result"]["metrics"]
    return {
        name: {who: metrics[name][who]["value"] for who in ("base", "tuned")}
        for name in ("loss", "chrf", "exact_match")
    }


async def _export(talk: Conversation, adapter_id: str) -> str:
    talk.mara("Nor would I. But rehearse the rest, too: how does it get to our machines?")
    started = await talk.call(
        "merge_and_export", fields("job_id", "state"), adapter_id=adapter_id, outputs=["lora", "gguf:q8_0"]
    )
    result = await talk.job(started, _exported)
    gguf = result["parity"]["outputs"]["gguf:q8_0"]
    talk.holds(result["parity"]["passed"], "the file is what was trained")
    talk.assistant(
        f"One file of {gguf['bytes'] / 1e6:.1f} MB for Ollama and llama.cpp, and the adapter alone. The file was run "
        f"and compared with the model that was trained: they agree on {gguf['top1']:.1%} of the next tokens, and "
        f"{gguf['greedy_equal']} of {gguf['greedy_of']} whole answers are the same word for word. Had it failed, the "
        "next calls would have been refused."
    )
    return result["export_id"]


def _exported(status: Answer) -> Answer:
    result = status["result"]
    return {
        "export_id": result["export_id"],
        "files": {file["output"]: file["bytes"] for file in result["files"]},
        "passed": result["parity"]["passed"],
        "gguf:q8_0": result["parity"]["outputs"]["gguf:q8_0"],
    }


async def _to_hub(talk: Conversation, export_id: str, repo_id: str) -> None:
    talk.mara(f"On the Hub, please, as `{repo_id}`.")
    looked = await talk.call(
        "publish_to_hub",
        lambda a: {
            "state": a["state"], **fields("url", "private")(a["plan"]),
            "files": [file["path"] for file in a["plan"]["files"]], "warnings": a["plan"]["warnings"],
        },
        artifact_id=export_id, repo_id=repo_id, dry_run=True,
    )  # fmt: skip
    plan = looked["plan"]
    talk.holds(plan["private"] and bool(plan["warnings"]), "private, with a word on the licence")
    talk.assistant(
        f"This was a dry run: nothing has left the machine. It would be {len(plan['files'])} files, "
        f"{plan['bytes'] / 1e6:.1f} MB, **private**, with a model card that holds the figures above, the bad ones "
        "too. Your tickets are not among them. The warning is about the toy, which has no licence; for a real base "
        "model its own would stand there. Shall I?"
    )
    talk.mara("Yes.")
    await talk.call(
        "publish_to_hub",
        lambda a: {"state": a["state"], **fields("url", "private", "publication_id")(a["publication"])},
        **looked["next_steps"][0]["arguments"],
    )  # fmt: skip


async def _to_ollama(talk: Conversation, export_id: str, model_name: str) -> None:
    talk.mara(f"And into the Ollama in our office, as `{model_name}`.")
    looked = await talk.call(
        "publish_to_ollama",
        lambda a: {"state": a["state"], **fields("steps", "modelfile")(a["plan"])},
        export_id=export_id, model_name=model_name, dry_run=True,
    )  # fmt: skip
    talk.assistant(
        "The template, the stop tokens and the sampling are those of the training; a model that gets others answers "
        "differently, and nobody knows why. So it is made under another name first, asked there what the file was "
        "asked before, and named only if it answers the same. Shall I?"
    )
    talk.mara("Please.")
    published = await talk.call(
        "publish_to_ollama",
        lambda a: {
            "state": a["state"], "publication_id": a["publication"]["publication_id"],
            **fields("parameters", "prompt", "answers")(a["publication"]["checks"]),
        },
        **looked["next_steps"][0]["arguments"],
    )  # fmt: skip
    answers = published["publication"]["checks"]["answers"]
    talk.holds(answers["equal"] + answers["ties"] == answers["compared"] > 0, "Ollama answers as the file did")
    await talk.call(
        "list_artifacts",
        lambda a: {"artifacts": [f"{line['name']} ({line['id']})" for line in a["artifacts"]]},
        kind="publication",
    )
    talk.assistant(
        f"Both are done: `ollama run {model_name}` greets like Fernhill. For the real one the calls stay the same, "
        "with "
        '`model="unsloth/Qwen3-8B"`, a machine with a GPU, and the learning rate as planned. Bring more tickets: a few '
        "hundred good ones teach more than any setting. And let me validate it again before a customer hears it."
    )
    talk.mara("Then I know what I am paying for. Thank you!")


def markdown(conversation: Conversation, remark: str = "") -> str:
    """The conversation as a page; `remark` says what else a reader must know of how it was made."""
    return "\n\n".join([HEAD, *([remark] if remark else []), *conversation.parts]) + "\n"


async def main(repo_id: str, model_name: str) -> None:
    async with connect(None, "--allow-dir", str(DATA.parent)) as client:
        print(markdown(await play(client, repo_id, model_name, {str(Path.home()): "~"})))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
