"""The stage of the job kind `benchmark`: the exams answered by each model, compared question by question. Heavy.

Guarantees: what is asked is fixed when the job first runs (a resumed job asks the same, whatever became of the files);
no question is scored twice; every model is asked the same questions with the same tokens; the result is written once,
whole. Does not guarantee that a model has not seen the questions in its training.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tunewright.pipeline import files
from tunewright.pipeline.benchmarking import answering, exams, fetching, results
from tunewright.pipeline.benchmarking.answering import Choices, InTransformers, Paper
from tunewright.pipeline.benchmarking.exams import BENCHMARKS, CHANCE, Benchmark, Exam, Question, Solved
from tunewright.pipeline.benchmarking.journal import Journal
from tunewright.pipeline.benchmarking.prompts import Prompter
from tunewright.pipeline.benchmarking.results import BASE, EXPORT, NAMES, TUNED
from tunewright.pipeline.chat_template import ChatTemplate
from tunewright.pipeline.context import JobContext
from tunewright.pipeline.errors import InvalidInput, call
from tunewright.pipeline.inference.subject import Subject

# Below `checkpoints/`, so that cancel_job(keep_checkpoint=false) discards them.
EXAMS, JOURNAL = "checkpoints/exams.json", "checkpoints/samples.jsonl"


def run(context: JobContext) -> dict[str, Any]:
    """The whole job; spec: see `request.check`. Returns the result, of which `evaluation.json` holds all numbers.

    Raises InvalidInput, NotFound and Unavailable where the exams cannot be had or asked, and Cancelled.
    """
    if context.spec["harness"]:
        from tunewright.pipeline.benchmarking import harness

        return harness.run(context)
    began = time.monotonic()
    benchmark, subject = BENCHMARKS[context.spec["task"]], Subject(**context.spec["subject"])
    context.progress("reading the questions")
    asked = _exams(context, benchmark)
    # Without thinking also for who was trained with it: the letter is asked for where an answer begins.
    template = ChatTemplate(Path(subject.tokenizer_folder), enable_thinking=False)
    prompter = Prompter(benchmark, template, context.spec["chat_prompt"], subject.context_tokens)
    papers = [Paper.of(prompter, exam, context.spec["n_shot"]) for exam in asked]
    if not any(paper.size for paper in papers):
        raise InvalidInput(
            "questions_too_long", f"No question fits into the {subject.context_tokens} tokens that the model reads.",
            next=call("benchmark_adapter", adapter_id=context.spec["adapter_id"], task="mmlu"),
        )  # fmt: skip
    journal = Journal(context.folder / JOURNAL, {paper.exam.subject: paper.size for paper in papers})
    if journal.entries:
        context.event(
            "info", "resumed_from", f"{len(journal.entries)} answers are in the journal; none of these is asked for "
            "again.",
        )  # fmt: skip
    seconds = {"reading": round(time.monotonic() - began, 2), **_answer(context, subject, papers, journal)}
    return _finish(context, benchmark, papers, journal, seconds)


def _exams(context: JobContext, benchmark: Benchmark) -> list[Exam]:
    """What is asked: as an earlier run of the job has fixed it, else read now and fixed."""
    fixed = context.folder / EXAMS
    if fixed.is_file():
        return [_exam_of(document) for document in files.read_json(fixed)]
    spec = context.spec
    with_examples, limit = spec["n_shot"] > 0, spec["limit"]

    def on_subject(number: int) -> None:
        context.check_cancelled()
        context.progress("reading the questions", number, len(spec["subjects"]))

    if spec["task_dir"] is None:
        found = fetching.fetch(
            context.workspace, benchmark, spec["subjects"], with_examples=with_examples, limit=limit,
            on_subject=on_subject,
        )  # fmt: skip
    else:
        root = Path(spec["task_dir"])
        found = [exams.read(benchmark, root, one, with_examples=with_examples, limit=limit) for one in spec["subjects"]]
    fixed.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(fixed, json.dumps([asdict(exam) for exam in found], ensure_ascii=False))
    return found


def _exam_of(document: dict[str, Any]) -> Exam:
    def question(written: dict[str, Any]) -> Question:
        return Question(written["text"], tuple(written["options"]))

    return Exam(
        document["subject"],
        [Solved(question(example["question"]), example["letter"]) for example in document["examples"]],
        [question(written) for written in document["questions"]],
        document["key"],
    )


def _answer(context: JobContext, subject: Subject, papers: Sequence[Paper], journal: Journal) -> dict[str, float]:
    """Has every model answer what it has not answered yet. Returns seconds by model, loading apart."""
    spec, seconds = context.spec, dict[str, float]()
    models = [TUNED, *([BASE] if spec["compare_with_base"] else [])]
    loaded = InTransformers(context)
    total = sum(paper.size for paper in papers) * (len(models) + bool(spec["export"]))

    def answer(model: str, choices: Choices) -> None:
        began = time.monotonic()
        for paper in papers:
            if (model, paper.exam.subject) not in journal.done and paper.size:
                context.check_cancelled()
                left = total - len(journal.entries)
                context.progress(f"asking {NAMES[model]}: {paper.exam.subject}", total - left, total, **pace.eta(left))
                journal.append(answering.answer(paper, model, choices))
        seconds[model] = round(time.monotonic() - began, 2)

    pace = _Pace(journal)
    for model in models:
        if _unfinished(papers, journal, model):
            began = time.monotonic()
            context.progress(f"loading {NAMES[model]}", len(journal.entries), total)
            choices = loaded.choices(subject, model)
            seconds[f"loading_{model}"] = round(time.monotonic() - began, 2)
            answer(model, choices)
    # Its memory is llama.cpp's now.
    loaded.unload()
    if spec["export"] and _unfinished(papers, journal, EXPORT):
        context.progress(f"loading {spec['export']['output']}", len(journal.entries), total)
        longest = max(paper.longest_tokens for paper in papers)
        began = time.monotonic()
        with answering.in_llama(context, Path(spec["export"]["path"]), longest) as choices:
            seconds[f"loading_{EXPORT}"] = round(time.monotonic() - began, 2)
            pace = _Pace(journal)
            answer(EXPORT, choices)
    return seconds


class _Pace:
    """How long the rest takes, at the pace since this was made."""

    def __init__(self, journal: Journal) -> None:
        self._journal, self._begun, self._before = journal, time.monotonic(), len(journal.entries)

    def eta(self, left: int) -> dict[str, float]:
        answered = len(self._journal.entries) - self._before
        return {"eta_s": round((time.monotonic() - self._begun) / answered * left, 1)} if answered else {}


def _unfinished(papers: Sequence[Paper], journal: Journal, model: str) -> bool:
    return any(paper.size and (model, paper.exam.subject) not in journal.done for paper in papers)


def _finish(
    context: JobContext, benchmark: Benchmark, papers: Sequence[Paper], journal: Journal, seconds: dict[str, float]
) -> dict[str, Any]:
    context.progress("computing intervals", len(journal.entries), len(journal.entries))
    by_model: dict[str, dict[tuple[str, int], float]] = {}
    for entry in journal.entries:
        by_model.setdefault(entry.model, {})[entry.subject, entry.number] = float(entry.correct)
    return results.publish(
        context, by_model, title=benchmark.title, groups_of=lambda subject: benchmark.described(subject)[1],
        notes=_notes(context, benchmark, papers), seconds=seconds,
        samples=(context.folder / JOURNAL).read_text(encoding="utf-8"), chance=CHANCE,
    )  # fmt: skip


def _notes(context: JobContext, benchmark: Benchmark, papers: Sequence[Paper]) -> list[str]:
    """What a reader of the numbers must know."""
    spec, notes = context.spec, list[str]()
    fewer = sum(len(batch.rows) for paper in papers for batch in paper.batches if batch.shots < spec["n_shot"])
    too_long = sum(len(paper.too_long) for paper in papers)
    if fewer:
        why = "more do not fit into the context, or there are none"
        notes.append(f"{fewer} questions were asked with fewer than {spec['n_shot']} examples: {why}.")
    if too_long:
        notes.append(f"{too_long} questions were left out: they do not fit into the model's context.")
    if benchmark.subjects.keys() - {paper.exam.subject for paper in papers}:
        notes.append(
            f"Not all of {benchmark.title}'s {len(benchmark.subjects)} subjects: no published number compares."
        )
    if spec["limit"]:
        notes.append(f"Only the first {spec['limit']} questions of each subject.")
    notes.append("accuracy counts questions; subject_average is the mean over subjects, as leaderboards give it.")
    if spec["export"]:
        notes.append(f"export: {spec['export']['output']} of {spec['export']['export_id']}, {spec['export']['why']}.")
    return notes
