"""Runs side by side: what differs, what is best, what must not be compared, and how long it may get."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from matplotlib.image import imread

from tunewright.pipeline import files
from tunewright.pipeline.errors import InvalidInput, NotFound
from tunewright.pipeline.reports import chart, compare
from tunewright.pipeline.rerun import CONDITIONS
from tunewright.pipeline.store import Row
from tunewright.pipeline.workspace import Workspace

AddJob = Callable[..., Row]
Make = Callable[..., dict[str, Any]]
AddRun = Callable[..., Row]
# Four characters a token is usual of English; of JSON full of numbers it is about two and a half.
CHARACTERS_A_TOKEN = 2.5


@pytest.fixture
def add_run(
    workspace: Workspace, run: Row, add_job: AddJob, arguments: Make, write_metrics: Callable[..., None]
) -> AddRun:
    """`add_run(name, level=…, sha256=…, device=…, spec={…}, learning_rate=…)`: another finished fine-tune."""

    def added(
        name: str, *, level: float = 1.0, steps: int = 30, sha256: str = "d" * 64, device: str = "NVIDIA H200",
        spec: dict[str, Any] | None = None, **given: Any,
    ) -> Row:  # fmt: skip
        figures = {**run["result"], "adapter_id": f"ad-{name}"}
        job = add_job(
            "finetune", f"job-{name}", {**run["spec"], "arguments": arguments(**given), **(spec or {})}, figures
        )
        write_metrics(job["id"], steps, level=level)
        conditions = {"dataset": {"sha256": sha256, "source": None}, "device": device, "versions": {}}
        files.write_json(workspace.home.jobs / job["id"] / CONDITIONS, conditions)
        document = workspace.store.artifact("ad-clinic-a1b2")["document"]
        workspace.store.add_artifact(f"ad-{name}", "adapter", name, document, parents=[], job_id=job["id"])
        return job

    return added


def test_only_the_arguments_that_differ_are_told_in_the_order_of_the_jobs(
    workspace: Workspace, run: Row, add_run: AddRun
) -> None:
    other = add_run("other", level=0.9, learning_rate=1e-4, lora_rank=64)
    found = compare.compare(workspace, [run["id"], other["id"]])
    assert found["arguments"] == {"learning_rate": [2e-4, 1e-4], "lora_rank": [16, 64]}
    assert [job["job_id"] for job in found["jobs"]] == [run["id"], other["id"]]
    assert found["metrics"]["steps"] == [600, 600]
    assert found["cost"]["device_hours"] == [0.1667, 0.1667]
    assert found["cost"]["device"] == ["NVIDIA H200"] * 2
    first, second = found["metrics"]["final_eval_loss"]
    assert found["best"]["final_eval_loss"] == {"job_id": other["id"], "value": second} and second < first
    assert not any(note.isupper() or "NOT COMPARABLE" in note for note in found["notes"])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sha256": "e" * 64}, "EVAL LOSSES ARE NOT COMPARABLE: the runs were evaluated on other rows"),
        ({"train_on": "all"}, "LOSSES ARE NOT COMPARABLE: train_on"),
        ({"max_seq_length": 512}, "LOSSES ARE NOT COMPARABLE: max_seq_length"),
        ({"spec": {"method": "cpt"}}, "LOSSES ARE NOT COMPARABLE: another method"),
        ({"spec": {"model": "unsloth/Llama-3.1-8B"}}, "LOSSES ARE NOT COMPARABLE: the models may cut texts"),
    ],
)
def test_losses_of_unlike_things_get_no_best_and_a_loud_note_first(
    workspace: Workspace, run: Row, add_run: AddRun, changes: dict[str, Any], said: str
) -> None:
    found = compare.compare(workspace, [run["id"], add_run("other", level=0.2, **changes)["id"]])
    assert found["notes"][0].startswith(said)
    assert not {"final_eval_loss", "best_eval_loss"} & set(found["best"])
    assert found["metrics"]["final_eval_loss"][1] is not None


def test_models_with_the_same_tokenizer_may_be_compared(workspace: Workspace, run: Row, add_run: AddRun) -> None:
    other = add_run("other", spec={"model": "unsloth/Qwen3-4B"})
    folder = Path(workspace.store.artifact("ad-clinic-a1b2")["document"]["path"])
    folder.mkdir()
    files.write_text(folder / "tokenizer.json", "{}")
    found = compare.compare(workspace, [run["id"], other["id"]])
    assert found["arguments"]["model"] == ["unsloth/Qwen3-8B", "unsloth/Qwen3-4B"]
    assert "final_eval_loss" in found["best"]


def test_speed_on_another_device_is_said_to_be_that(workspace: Workspace, run: Row, add_run: AddRun) -> None:
    found = compare.compare(workspace, [run["id"], add_run("other", device="NVIDIA L4")["id"]])
    assert "Speed, memory and time are those of different devices." in found["notes"]


def test_evaluations_of_the_adapters_stand_beside_and_a_best_within_the_noise_is_no_best(
    workspace: Workspace, run: Row, validation: Row, benchmark: Row, add_run: AddRun, add_job: AddJob,
    benchmark_result: Make,
) -> None:  # fmt: skip
    other = add_run("other", learning_rate=1e-4)
    metrics = json.loads(json.dumps(validation["result"]["metrics"]))
    metrics["chrf"]["tuned"] = {"value": 49.0, "low": 45.0, "high": 53.0}
    metrics["loss"]["tuned"] = {"value": 1.6, "low": 1.5, "high": 1.7}
    job = add_job(
        "validate", "job-validate-other", {**validation["spec"], "adapter_id": "ad-other"},
        {**validation["result"], "metrics": metrics},
    )  # fmt: skip
    samples = (workspace.home.jobs / validation["id"] / "samples.jsonl").read_text(encoding="utf-8")
    files.write_text(workspace.home.jobs / job["id"] / "samples.jsonl", samples)
    add_job(
        "benchmark", "job-ceval-other", {**benchmark["spec"], "adapter_id": "ad-other"}, benchmark_result(tuned=0.61)
    )
    ids = [run["id"], other["id"]]
    found = compare.compare(workspace, ids)
    assert found["metrics"]["validate: chrF"] == [[48.2, 44.0, 52.3], [49.0, 45.0, 53.0]]
    assert found["best"]["validate: chrF"] == {"job_id": other["id"], "value": 49.0, "within_noise": [run["id"]]}
    assert found["best"]["validate: loss"] == {"job_id": run["id"], "value": 1.26}
    assert found["best"]["accuracy: C-Eval, 5-shot"] == {"job_id": run["id"], "value": 0.755}
    # Had the other been asked other things, there would be no best.
    files.write_text(workspace.home.jobs / job["id"] / "samples.jsonl", "".join(samples.splitlines(True)[:-1]))
    found = compare.compare(workspace, ids)
    assert "NOT COMPARABLE: adapters were validated on different samples, or in different ways." in found["notes"]
    assert "validate: chrF" not in found["best"] and "accuracy: C-Eval, 5-shot" in found["best"]


def test_benchmarks_are_compared_by_their_groups(
    workspace: Workspace, benchmark: Row, add_job: AddJob, benchmark_result: Make
) -> None:
    other = add_job(
        "benchmark", "job-ceval-2", {**benchmark["spec"], "n_shot": 0}, benchmark_result(tuned=0.9, n_shot=0)
    )
    found = compare.compare(workspace, [benchmark["id"], other["id"]])
    assert found["arguments"] == {"n_shot": [5, 0]}
    assert found["metrics"]["All questions"] == [[0.755, 0.732, 0.778], [0.9, 0.877, 0.923]]
    assert found["notes"][0].startswith("NOT COMPARABLE") and found["best"] == {}
    same = add_job("benchmark", "job-ceval-3", benchmark["spec"], benchmark_result(tuned=0.9))
    found = compare.compare(workspace, [benchmark["id"], same["id"]])
    assert found["best"]["All questions"] == {"job_id": same["id"], "value": 0.9}


def test_kinds_are_not_mixed_and_the_number_is_bounded(
    workspace: Workspace, run: Row, validation: Row, export: Row, add_job: AddJob
) -> None:
    with pytest.raises(InvalidInput, match=r"mixed_kinds: .*job-clinic-a1b2 \(finetune\), job-validate-c3d4"):
        compare.compare(workspace, [run["id"], validation["id"]])
    for ids in ([run["id"]], [run["id"], run["id"]], [run["id"], "job-clinic"]):
        with pytest.raises(InvalidInput, match="job_count"):
            compare.compare(workspace, ids)
    with pytest.raises(NotFound):
        compare.compare(workspace, [run["id"], "job-none"])
    again = add_job("export", "job-export-2", export["spec"])
    with pytest.raises(InvalidInput, match="not_comparable"):
        compare.compare(workspace, [export["id"], again["id"]])
    second = add_job("validate", "job-validate-2", validation["spec"])
    with pytest.raises(InvalidInput, match="no_curves"):
        compare.chart_png(workspace, [second["id"], validation["id"]])


def test_a_run_that_still_runs_is_compared_as_far_as_it_has_come(
    workspace: Workspace, run: Row, add_job: AddJob, write_metrics: Callable[..., None]
) -> None:
    live = add_job("finetune", "job-live", run["spec"], state="running")
    write_metrics(live["id"], 5)
    found = compare.compare(workspace, [run["id"], live["id"]])
    last = workspace.store.metrics(live["id"], "train")[-1]["numbers"]["loss"]
    assert found["metrics"]["final_train_loss"][1] == pytest.approx(last, abs=1e-4)
    assert "Not finished, so nowhere the best: job-live." in found["notes"]
    assert found["best"] == {}


def test_ten_jobs_stay_below_four_thousand_tokens(
    workspace: Workspace, run: Row, validation: Row, benchmark: Row, add_run: AddRun, add_job: AddJob,
    benchmark_result: Make,
) -> None:  # fmt: skip
    ids = [run["id"]]
    rewards = [{"kind": "regex", "pattern": "x" * 500}]
    for number in range(9):
        name = f"identity-run-{number}"
        ids.append(
            add_run(
                name, learning_rate=1e-4 * (number + 2), lora_rank=2 ** (number % 5 + 2), batch_size=number + 1,
                epochs=number + 0.5, lora_alpha=16 * (number + 2), weight_decay=0.001 * number, seed=number,
                warmup_ratio=0.01 * number, max_seq_length=512 * (number + 1), rewards=rewards if number % 2 else None,
                spec={"model": f"unsloth/Qwen3-{number}B-unsloth-bnb-4bit", "dataset_id": f"ds-clinic-{number}abc"},
            )["id"]
        )  # fmt: skip
        for kind, job in (("validate", validation), ("benchmark", benchmark)):
            add_job(kind, f"job-{kind}-{number}", {**job["spec"], "adapter_id": f"ad-{name}"}, job["result"])
    found = compare.compare(workspace, ids)
    assert len(found["metrics"]["validate: chrF"]) == 10
    assert len(json.dumps(found, separators=(",", ":"))) < 4000 * CHARACTERS_A_TOKEN


def test_the_chart_draws_every_run_by_epochs_and_its_legend_names_what_differs(
    workspace: Workspace, run: Row, add_run: AddRun
) -> None:
    other = add_run("other", level=0.5, steps=30, learning_rate=1e-4)
    rows = [workspace.store.job(run["id"]), other]
    figure = chart.draw(workspace, rows, ["one", "two"])
    train, evaluation = figure.axes
    # A long run is drawn pale with its median over it, a short one once; both end at the third epoch.
    assert [len(axes.get_lines()) for axes in (train, evaluation)] == [3, 2]
    assert {float(line.get_xdata()[-1]) for line in train.get_lines()} == {3.0}  # type: ignore[index]
    assert {float(line.get_xdata()[-1]) for line in evaluation.get_lines()} == {3.0}  # type: ignore[index]
    assert evaluation.get_xlabel() == "epoch"
    assert [text.get_text() for text in train.get_legend().get_texts()] == ["one", "two"]  # type: ignore[union-attr]
    lowest, highest = train.get_ylim()
    assert lowest == 0 and 2.3 < highest < 4
    assert compare.labels(rows) == ["job-clinic-a1b2, learning_rate=0.0002", "job-other, learning_rate=0.0001"]


def test_the_chart_is_a_picture(workspace: Workspace, run: Row, add_run: AddRun) -> None:
    pixels = imread(io.BytesIO(compare.chart_png(workspace, [run["id"], add_run("other")["id"]])), format="png")
    assert pixels.shape[0] > 600 and pixels.std() > 0.02


def test_the_chart_needs_a_loss(workspace: Workspace, run: Row, add_job: AddJob) -> None:
    first, second = (add_job("finetune", f"job-empty-{number}", run["spec"], state="running") for number in (1, 2))
    with pytest.raises(NotFound, match="no_metrics"):
        compare.chart_png(workspace, [first["id"], second["id"]])
