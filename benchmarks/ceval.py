"""The whole of C-Eval's val set on one GPU, beside EleutherAI's harness on the same questions: JSON lines.

    python benchmarks/ceval.py MODEL [--rows 32] [--skip-harness]

MODEL is the folder of a base model; an adapter of rank 16 is drawn at random for it. The questions are invented, in
C-Eval's shape: 52 subjects, 1,346 questions, five examples each, in the lengths of four real subjects. Ours is the job
itself, tuned and base; the harness is HFLM over the base alone, given the very same prompts. Seconds are after loading.
"""

import argparse
import csv
import json
import os
import random
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from tunewright.pipeline import jobs
from tunewright.pipeline.benchmarking import benchmark, exams, request
from tunewright.pipeline.benchmarking.exams import BENCHMARKS, LETTERS, MOST_SHOTS
from tunewright.pipeline.benchmarking.prompts import Prompter
from tunewright.pipeline.chat_template import ChatTemplate
from tunewright.pipeline.context import JobContext
from tunewright.pipeline.workspace import Workspace

CEVAL = BENCHMARKS["ceval"]
QUESTIONS = 1346
# Tokens of the questions and options of four real subjects (every fourth, every sixteenth by length), counted as Qwen's
# tokenizer counts: 0.67 a Chinese character, 0.4 another one.
QUESTION_TOKENS = (5, 7, 9, 9, 11, 12, 13, 14, 15, 18, 19, 19, 25, 27, 30, 36, 42, 50, 56, 76, 114)
OPTION_TOKENS = (1, 1, 1, 2, 2, 3, 3, 3, 3, 3, 4, 5, 7, 8, 9, 10, 12, 13, 14, 17, 31)


def report(**numbers: Any) -> None:
    print(json.dumps(numbers), flush=True)


def invent(template: ChatTemplate, folder: Path) -> Path:
    """The questions in C-Eval's layout, of words that are one token each."""
    chance = random.Random(0)
    vocabulary = template.tokenizer.get_vocab()
    words = sorted(word[1:] for word in vocabulary if word[0] == "Ġ" and word[1:].isascii() and word[1:].isalpha())

    def text(tokens: int) -> str:
        return " ".join(chance.choices(words, k=tokens))

    for number, subject in enumerate(CEVAL.subjects):
        size = QUESTIONS // 52 + (number < QUESTIONS % 52)
        for split, count in (("dev", MOST_SHOTS), ("val", size)):
            file = CEVAL.file(folder, split, subject)
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("w", encoding="utf-8", newline="") as opened:
                writer = csv.writer(opened)
                writer.writerow(["id", "question", *LETTERS, "answer"])
                for row in range(count):
                    options = [text(chance.choice(OPTION_TOKENS)) for _ in LETTERS]
                    writer.writerow([row, text(chance.choice(QUESTION_TOKENS)), *options, chance.choice(LETTERS)])
    return folder


def random_adapter(model: Path, folder: Path) -> None:
    """An adapter of rank 16 on all linear layers, drawn without the base's weights."""
    with torch.device("meta"):
        base = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model))
    tuned: Any = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=16, target_modules="all-linear"))
    torch.manual_seed(0)
    weights = {
        name: 0.05 * torch.randn(parameter.shape, dtype=torch.bfloat16)
        for name, parameter in tuned.named_parameters()
        if "lora_" in name
    }
    tuned.save_pretrained(str(folder), state_dict=weights)
    AutoTokenizer.from_pretrained(model).save_pretrained(folder)


def start(workspace: Workspace, model: Path, root: Path) -> JobContext:
    adapter = workspace.home.adapters / "ad-random-0000"
    random_adapter(model, adapter)
    document = {
        "path": str(adapter), "base_model": str(model), "base_path": str(model), "training": {"load_in_4bit": False},
        "enable_thinking": False,
    }  # fmt: skip
    workspace.store.add_artifact(adapter.name, "adapter", "random", document, parents=[])
    spec = request.check(workspace, adapter.name, task_dir=str(root))
    job_id = "job-ceval-0000"
    jobs.folder(workspace, job_id).mkdir()
    workspace.store.execute(
        "INSERT INTO jobs(id, kind, state, needs_device, spec, created_at) VALUES (?,'benchmark','running',0,?,0)",
        job_id, json.dumps(spec),
    )  # fmt: skip
    return JobContext.of(workspace, job_id)


def ours(context: JobContext) -> list[str]:
    """The job; returns the base's letters in order."""
    result = benchmark.run(context)
    lines = Path(result["files"]["samples"]).read_text(encoding="utf-8").splitlines()
    samples = [json.loads(line) for line in lines]
    peak_gib = torch.cuda.max_memory_allocated() / 2**30
    report(
        tool="ours", seconds=result["seconds"], questions=result["questions"], peak_gib=round(peak_gib, 1),
        accuracy={name: found["accuracy"] for name, found in result["models"].items()}, sentence=result["sentence"],
    )  # fmt: skip
    return [sample["chosen"] for sample in samples if sample["model"] == "base"]


TASK = """
task: same_prompts
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{prompt}}"
doc_to_choice: ["A", "B", "C", "D"]
doc_to_target: answer
target_delimiter: ""
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""


def harness(model: Path, template: ChatTemplate, root: Path, folder: Path, rows: int) -> list[str]:
    """The same prompts through lm-eval's HFLM; returns its letters in order."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    prompter, file = Prompter(CEVAL, template, False, 8192), folder / "prompts.jsonl"
    tokens = 0
    with file.open("w", encoding="utf-8") as opened:
        for subject in CEVAL.subjects:
            exam = exams.read(CEVAL, root, subject, with_examples=True, limit=None)
            for question, letter in zip(exam.questions, exam.key, strict=True):
                prompt = prompter.text(subject, exam.examples, question)
                tokens += len(template.ids(prompt))
                opened.write(json.dumps({"prompt": prompt, "answer": letter}) + "\n")
    (folder / "task.yaml").write_text(TASK.replace("FILE", str(file)), encoding="utf-8")
    began = time.monotonic()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    loaded: Any = HFLM(pretrained=str(model), dtype="bfloat16", batch_size=rows, device=device)
    load_s, began = time.monotonic() - began, time.monotonic()
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    found: Any = simple_evaluate(loaded, tasks=["same_prompts"], task_manager=manager, bootstrap_iters=0)
    seconds = time.monotonic() - began
    report(
        tool="lm-eval HFLM", rows=rows, seconds=round(seconds, 2), loading=round(load_s, 2),
        mean_prompt_tokens=round(tokens / QUESTIONS, 1), accuracy=found["results"]["same_prompts"]["acc,none"],
    )  # fmt: skip
    samples = sorted(found["samples"]["same_prompts"], key=lambda sample: sample["doc_id"])
    scores = [[response[0] for response in sample["filtered_resps"]] for sample in samples]
    return [LETTERS[max(range(4), key=line.__getitem__)] for line in scores]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--rows", type=int, default=32, help="batch size of the harness")
    parser.add_argument("--skip-harness", action="store_true")
    options = parser.parse_args()
    template = ChatTemplate(options.model)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        root = invent(template, folder / "exam")
        workspace = Workspace.open(folder / "home")
        letters = ours(start(workspace, options.model.resolve(), root))
        if not options.skip_harness:
            theirs = harness(options.model, template, root, folder, options.rows)
            same = sum(a == b for a, b in zip(letters, theirs, strict=True))
            report(same_letters=same, of=len(letters))


if __name__ == "__main__":
    main()
