"""lm-eval's tasks in a worker as a job runs them: tuned and base, the same report, nothing asked twice.

Skipped where lm-eval, an extra, is not installed. In a Python of its own: what it imports warns in many ways.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tunewright.pipeline import files, settings
from tunewright.pipeline.benchmarking import request
from tunewright.pipeline.context import JobContext
from tunewright.pipeline.errors import InvalidInput
from tunewright.pipeline.store import Row
from tunewright.pipeline.workspace import Workspace

pytestmark = pytest.mark.skipif(find_spec("lm_eval") is None, reason="lm-eval is not installed (tunewright[harness])")

# Answers one job a line: importing lm-eval takes seconds. Of the ten thousand task files that come with it, each job
# reads one folder's: all of them take ten seconds a time.
SERVE = """
import json, os, sys
from pathlib import Path
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
import lm_eval.tasks
from lm_eval.tasks._index import TaskIndex
from tunewright.pipeline.benchmarking import benchmark
from tunewright.pipeline.context import JobContext
from tunewright.pipeline.errors import TunewrightError
from tunewright.pipeline.workspace import Workspace
build, shipped = TaskIndex.build, Path(lm_eval.tasks.__file__).parent
TaskIndex.build = staticmethod(lambda paths: build([path / "gsm8k" if path == shipped else path for path in paths]))
for line in sys.stdin:
    home, job_id = json.loads(line)
    try:
        answer = benchmark.run(JobContext.of(Workspace.open(home), job_id))
    except TunewrightError as error:
        answer = error.to_dict()
    print(json.dumps(answer), file=answers, flush=True)
"""
CHOICE = """
task: toy_choice
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/questions.jsonl, dev: FOLDER/questions.jsonl}}
test_split: test
fewshot_split: dev
fewshot_config: {sampler: first_n}
output_type: multiple_choice
doc_to_text: "{{question}}\\nAnswer:"
doc_to_choice: ["A", "B", "C", "D"]
doc_to_target: answer
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
GENERATED = """
task: toy_generated
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/questions.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 4, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
PERPLEXITY = """
task: toy_perplexity
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/questions.jsonl}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{question}}"
metric_list: [{metric: word_perplexity}]
"""

Run = Callable[[JobContext], dict[str, Any]]


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with three tasks over twelve local questions, whose code the user trusts."""
    folder = tmp_path / "tasks"
    monkeypatch.setenv(settings.TRUST_REMOTE_CODE, str(folder))
    folder.mkdir()
    rows = [{"question": f"Which letter is number {n}?", "answer": "ABCD"[n % 4]} for n in range(12)]
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for name, text in (("choice", CHOICE), ("generated", GENERATED), ("perplexity", PERPLEXITY)):
        (folder / f"{name}.yaml").write_text(text.replace("FOLDER", str(folder)), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Runs a job's stage in a process of its own, offline; returns its result, or its error's fields."""
    folder = tmp_path_factory.mktemp("harness")
    environment = {"HF_HOME": str(folder), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    with (
        (folder / "log").open("w", encoding="utf-8") as log,
        subprocess.Popen(
            [sys.executable, "-P", "-c", SERVE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
            encoding="utf-8", cwd=folder, env=os.environ | environment,
        ) as process,
    ):  # fmt: skip
        asked, answers = process.stdin, process.stdout
        assert asked
        assert answers

        def run(context: JobContext) -> dict[str, Any]:
            asked.write(json.dumps([str(context.workspace.home.root), context.job_id]) + "\n")
            asked.flush()
            line = answers.readline()
            assert line, (folder / "log").read_text(encoding="utf-8")[-2000:]
            return json.loads(line)

        yield run


def test_a_task_of_choices_is_reported_as_an_exam_is_and_asked_once(
    workspace: Workspace, bench: Any, adapter: Row, tasks: Path, run: Run
) -> None:
    spec = request.check(workspace, adapter["id"], "toy_choice", str(tasks), n_shot=2, chat_prompt=True)
    context = bench.start(workspace, spec)
    result = run(context)
    assert (result["task"], result["questions"]) == ("toy_choice", 12)
    for model in ("tuned", "base"):
        found = result["models"][model]
        assert found["subjects"]["toy_choice"]["of"] == 12
        assert found["accuracy"]["low"] <= found["accuracy"]["value"] <= found["accuracy"]["high"]
    assert result["comparisons"][0]["sentence"].startswith("No difference shown")
    lines = [json.loads(line) for line in Path(result["files"]["samples"]).read_text(encoding="utf-8").splitlines()]
    assert [line["number"] for line in lines] == [*range(12)] * 2
    right = [line["score"] for line in lines if line["model"] == "tuned"]
    assert sum(right) / 12 == pytest.approx(result["models"]["tuned"]["accuracy"]["value"], abs=1e-4)
    # Its own figure is what we counted.
    assert f"'acc,none': {round(sum(right) / 12, 4)}" in " ".join(result["notes"])
    # A run that is cut off after the first model goes on with the second alone.
    for model in ("tuned", "base"):
        kept = context.folder / "checkpoints" / f"harness-{model}.json"
        document = files.read_json(kept)
        assert len(document["rows"]) == 12
    (context.folder / "checkpoints" / "harness-base.json").unlink()
    document = files.read_json(context.folder / "checkpoints" / "harness-tuned.json")
    document["rows"][0]["score"] = 1 - document["rows"][0]["score"]
    files.write_json(context.folder / "checkpoints" / "harness-tuned.json", document)
    again = run(context)
    assert again["models"]["base"] == result["models"]["base"]
    assert again["models"]["tuned"] != result["models"]["tuned"]
    assert set(again["seconds"]) == {"reading", "loading_base", "base"}


def test_a_task_that_generates_runs_and_one_without_right_and_wrong_is_refused(
    workspace: Workspace, bench: Any, adapter: Row, tasks: Path, run: Run
) -> None:
    spec = request.check(
        workspace, adapter["id"], "toy_generated", str(tasks), n_shot=0, limit=4, compare_with_base=False
    )
    result = run(bench.start(workspace, spec))
    assert (result["questions"], result["models"]["tuned"]["of"]) == (4, 4)
    assert result["comparisons"] == []
    spec = request.check(workspace, adapter["id"], "toy_perplexity", str(tasks), n_shot=0, compare_with_base=False)
    assert run(bench.start(workspace, spec))["code"] == "no_score_per_question"


def test_a_folder_of_tasks_that_nobody_trusts_is_refused_as_they_may_name_code(
    workspace: Workspace, adapter: Row, tasks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(settings.TRUST_REMOTE_CODE)
    with pytest.raises(InvalidInput, match=rf"^code_not_trusted: .*{settings.TRUST_REMOTE_CODE}={tasks}"):
        request.check(workspace, adapter["id"], "toy_choice", str(tasks), n_shot=2)


def test_an_unknown_task_and_one_whose_data_is_out_of_reach_say_what_to_do(
    workspace: Workspace, bench: Any, adapter: Row, run: Run
) -> None:
    error = run(bench.start(workspace, request.check(workspace, adapter["id"], "gsm8kk")))
    assert error["code"] == "unknown_task"
    assert "gsm8k" in error["allowed"]
    error = run(bench.start(workspace, request.check(workspace, adapter["id"], "gsm8k")))
    assert error["code"] == "task_data_unreachable"
    assert "task_dir" in error["allowed"]
