"""What a person or an agent gets to see: status, the curve as a picture, the environment, the list of models."""

import json
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

from tunewright.pipeline import catalog, environment, jobs, plots, status
from tunewright.pipeline.errors import NotFound
from tunewright.pipeline.workspace import Workspace

PNG = b"\x89PNG\r\n\x1a\n"
AddJob = Callable[..., dict[str, Any]]


@pytest.fixture
def add_job(workspace: Workspace) -> AddJob:
    def added(state: str = "running", **columns: Any) -> dict[str, Any]:
        values = {
            "id": "job-1", "kind": "finetune", "state": state, "needs_device": 1, "spec": "{}", "created_at": 100.0,
            **columns,
        }  # fmt: skip
        marks = ",".join("?" * len(values))
        workspace.store.execute(f"INSERT INTO jobs({','.join(values)}) VALUES ({marks})", *values.values())
        return workspace.store.job("job-1")

    return added


def metrics(count: int) -> list[dict[str, Any]]:
    return [{"step": step, "numbers": {"loss": 10 - step / 100}} for step in range(1, count + 1)]


def test_a_long_curve_is_thinned_evenly_with_both_ends(workspace: Workspace) -> None:
    points = status.curve(metrics(500))
    assert len(points) == status.CURVE_POINTS
    assert points[0] == (1, 9.99) and points[-1] == (500, 5.0)
    gaps = {later[0] - earlier[0] for earlier, later in pairwise(points)}
    assert gaps <= {26, 27}
    assert status.curve(metrics(3)) == [(1, 9.99), (2, 9.98), (3, 9.97)]
    assert status.curve([]) == []


def test_a_running_job_shows_where_it_is(workspace: Workspace, add_job: AddJob) -> None:
    progress = {"phase": "training", "done": 3, "total": 9, "eta_s": 60, "at": 130.0}
    row = add_job(started_at=110.0, progress=json.dumps(progress))
    workspace.store.add_metric("job-1", "train", 3, {"loss": 2.0, "tokens_per_s": 900.0, "peak_gib": 1.5})
    workspace.store.add_metric("job-1", "eval", 3, {"loss": 2.5})
    workspace.store.add_event("job-1", "info", "started", "Running on cpu.")
    seen = status.describe(workspace, row, events=5)
    shown = [seen[key] for key in ("phase", "done", "total", "eta_s", "elapsed_s", "loss", "eval_loss")]
    assert shown == ["training", 3, 9, 60, 20.0, 2.0, 2.5]
    assert (seen["tokens_per_s"], seen["peak_gib"]) == (900.0, 1.5)
    assert (seen["loss_curve"], seen["eval_curve"]) == ([(3, 2.0)], [(3, 2.5)])
    assert seen["events"] == ["info started: Running on cpu."]
    assert seen["log"] == str(jobs.log_path(workspace, "job-1"))


def test_an_ended_job_shows_no_phase_and_how_long_it_took(workspace: Workspace, add_job: AddJob) -> None:
    progress = json.dumps({"phase": "training", "eta_s": 60, "at": 130.0})
    row = add_job("failed", started_at=110.0, ended_at=140.0, progress=progress, error=json.dumps({"code": "x"}))
    seen = status.describe(workspace, row, events=5)
    assert (seen["phase"], seen["eta_s"], seen["elapsed_s"], seen["error"]) == (None, None, 30.0, {"code": "x"})
    assert status.summarise(row)["state"] == "failed"


def test_a_queued_job_has_no_numbers_yet(workspace: Workspace, add_job: AddJob) -> None:
    seen = status.describe(workspace, add_job("queued"), events=5)
    assert {seen[key] for key in ("phase", "eta_s", "elapsed_s", "loss", "eval_loss", "tokens_per_s")} == {None}


def test_the_curve_is_a_picture(workspace: Workspace, add_job: AddJob) -> None:
    add_job()
    with pytest.raises(NotFound, match=r"no_metrics: job-1 has no metrics yet\."):
        plots.loss_png(workspace, "job-1")
    workspace.store.add_metric("job-1", "train", 1, {"loss": 2.0})
    one = plots.loss_png(workspace, "job")
    workspace.store.add_metric("job-1", "train", 2, {"loss": 1.0})
    workspace.store.add_metric("job-1", "eval", 2, {"loss": 1.5})
    both = plots.loss_png(workspace, "job-1")
    assert one.startswith(PNG) and both.startswith(PNG) and one != both


def test_the_environment_says_what_is_here_and_what_is_not(workspace: Workspace) -> None:
    found = environment.check(workspace)
    assert found["home"] == str(workspace.home.root)
    assert found["gpus"] == [] and found["device"].startswith("cpu (")
    assert found["ram_total_gib"] >= found["ram_free_gib"] > 0
    assert {"torch", "unsloth", "transformers"} <= found["versions"].keys()
    assert found["usable"]["ollama"] == "no answer at http://127.0.0.1:9"
    assert found["usable"]["toy_model"].startswith("made by the first fine-tune")
    assert any("No GPU" in warning for warning in found["warnings"])


def test_models_are_found_by_all_words_of_a_query(workspace: Workspace) -> None:
    everything = [row["model"] for row in environment.list_models(workspace, "", fits_only=False)]
    assert everything[0] == catalog.TOY
    assert {model.hub_id for model in catalog.KNOWN_MODELS} <= set(everything)
    base = environment.list_models(workspace, "QWEN3 8b base", fits_only=False)
    assert [row["model"] for row in base] == ["unsloth/Qwen3-8B-Base"]
    by_tag = environment.list_models(workspace, "qwen3:8b", fits_only=False)
    assert [row["model"] for row in by_tag] == ["unsloth/Qwen3-8B"]


def test_without_a_gpu_only_small_models_fit(workspace: Workspace) -> None:
    fitting = {row["model"]: row["fits"] for row in environment.list_models(workspace, "", fits_only=True)}
    assert fitting["toy"] == "cpu"
    assert "unsloth/Qwen3-8B" not in fitting


@pytest.mark.parametrize(
    ("free_gib", "ram_gib", "parameters_b", "fits"),
    [(80, 64, 8.2, "lora"), (12, 64, 8.2, "qlora"), (4, 64, 8.2, "no"), (0, 64, 8.2, "no"), (0, 8, 0.6, "cpu"),
     (0, 2, 0.6, "no"), (6, 64, 1.7, "lora")],
)  # fmt: skip
def test_whether_a_model_fits_follows_from_free_memory(
    free_gib: float, ram_gib: float, parameters_b: float, fits: str
) -> None:
    qlora = catalog.vram_gb(parameters_b, load_in_4bit=True)
    lora = catalog.vram_gb(parameters_b, load_in_4bit=False)
    assert environment._fits(qlora, lora, free_gib, ram_gib, parameters_b) == fits
