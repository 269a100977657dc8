"""Tasks of EleutherAI's lm-evaluation-harness (GSM8K, IFEval and hundreds more), reported as the exams are. Heavy.

lm-eval: MIT, the field's common harness, monthly commits; an extra, for it brings twenty packages that few tasks need.
Guarantees: tuned and base answer the same requests, from one copy of the weights; what was answered is kept in the
harness's own cache, so that a killed job asks nothing twice. Prompts longer than MOST_TOKENS lose their beginning, as
the harness has it. Tasks that would run code written by a model are refused.
"""

import importlib
import json
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from datasets.exceptions import DatasetsError
from httpx import HTTPError
from transformers import PreTrainedTokenizerFast

from tunewright.pipeline import files
from tunewright.pipeline.benchmarking import results
from tunewright.pipeline.benchmarking.results import BASE, NAMES, TUNED
from tunewright.pipeline.chat_template import ChatTemplate
from tunewright.pipeline.context import JobContext
from tunewright.pipeline.errors import InvalidInput, Unavailable, call, nearest
from tunewright.pipeline.inference import loading
from tunewright.pipeline.inference.subject import Subject

# Untyped, and not there for every type checker: an extra.
lm_eval: Any = importlib.import_module("lm_eval")
HFLM: Any = importlib.import_module("lm_eval.models.huggingface").HFLM
TaskManager: Any = importlib.import_module("lm_eval.tasks").TaskManager
MOST_TOKENS = 4096
CPU_ROWS, MOST_ROWS = 4, 64
KEPT = "checkpoints/harness"


class Asked(HFLM):
    """The harness's own model class with our chat template, a cancel between batches, and progress."""

    def __init__(self, context: JobContext, template: ChatTemplate, model: Any, context_tokens: int) -> None:
        self._context, self._template, self.phase, self._rows = context, template, "", 0
        tokenizer: Any = PreTrainedTokenizerFast.from_pretrained(str(template.folder))
        super().__init__(
            pretrained=model, tokenizer=tokenizer, max_length=min(context_tokens, MOST_TOKENS),
            batch_size="auto" if torch.cuda.is_available() else CPU_ROWS, max_batch_size=MOST_ROWS,
        )  # fmt: skip

    def apply_chat_template(self, chat_history: Sequence[Any], add_generation_prompt: bool = True) -> str:
        return self._template.render(chat_history, add_generation_prompt=add_generation_prompt)

    def _model_call(self, inps: Any, attn_mask: Any = None, labels: Any = None) -> Any:
        self._step(len(inps))
        return super()._model_call(inps, attn_mask, labels)

    def _model_generate(self, context: Any, max_length: int, stop: list[str], **arguments: Any) -> Any:
        self._step(len(context))
        return super()._model_generate(context, max_length, stop, **arguments)

    def _step(self, rows: int) -> None:
        self._context.check_cancelled()
        self._rows += rows
        self._context.progress(self.phase, self._rows)


def run(context: JobContext) -> dict[str, Any]:
    """The benchmark `task` by lm-eval; spec: see `request.check`. Returns the job's result.

    Raises InvalidInput where the harness has no such task or it is not one of right and wrong answers, Unavailable
    where its data or packages are out of reach, and Cancelled.
    """
    spec, began = context.spec, time.monotonic()
    context.progress("finding the task")
    manager = TaskManager(include_path=spec["task_dir"])
    _require(manager, spec)
    seconds = {"reading": round(time.monotonic() - began, 2)}
    wanted = [TUNED, *([BASE] if spec["compare_with_base"] else [])]
    missing = [name for name in wanted if not _kept(context, name).is_file()]
    if missing:
        seconds |= _ask(context, manager, missing)
    found = {name: files.read_json(_kept(context, name)) for name in wanted}
    metric = found[TUNED]["metric"]
    by_model = {name: {(row["subject"], row["number"]): row["score"] for row in found[name]["rows"]} for name in wanted}
    samples = "".join(
        json.dumps({"model": name, **row}, ensure_ascii=False) + "\n" for name in wanted for row in found[name]["rows"]
    )
    notes = [f"Scored by {metric} of lm-eval {lm_eval.__version__}; its own figures: {found[name]['figures']} ({name})."
             for name in wanted]  # fmt: skip
    return results.publish(
        context, by_model, title=f"{spec['task']} (lm-eval)", groups_of=lambda subject: (), notes=notes,
        seconds=seconds, samples=samples,
    )  # fmt: skip


def _kept(context: JobContext, name: str) -> Path:
    return context.folder / f"{KEPT}-{name}.json"


def _require(manager: Any, spec: Mapping[str, Any]) -> None:
    """Raises where the task is unknown or cannot be set up; builds it once, which fetches its data."""
    task = spec["task"]
    again = call("benchmark_adapter", adapter_id=spec["adapter_id"], task="ceval")
    if task not in manager.all_tasks:
        raise InvalidInput(
            "unknown_task", f"lm-eval has no task {task!r}.", allowed=nearest(task, list(manager.all_tasks)), next=again
        )
    try:
        built = manager.load([task])["tasks"]
    except ImportError as error:
        raise Unavailable(
            "task_needs_packages", f"{task} needs the Python package {error.name}, which is not installed.",
            allowed=f"pip install {error.name}; many tasks have an extra of their own: pip install 'lm-eval[{task}]'.",
            next=again,
        ) from error  # fmt: skip
    except (OSError, HTTPError, DatasetsError, LookupError) as error:
        first = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
        raise Unavailable(
            "task_data_unreachable", f"The data of {task} cannot be fetched: {first[:200]}.",
            allowed="lm-eval takes it from the Hub (or the mirror in HF_ENDPOINT). A task of your own over local files "
            "works without: a YAML in task_dir.", next=again,
        ) from error  # fmt: skip
    unsafe = [name for name, one in built.items() if getattr(one, "UNSAFE_CODE", False)]
    if unsafe:
        raise InvalidInput(
            "runs_generated_code", f"{unsafe[0]} runs programs that the model writes.",
            allowed="Such tasks are not run here: they would act with your rights on this machine.", next=again,
        )  # fmt: skip


def _ask(context: JobContext, manager: Any, names: Sequence[str]) -> dict[str, float]:
    """Has the models answer, and keeps each one's rows when it is done. Returns seconds by model, loading apart."""
    spec, seconds = context.spec, dict[str, float]()
    subject = Subject(**spec["subject"])
    template = ChatTemplate(Path(subject.tokenizer_folder), enable_thinking=subject.enable_thinking)
    loaded: tuple[str, Any] | None = None
    for name in names:
        began = time.monotonic()
        source = subject.base if name == TUNED else subject.base_without
        if loaded is None or loaded[0] != source:
            context.progress(f"loading {NAMES[name]}")
            loaded = None
            loaded = source, _load(source, subject)
        seconds[f"loading_{name}"] = round(time.monotonic() - began, 2)
        began, model = time.monotonic(), loaded[1]
        # The base answers with the adapter off.
        with model.disable_adapter() if name == BASE and hasattr(model, "disable_adapter") else nullcontext():
            _evaluate(context, manager, name, Asked(context, template, model, subject.context_tokens))
        seconds[name] = round(time.monotonic() - began, 2)
    return seconds


def _load(source: str, subject: Subject) -> Any:
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    model = loading.load_base(
        source, load_in_4bit=subject.load_in_4bit, device=device, trust_remote_code=subject.trust_remote_code
    )
    if subject.adapter_path is None:
        return model
    return loading.add_adapter(model, Path(subject.adapter_path), "tuned")


def _evaluate(context: JobContext, manager: Any, name: str, model: Asked) -> None:
    spec = context.spec
    model.phase = f"asking {NAMES[name]}: {spec['task']}"
    context.progress(model.phase)
    cache = context.folder / f"{KEPT}-{name}"
    cache.parent.mkdir(parents=True, exist_ok=True)
    found = lm_eval.simple_evaluate(
        model, tasks=[spec["task"]], num_fewshot=spec["n_shot"], limit=spec["limit"], task_manager=manager,
        apply_chat_template=spec["chat_prompt"], fewshot_as_multiturn=spec["chat_prompt"], use_cache=str(cache),
        bootstrap_iters=0,
    )  # fmt: skip
    files.write_json(_kept(context, name), rows(found, spec))


def rows(found: Mapping[str, Any], spec: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept of the harness's results: its figures, and of every question one score.

    The score is the first of the task's metrics that is a number for every question and better when higher. Raises
    InvalidInput where there is none.
    """
    scored: list[dict[str, Any]] = []
    chosen = ""
    for task, samples in found["samples"].items():
        metric, filtered = _metric(task, samples, found, spec)
        chosen = chosen or metric
        scored += [
            {
                "subject": task, "number": sample["doc_id"], "score": float(sample[metric]),
                "reference": str(sample["target"])[:400], "text": str(sample["filtered_resps"])[:400],
            }
            for sample in samples
            if sample["filter"] == filtered
        ]  # fmt: skip
    figures = {
        task: {key: round(value, 4) for key, value in numbers.items() if isinstance(value, float)}
        for task, numbers in found["results"].items()
    }
    return {"metric": chosen, "figures": figures.get(spec["task"], {}), "rows": scored}


def _metric(
    task: str, samples: Sequence[Mapping[str, Any]], found: Mapping[str, Any], spec: Mapping[str, Any]
) -> tuple[str, str]:
    filtered = samples[0]["filter"]
    kept = [sample for sample in samples if sample["filter"] == filtered]
    for metric in samples[0]["metrics"]:
        numbers = all(isinstance(sample.get(metric), bool | int | float) for sample in kept)
        if numbers and found["higher_is_better"][task].get(metric):
            return metric, filtered
    raise InvalidInput(
        "no_score_per_question", f"{task} gives {', '.join(samples[0]['metrics'])}: no score of single questions.",
        allowed="Models are compared question by question; a task with accuracy or exact match works.",
        next=call("benchmark_adapter", adapter_id=spec["adapter_id"], task="ceval"),
    )  # fmt: skip
