"""What is checked on a running Ollama server before a model gets its name: parameters, prompts and answers.

Covers the usual causes of "my model is different in Ollama": a lost or different template, the thinking switch the
other way round, a missing stop, a doubled BOS, lost parameters, other weights. The prompts and the answers are those
of the parity file where the export has one: the same conversations, greedily, in every way of asking that training
knew. Does not measure how good the answers are.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunewright.pipeline import files
from tunewright.pipeline.chat_template import ChatTemplate, Message
from tunewright.pipeline.data import splits
from tunewright.pipeline.exporting.parity.texts import first_difference
from tunewright.pipeline.publishing import lineage, ollama_answers
from tunewright.pipeline.publishing.modelfile import Modelfile
from tunewright.pipeline.publishing.ollama_answers import Case, Interview
from tunewright.pipeline.publishing.ollama_plan import Plan
from tunewright.pipeline.store import Row
from tunewright.pipeline.workspace import Workspace

if TYPE_CHECKING:
    from tunewright.pipeline.publishing.ollama_client import OllamaClient

HELLO: list[Message] = [{"role": "user", "content": "Hello"}]


def check(
    workspace: Workspace, client: "OllamaClient", model: str, plan: Plan, step: Callable[[str, int, int], None]
) -> dict[str, Any]:
    """Checks `model` on the server; returns what was seen, ready to be stored. `failures` says what is wrong, if any.

    `step` is told what is done, and how far it is, and may raise to stop. Raises whatever the client raises.
    """
    thinking = plan.export["document"].get("enable_thinking", False)
    template = ChatTemplate(lineage.tokenizer_folder(workspace, plan.export), enable_thinking=thinking)
    control = template.control_tokens
    lost = _lost_parameters(client.show(model).parameters or "", plan.modelfile)
    cases = cases_of(workspace, plan, template)
    # Trained without thinking, the model must get the same prompt whether a request says so or says nothing.
    ways = (None,) if thinking else (None, False)
    told, wrong = _prompts(client, model, cases, ways, control, step)
    interview = Interview(
        client, model, plan.modelfile, thinking, control, lambda text: len(template.ids(text)),
        free=plan.quantize is not None,
    )  # fmt: skip
    interview.ask(cases, ways, lambda number: step("comparing answers", number, len(cases)))
    return {
        "parameters": "differ" if lost else "kept",
        "prompt": _on_prompts(told, wrong),
        "prompts": len(cases),
        **_first(interview, cases),
        "answers": _on_answers(interview, plan),
        "failures": [*lost, *wrong, *interview.faults, *(() if interview.free else interview.differences)],
    }


def cases_of(workspace: Workspace, plan: Plan, template: ChatTemplate) -> list[Case]:
    """The conversations to ask, with the prompts of training; at least one. Others too long for num_ctx are left out.

    They are the parity file's, with the answers recorded of the file that is sent, else the first question of the
    data, else a greeting. With a system message in the Modelfile none is sent, so that the Modelfile's must arrive;
    an answer was then recorded for the same prompt only where training began with the same message.
    """
    system = plan.modelfile.system
    before: list[Message] = [] if system is None else [{"role": "system", "content": system}]
    cases: list[Case] = []
    for asked, recorded in [*_recorded(plan), (training_opening(workspace, plan.export), None), (HELLO, None)]:
        sent = [message for message in asked if message["role"] != "system"] if before else asked
        if not sent or (cases and recorded is None):
            continue
        prompt = template.render([*before, *sent], add_generation_prompt=True)
        answer = len(recorded["tokens"]) if recorded else 0
        tokens = len(template.ids(prompt)) + max(ollama_answers.FREE_TOKENS, answer)
        if tokens > plan.modelfile.parameters["num_ctx"] and asked is not HELLO:
            continue
        same = not before or prompt == template.render(asked, add_generation_prompt=True)
        cases.append(Case(sent, prompt, recorded if same else None))
    return cases


def training_opening(workspace: Workspace, export: Row) -> list[Message]:
    """The first conversation of the dataset's evaluation rows (or training rows) up to its first question, or []."""
    dataset = lineage.dataset_of(workspace, export)
    return splits.first_question(Path(dataset["document"]["path"])) if dataset else []


def _recorded(plan: Plan) -> list[tuple[list[Message], Any]]:
    """The parity file's conversations with what the file that is sent answered; [] where nothing was measured."""
    file = Path(plan.export["document"]["path"]) / "parity.json"
    parity = files.read_json(file) if file.is_file() else {}
    answers = parity.get("outputs", {}).get(plan.source, {}).get("answers") or []
    return list(zip(parity.get("cases", {}).get("asked", []), answers, strict=False))


def _lost_parameters(shown: str, made: Modelfile) -> list[str]:
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
    return [f"the server did not keep {', '.join(lost)}"] if lost else []


def _prompts(
    client: "OllamaClient",
    model: str,
    cases: list[Case],
    ways: tuple[bool | None, ...],
    control_tokens: list[str],
    step: Callable[[str, int, int], None],
) -> tuple[bool, list[str]]:
    """Whether the server tells its prompts, and what is wrong with them: one sentence for each way of asking."""
    wrong: dict[bool | None, str] = {}
    for number, case in enumerate(cases):
        step("comparing prompts", number, len(cases))
        for think in ways:
            rendered = client.rendered(model, case.messages, think=think)
            if rendered is None:
                return False, []
            if think not in wrong and (difference := _difference(case.prompt, rendered, control_tokens)):
                way = "" if think is None else f" asked with think={str(think).lower()}"
                wrong[think] = f"the server's prompt{way} differs from the training's: {difference}"
    return True, list(wrong.values())


def _difference(expected: str, rendered: str, control_tokens: list[str]) -> str:
    # The runtime puts a BOS in front of the tokens by itself, so the server may leave it out of the text.
    missing = expected.removesuffix(rendered)
    if rendered == expected or (missing != expected and missing in control_tokens):
        return ""
    same = first_difference(expected, rendered)
    start = max(same - 20, 0)
    return f"{rendered[start : start + 80]!r} instead of {expected[start : start + 80]!r} (character {same})"


def _on_prompts(told: bool, wrong: list[str]) -> str:
    if not told:
        return "not told by this server"
    return "differs" if wrong else "as trained"


def _first(interview: Interview, cases: list[Case]) -> dict[str, Any]:
    """The first question and its answer, for people to read."""
    case = next((case for case in cases if case.recorded), cases[0])
    reply = interview.first
    return {
        "prompt_tokens": {
            "trained": interview.count_tokens(case.prompt),
            "server": reply.prompt_eval_count if reply else None,
        },
        "asked": case.messages[-1]["content"][:500],
        "answered": (reply.message.content or "")[:500] if reply else "",
        "ended": reply.done_reason if reply else None,
    }


def _on_answers(interview: Interview, plan: Plan) -> dict[str, Any]:
    """The comparison in numbers, and why there is none or what it can show."""
    if not interview.compared:
        changed = plan.modelfile.system is not None and _recorded(plan)
        why = (
            "the Modelfile's system message makes other prompts than those that were answered in the export"
            if changed
            else "no answers were recorded in the export"
        )
        return {"compared": 0, "why": why}
    counts: dict[str, Any] = {"compared": interview.compared, "equal": interview.equal, "ties": interview.ties}
    if plan.quantize:
        counts["why"] = f"quantized on the server: not the weights of {plan.source}, so answers may differ"
    return {**counts, "with": plan.source}
