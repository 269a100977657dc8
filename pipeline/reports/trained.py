"""How an adapter was trained, in the form that the page shows: what was asked, the data, the plan, the curves."""

from collections.abc import Mapping
from typing import Any

from tunewright.pipeline import status
from tunewright.pipeline.reports import curves, evidence, words
from tunewright.pipeline.reports.evidence import Evidence
from tunewright.pipeline.store import Row
from tunewright.pipeline.training import request
from tunewright.pipeline.training.alerts import LIKELIHOOD
from tunewright.pipeline.training.arguments import TrainingArguments
from tunewright.pipeline.workspace import Workspace

# What a reader looks for first; the other arguments follow.
FIRST = (
    "finetuning_type", "load_in_4bit", "max_seq_length", "packing", "epochs", "max_steps", "batch_size",
    "gradient_accumulation", "learning_rate", "lr_scheduler", "lora_rank", "lora_alpha", "rewards",
)  # fmt: skip
PLANNED = {
    "tokens_per_s": ("speed", "tokens/s", words.count),
    "peak_gib": ("peak memory", "GiB", words.figure),
    "time_s": ("time", "", words.duration),
    "steps": ("steps", "", words.count),
}
SHOWN_EVALUATIONS = 12
SHOWN_EVENTS = 100


def numbers(workspace: Workspace, run: Row, described: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """The run in a few figures: what, how much, and what goes with it."""
    result: dict[str, Any] = run["result"] or {}
    shapes: dict[str, Any] = described["shape"]
    loss, evaluation = shapes.get("loss") or {}, shapes.get("eval_loss") or {}
    device_s = evidence.device_s(workspace, run)
    steps = result.get("steps") or described["done"]
    of = f"of {words.count(described['total'])}" if described["total"] and steps < described["total"] else ""
    tokens = result.get("train_tokens")
    found = [
        ("training loss", loss.get("last"), f"of the last step, from {words.figure(loss.get('first'))}"),
        ("eval loss", evaluation.get("last"), _best(evaluation)),
        ("margin", (shapes.get("margin") or {}).get("last"), f"from {_first(shapes, 'margin')}"),
        ("reward", (shapes.get("reward") or {}).get("last"), f"from {_first(shapes, 'reward')}"),
    ]
    told = [(name, words.figure(value), detail) for name, value, detail in found if value is not None]
    told.append(("steps", words.count(steps), of))
    if tokens:
        told.append(("tokens an epoch", words.size(tokens), ""))
    if speed := result.get("tokens_per_s") or described["tokens_per_s"]:
        told.append(("tokens/s", words.count(speed), "median"))
    if peak := result.get("peak_gib") or described["peak_gib"]:
        told.append(("peak memory", f"{peak:g} GiB", "of the device"))
    told.append(("time", words.duration(device_s), "on the device"))
    return told


def _best(shape: Mapping[str, Any]) -> str:
    if not shape:
        return ""
    if shape["best"] == shape["last"]:
        return f"from {words.figure(shape['first'])}, its best"
    return f"best {words.figure(shape['best'])} at step {words.count(shape['best_step'])}"


def _first(shapes: Mapping[str, Any], name: str) -> str:
    return words.figure((shapes.get(name) or {}).get("first"))


def asked(run: Row, adapter: Row | None, data: Row | None) -> dict[str, Any]:
    """`short`: in one sentence; `chosen`: the arguments that differ from their defaults, by the caller's wish or the
    planner's choice; `rest`; `lowered`: what the run took less of than planned, for want of memory.
    """
    spec, defaults = run["spec"], TrainingArguments.model_validate({}).model_dump()
    unread = {name for name, methods in request.READ_BY.items() if spec["method"] not in methods}
    arguments = {
        name: value for name, value in spec["arguments"].items() if value not in (None, []) and name not in unread
    }
    ordered = [*(name for name in FIRST if name in arguments), *(name for name in arguments if name not in FIRST)]
    chosen = [name for name in ordered if name != "name" and arguments[name] != defaults.get(name)]
    trained: dict[str, Any] = (adapter["document"].get("training") or {}) if adapter else {}
    lowered = [name for name in ordered if name in trained and trained[name] != arguments[name]]
    return {
        "short": _short(arguments, run["spec"], data),
        "chosen": [(name, words.value(arguments[name])) for name in chosen],
        "rest": [(name, words.value(arguments[name])) for name in ordered if name not in {*chosen, "name"}],
        "lowered": [
            (name, f"{words.value(arguments[name])} → {words.value(trained[name])}") for name in lowered
        ],
    }  # fmt: skip


def _short(arguments: Mapping[str, Any], spec: Mapping[str, Any], data: Row | None) -> str:
    rows = f"{words.count(data['document']['train_rows'])} rows of {data['name']}" if data else spec.get("dataset_id")
    form = arguments["finetuning_type"]
    if form == "lora":
        form = f"{'QLoRA' if arguments.get('load_in_4bit') else 'LoRA'} of rank {arguments.get('lora_rank')}"
    parts = [f"{spec['method']} on {rows}", form, f"learning rate {words.value(arguments.get('learning_rate'))}"]
    passes = arguments.get("max_steps"), arguments.get("epochs")
    parts.append(f"{words.count(passes[0])} steps" if passes[0] else f"{words.value(passes[1])} epochs")
    if spec.get("continue_from"):
        parts.append(f"going on from {spec['continue_from']}")
    return f"Asked for: {', '.join(parts)}."


def data(workspace: Workspace, job: Row, known: Evidence) -> dict[str, Any] | None:
    """Counts and lengths of the dataset and where its own report lies; None where it was deleted."""
    if known.dataset is None:
        return None
    document: dict[str, Any] = known.dataset["document"]
    spec = known.run["spec"] if known.run else {}
    limit = (spec.get("arguments") or {}).get("max_seq_length")
    facts = workspace.store.metrics(known.run["id"], "run") if known.run else []
    tokens: dict[str, Any] = document.get("tokens") or {}
    return {
        "id": known.dataset["id"],
        "name": known.dataset["name"],
        "link": evidence.folder_link(workspace, job, known.dataset),
        "document": document,
        "tokens": tokens,
        "limit": limit,
        "truncated": facts[-1]["numbers"].get("truncated_share") if facts else None,
        "histogram": _histogram(tokens.get("histogram") or [], limit),
    }


def _histogram(bins: list[dict[str, int]], limit: int | None) -> list[dict[str, Any]]:
    """Each bin with its height as a share of the highest, and whether its rows are longer than the run's limit."""
    most = max((entry["rows"] for entry in bins), default=0)
    return [
        {**entry, "height": entry["rows"] / most, "is_cut": limit is not None and entry["from"] >= limit}
        for entry in bins
        if most
    ]


def plan(described: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """What was planned and what came: name, planned, actual, the one as a share of the other."""
    rows: list[tuple[str, str, str, str]] = []
    for name, entry in described["plan"].items():
        title, unit, write = PLANNED[name]
        planned, actual = entry["planned"], entry["actual"]
        # Nothing is measured of the memory of a CPU.
        texts = [f"{write(value)} {unit}".strip() if value else "–" for value in (planned, actual)]
        shares = f"{actual / planned:.2f} ×" if planned and actual else ""
        rows.append((title, texts[0], texts[1], shares))
    return rows


def panels(workspace: Workspace, run: Row) -> dict[str, Any]:
    """The curves, and the evaluations as a table of at most SHOWN_EVALUATIONS rows, evenly taken."""
    train, evaluation = (workspace.store.metrics(run["id"], split) for split in ("train", "eval"))
    unit = "nats per token" if run["spec"].get("method") in LIKELIHOOD else "the method's loss"
    columns = [name for name in ("loss", "perplexity", "margin", "accuracy", "reward") if _has(evaluation, name)]
    few = evaluation
    if len(few) > SHOWN_EVALUATIONS:
        last = len(few) - 1
        few = [few[round(place * last / (SHOWN_EVALUATIONS - 1))] for place in range(SHOWN_EVALUATIONS)]
    return {
        "losses": curves.losses(train, evaluation, unit),
        "small": curves.small(train),
        "columns": columns,
        "evaluations": [(row["step"], [row["numbers"].get(name) for name in columns]) for row in few],
    }


def _has(rows: list[Row], name: str) -> bool:
    return any(name in row["numbers"] for row in rows)


def warnings(workspace: Workspace, run: Row, described: Mapping[str, Any]) -> list[str]:
    """What was said against the run before it began, while it ran and after, each once: an alert that holds as it is
    now, not as it was first told.
    """
    alerts = [f"{alert['message']} {alert['advice']}" for alert in described["alerts"]]
    known = {run["state"], *(alert["code"] for alert in described["alerts"])}
    events = workspace.store.events(run["id"], SHOWN_EVENTS)
    told = [event["message"] for event in events if event["level"] != "info" and event["code"] not in known]
    return list(dict.fromkeys([*alerts, *told, *run["spec"].get("warnings", [])]))


def made_with(workspace: Workspace, run: Row) -> list[tuple[str, str]]:
    """Seed, device, versions and the dataset's hash."""
    then = evidence.conditions(workspace, run)
    if not then:
        return []
    facts = {"device": then.get("device"), "model revision": then.get("model_revision"), **then.get("versions", {})}
    facts["dataset sha256"] = then["dataset"]["sha256"]
    return [(name, str(value)) for name, value in facts.items() if value]


def described(workspace: Workspace, job: Row) -> dict[str, Any]:
    """The job as get_status shows it."""
    return status.describe(workspace, job, events=0)
