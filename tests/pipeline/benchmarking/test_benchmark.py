"""The whole stage with real models: chance where nothing is known, all right where the answers were learnt."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tunewright.pipeline import files
from tunewright.pipeline.benchmarking import benchmark, exams, request
from tunewright.pipeline.benchmarking.answering import InTransformers
from tunewright.pipeline.benchmarking.exams import BENCHMARKS
from tunewright.pipeline.benchmarking.prompts import Prompter
from tunewright.pipeline.chat_template import ChatTemplate
from tunewright.pipeline.errors import Cancelled, InvalidInput
from tunewright.pipeline.evaluation.statistics import Interval
from tunewright.pipeline.store import Row
from tunewright.pipeline.workspace import Workspace

MOST_STEPS = 400


def interval(found: dict[str, float]) -> Interval:
    return Interval(found["value"], found["low"], found["high"])


def samples(result: dict[str, Any]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(result["files"]["samples"]).read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize(("chat_prompt", "size", "n_shot"), [(False, 200, 1), (True, 60, 2)])
def test_random_models_are_at_chance(
    workspace: Workspace, bench: Any, adapter: Row, tmp_path: Path, chat_prompt: bool, size: int, n_shot: int
) -> None:
    root = bench.write_exam(tmp_path / "exam", {"law": size, "logic": size})
    spec = request.check(workspace, adapter["id"], task_dir=str(root), n_shot=n_shot, chat_prompt=chat_prompt)
    result = benchmark.run(bench.start(workspace, spec))
    for model in ("tuned", "base"):
        accuracy = interval(result["models"][model]["accuracy"])
        assert accuracy.low <= 0.25 <= accuracy.high
        assert result["models"][model]["of"] == 2 * size
    # They are two models, and neither knows more.
    base, tuned = ([one["chosen"] for one in samples(result) if one["model"] == which] for which in ("base", "tuned"))
    assert base != tuned
    assert "better" not in result["sentence"]
    assert sum("what guessing gives" in note for note in result["notes"]) == 2


def test_a_random_model_is_at_chance_on_the_real_subjects(
    workspace: Workspace, bench: Any, adapter: Row, ceval: Path
) -> None:
    spec = request.check(workspace, adapter["id"], task_dir=str(ceval), compare_with_base=False)
    result = benchmark.run(bench.start(workspace, spec))
    (found,) = result["models"].values()
    accuracy = interval(found["accuracy"])
    assert accuracy.low <= 0.25 <= accuracy.high
    assert set(found["groups"]) == {"STEM", "Hard", "Humanities", "Other"}
    assert {name: one["of"] for name, one in found["subjects"].items()} == {
        "computer_network": 19, "high_school_physics": 19, "law": 24, "basic_medicine": 19,
    }  # fmt: skip
    assert {one["shots"] for one in samples(result)} == {5}
    assert any("no published number compares" in note for note in result["notes"])


def teach(model: Any, prompts: list[list[int]], letters: list[int]) -> None:
    """Trains the model until the letter is its first choice of all tokens after every prompt."""
    torch.manual_seed(0)
    # Two that spin while they wait for each other take ten times as long on a busy machine.
    torch.set_num_threads(1)
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(one)) + one for one in prompts])
    seen = (torch.arange(longest) >= torch.tensor([[longest - len(one)] for one in prompts])).long()
    places = (seen.cumsum(1) - 1).clamp(min=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(MOST_STEPS):
        logits = model(input_ids=ids, attention_mask=seen, position_ids=places, logits_to_keep=1).logits[:, -1]
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor(letters))
        if (logits.argmax(1) == torch.tensor(letters)).all() and loss.item() < 0.05:
            return
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    pytest.fail(f"not learnt in {MOST_STEPS} steps")


def test_a_model_trained_on_the_answers_gets_all_right_and_is_told_to_be_better(
    workspace: Workspace, bench: Any, tiny: Path, toy_folder: Path, tmp_path: Path
) -> None:
    root = bench.write_exam(tmp_path / "exam", {"law": 10, "logic": 10})
    prompter = Prompter(BENCHMARKS["ceval"], ChatTemplate(toy_folder), False, 8192)
    prompts: list[list[int]] = []
    answers: list[int] = []
    for subject in ("law", "logic"):
        exam = exams.read(prompter.benchmark, root, subject, with_examples=True, limit=None)
        (batch,), _ = prompter.batches(subject, exam.examples, exam.questions, 0)
        prompts += [batch.prefix + row for row in batch.rows]
        answers += [batch.letters["ABCD".index(letter)] for letter in exam.key]
    model = bench.load(tiny).train()
    teach(model, prompts, answers)
    taught = bench.save(model.eval(), tmp_path / "taught", toy_folder)
    row = bench.add_adapter(workspace, taught, tiny, form="full")
    result = benchmark.run(bench.start(workspace, request.check(workspace, row["id"], task_dir=str(root), n_shot=0)))
    tuned, base = (result["models"][name]["accuracy"]["value"] for name in ("tuned", "base"))
    assert tuned == 1.0
    assert base < 0.7
    (compared,) = result["comparisons"]
    assert compared["sentence"].startswith("The tuned model is better than the base by ")
    assert (compared["only_b"], compared["only_a"]) == (0, round(20 * (1 - base)))
    assert compared["p_mcnemar"] < 0.05


def test_the_result_and_its_files_tell_the_same(workspace: Workspace, bench: Any, adapter: Row, tmp_path: Path) -> None:
    root = bench.write_exam(tmp_path / "exam", {"law": 12, "college_physics": 8})
    spec = request.check(workspace, adapter["id"], task_dir=str(root), n_shot=0, limit=6)
    context = bench.start(workspace, spec)
    result = benchmark.run(context)
    assert (result["task"], result["n_shot"], result["questions"]) == ("ceval", 0, 12)
    evaluation = files.read_json(context.folder / "evaluation.json")
    assert evaluation == result
    lines = samples(result)
    assert len(lines) == 24
    for model in ("tuned", "base"):
        own = [line for line in lines if line["model"] == model]
        right = sum(
            line["gold"] == line["chosen"] == "ABCD"[max(range(4), key=line["logprobs"].__getitem__)] for line in own
        )
        assert right / 12 == pytest.approx(result["models"][model]["accuracy"]["value"], abs=1e-4)
        assert [line["gold"] for line in own if line["subject"] == "law"] == exams.read(
            BENCHMARKS["ceval"], root, "law", with_examples=False, limit=6
        ).key
    assert result["sentence"].startswith("C-Eval, 12 questions, 0-shot: tuned ")
    assert any("first 6 questions" in note for note in result["notes"])


class Killed(Exception):
    """What ends a run in the middle here."""


def test_a_killed_job_goes_on_and_scores_no_question_twice(
    workspace: Workspace, bench: Any, adapter: Row, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = bench.write_exam(tmp_path / "exam", {"law": 10, "logic": 10, "marxism": 10})
    spec = request.check(workspace, adapter["id"], task_dir=str(root), n_shot=1)
    whole = benchmark.run(bench.start(workspace, spec))
    asked: list[tuple[str, int]] = []
    real = InTransformers.choices
    left = 4

    def counted(self: InTransformers, subject: Any, which: str) -> Any:
        ask = real(self, subject, which)

        def asking(prefix: list[int], rows: list[list[int]], letters: list[int]) -> Any:
            nonlocal left
            if left == 0:
                raise Killed
            left -= 1
            asked.append((which, len(rows)))
            return ask(prefix, rows, letters)

        return asking

    monkeypatch.setattr(InTransformers, "choices", counted)
    context = bench.start(workspace, spec)
    with pytest.raises(Killed):
        benchmark.run(context)
    assert not (context.folder / "evaluation.json").exists()
    # What is asked was fixed: the files may go.
    shutil.rmtree(root)
    left = 100
    resumed = benchmark.run(context)
    assert asked == [("tuned", 10)] * 3 + [("base", 10)] * 3
    own = {"seconds", "files"}
    assert {k: v for k, v in resumed.items() if k not in own} == {k: v for k, v in whole.items() if k not in own}
    assert samples(resumed) == samples(whole)
    events = workspace.store.events(context.job_id)
    assert any("40 answers are in the journal" in event["message"] for event in events)


def test_a_cancel_is_heard_between_subjects_and_keeps_what_was_answered(
    workspace: Workspace, bench: Any, adapter: Row, tmp_path: Path
) -> None:
    root = bench.write_exam(tmp_path / "exam", {"law": 4, "logic": 4})
    context = bench.start(workspace, request.check(workspace, adapter["id"], task_dir=str(root), n_shot=0))
    workspace.store.execute("UPDATE jobs SET cancel='keep' WHERE id=?", context.job_id)
    with pytest.raises(Cancelled):
        benchmark.run(context)
    assert not (context.folder / "evaluation.json").exists()


def test_questions_longer_than_the_context_are_left_out_and_said(
    workspace: Workspace, bench: Any, adapter: Row, tmp_path: Path
) -> None:
    root = bench.write_exam(tmp_path / "exam", {"law": 6})
    rows = bench.invented(6, 1)
    rows[2][0] = "很" * 3000
    bench.write_csv(root / "val" / "law_val.csv", [["0", *row] for row in rows],
                    ["id", "question", "A", "B", "C", "D", "answer"])  # fmt: skip
    result = benchmark.run(bench.start(workspace, request.check(workspace, adapter["id"], task_dir=str(root))))
    assert result["questions"] == 5
    assert "1 questions were left out: they do not fit into the model's context." in result["notes"]
    for row in rows:
        row[0] = "很" * 3000
    bench.write_csv(root / "val" / "law_val.csv", rows, ["question", "A", "B", "C", "D", "answer"])
    with pytest.raises(InvalidInput, match="questions_too_long"):
        benchmark.run(bench.start(workspace, request.check(workspace, adapter["id"], task_dir=str(root))))
