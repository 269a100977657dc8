"""The validate job on the toy with an adapter that knows a shop: one process runs all forms, another is killed."""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tunewright.pipeline import jobs, toy
from tunewright.pipeline.settings import Home
from tunewright.pipeline.validation import pairs
from tunewright.pipeline.workspace import Workspace

RUNS = Path(__file__).with_name("validation_runs.py")
RUNS_TIMEOUT_S = 300
MAX_RESULT_BYTES = 6000
# Three parts of at most 16 of the 36 samples, for both models.
PARTS = 6


@dataclass(frozen=True)
class Runs:
    workspace: Workspace
    facts: dict[str, Any]

    def result(self, name: str) -> dict[str, Any]:
        return self.facts[name]["result"]

    def folder(self, name: str) -> Path:
        return jobs.folder(self.workspace, self.facts[name]["job_id"])

    def samples(self, name: str) -> list[dict[str, Any]]:
        text = (self.folder(name) / "samples.jsonl").read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope="module")
def runs(trained_toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    root = tmp_path_factory.mktemp("validation")
    home = Home.open(root / "home")
    shutil.copytree(trained_toy, toy.folder(home))
    command = [sys.executable, "-P", str(RUNS), str(home.root), str(root / "facts.json")]
    with (root / "log.txt").open("w", encoding="utf-8") as log:
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_ENDPOINT": "http://127.0.0.1:9"}
        subprocess.run(command, check=True, timeout=RUNS_TIMEOUT_S, env=environment, stdout=log, stderr=log)
    workspace = Workspace.open(home.root)
    yield Runs(workspace, json.loads((root / "facts.json").read_text(encoding="utf-8")))
    workspace.store.close()


def test_every_form_succeeds_with_a_small_result(runs: Runs) -> None:
    for name, fact in runs.facts.items():
        assert fact["state"] == "succeeded", (name, fact["error"])
        assert len(json.dumps(fact["result"], ensure_ascii=False).encode()) < MAX_RESULT_BYTES, name
        assert {Path(path).name for path in fact["result"]["files"].values()} == {"samples.jsonl", "evaluation.json"}


def test_an_adapter_that_has_learnt_is_better_with_its_intervals(runs: Runs) -> None:
    result = runs.result("held out")
    assert (result["samples"], result["split"], result["base_model"]) == (36, "eval", "toy")
    metrics = result["metrics"]
    assert metrics["loss"]["tuned"]["high"] < 1 < metrics["loss"]["base"]["low"]
    for name in ("exact_match", "token_f1", "chrf", "rouge_l"):
        assert metrics[name]["difference"]["low"] > 50, name
        assert metrics[name]["better"] == "higher"
    assert metrics["perplexity"]["tuned"]["value"] == pytest.approx(
        2.718281828 ** metrics["loss"]["tuned"]["value"], 1e-3
    )
    assert result["sentence"].startswith("Tuned is better on loss by ")
    assert not any("NOT HELD OUT" in note or "word for word" in note for note in result["notes"])


def test_each_sample_holds_both_answers_with_their_numbers(runs: Runs) -> None:
    samples = runs.samples("held out")
    assert [sample["index"] for sample in samples] == list(range(36))
    sums: Counter[str] = Counter()
    for sample in samples:
        assert sample["messages"][-1]["role"] == "user" and sample["reference"]
        for side in ("tuned", "base"):
            seen = sample[side]
            assert seen["ended"] in ("stop", "length") and seen["tokens"] <= 40
            assert (seen["metrics"]["exact_match"] == 100) == (seen["text"] == sample["reference"])
            sums[side] += seen["metrics"]["chrf"]
            sums[f"{side} {seen['ended']}"] += 1
    metrics = runs.result("held out")["metrics"]
    assert metrics["chrf"]["tuned"]["value"] == pytest.approx(sums["tuned"] / 36, rel=1e-3)
    assert metrics["stopped"]["base"]["value"] == pytest.approx(100 * sums["base stop"] / 36, rel=1e-3)


def test_the_base_is_loaded_once_for_both_and_each_sample_answered_once_a_side(runs: Runs) -> None:
    held_out = runs.facts["held out"]
    assert len(held_out["loaded"]) == 1
    assert held_out["generated"] == 2 * 36


def test_a_model_that_was_trained_whole_is_compared_with_its_untrained_base(runs: Runs) -> None:
    whole = runs.facts["whole"]
    assert len(whole["loaded"]) == 2
    # The adapter's weights merged: the same answers.
    theirs = runs.result("held out")["metrics"]
    for name, metric in whole["result"]["metrics"].items():
        assert metric["base"] == theirs[name]["base"], name
        assert metric["tuned"]["value"] == pytest.approx(theirs[name]["tuned"]["value"], rel=1e-3), name


def test_rows_that_were_trained_on_are_told_loudly(runs: Runs) -> None:
    result = runs.result("trained on")
    assert result["split"] == "train"
    assert result["notes"][0].startswith("NOT HELD OUT")
    assert "learnt by heart" in result["sentence"]


def test_questions_that_were_trained_on_are_counted(runs: Runs) -> None:
    assert runs.result("prompts")["notes"][0].startswith("1 of 3 samples ask, word for word")


def test_few_samples_are_no_verdict(runs: Runs) -> None:
    result = runs.result("prompts")
    assert result["sentence"] == "3 samples are too few for a verdict: it takes 8 or more."
    assert all(metric["difference"] is None for metric in result["metrics"].values())


def test_texts_are_scored_and_not_answered(runs: Runs) -> None:
    assert runs.facts["texts"]["generated"] == 0
    result = runs.result("texts")
    assert list(result["metrics"]) == ["loss", "perplexity"]
    assert result["pairs"] == 0 and result["metrics"]["loss"]["samples"] == 9


def test_prompts_are_answered_and_checked_by_a_domains_rules(runs: Runs) -> None:
    result = runs.result("prompts")
    assert list(result["metrics"]) == ["stopped", "repetition"]
    assert result["domain"]["pack"] == "medicine" and "no expert" in result["domain"]["note"]
    for side in ("tuned", "base"):
        assert result["domain"][side]["kinds"] == {"omission": 1}
    poisoned = runs.samples("prompts")[2]
    assert poisoned["tuned"]["domain"][0]["passage"] in poisoned["messages"][0]["content"]
    assert [finding["kind"] for finding in poisoned["tuned"]["findings"]] == ["language"]
    assert result["findings"]["tuned"] == {"language": 1}


def test_the_pairs_of_a_job_are_offered(runs: Runs) -> None:
    job_id = runs.facts["trained on"]["job_id"]
    offered = pairs.offer(runs.workspace, job_id, 10)
    assert len(offered) == runs.result("trained on")["pairs"] == 2
    samples = {f"pair-{sample['index']}": sample for sample in runs.samples("trained on")}
    for pair in offered:
        assert {pair.a, pair.b} == {samples[pair.id]["tuned"]["text"], samples[pair.id]["base"]["text"]}


def test_a_killed_job_goes_on_and_ends_with_the_very_bytes_of_one_that_was_not(runs: Runs) -> None:
    killed = runs.facts["killed"]
    assert killed["left"] == ["checkpoints"], "nothing stood under a final name"
    kept = [line for line in killed["kept"].splitlines(keepends=True) if line.endswith("\n")]
    assert 2 <= len(kept) < PARTS, "it was killed in the middle"
    lines = killed["journal"].splitlines(keepends=True)
    assert lines[: len(kept)] == kept and len(lines) == PARTS, "what was finished was kept, and each part done once"
    assert killed["generated"] == 2 * 36 - sum(len(json.loads(line)["value"]) for line in kept)
    assert "resumed_from" in killed["events"] and "resumed_from" not in runs.facts["held out"]["events"]
    for name in ("evaluation.json", "samples.jsonl"):
        assert (runs.folder("killed") / name).read_bytes() == (runs.folder("held out") / name).read_bytes()


def test_a_cancel_is_heard_between_two_tokens_and_the_job_can_go_on(runs: Runs) -> None:
    cancelled = runs.facts["cancelled"]
    assert cancelled["state before"] == "cancelled"
    assert cancelled["late"] < len(runs.samples("prompts")), "less than one more token of each answer"
    evaluation = (runs.folder("cancelled") / "evaluation.json").read_bytes()
    assert evaluation == (runs.folder("prompts") / "evaluation.json").read_bytes()


def test_progress_counts_answers_up_to_all_of_both_models(runs: Runs) -> None:
    told = [entry for entry in runs.facts["held out"]["progress"] if entry["phase"] == "answering"]
    assert [entry["done"] for entry in told] == sorted(entry["done"] for entry in told)
    assert (told[-1]["done"], told[-1]["total"], told[-1]["eta_s"]) == (72, 72, 0)
    samples = runs.samples("held out")
    ends = sum(sample[side]["ended"] == "stop" for sample in samples for side in ("tuned", "base"))
    assert told[-1]["tokens"] == ends + sum(sample[side]["tokens"] for sample in samples for side in ("tuned", "base"))
    # What was done before a kill is done, and no work of this process.
    resumed = [entry for entry in runs.facts["killed"]["progress"] if entry["phase"] == "answering"]
    assert resumed[0]["done"] > 16 and resumed[-1]["done"] == 72
    assert resumed[-1]["tokens"] < told[-1]["tokens"]
