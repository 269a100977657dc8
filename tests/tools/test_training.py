"""start_finetune up to the queue, cancel_job and resume_job. The training itself is tested with the pipeline."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tunewright.pipeline.store import Row
from tunewright.pipeline.workspace import Workspace

pytestmark = pytest.mark.anyio

Call = Callable[..., Awaitable[dict[str, Any]]]
Refused = Callable[..., Awaitable[str]]
EndedJob = Callable[..., str]


async def test_a_dry_run_chooses_every_argument_and_starts_nothing(
    call: Call, dataset_id: str, workspace: Workspace
) -> None:
    answer = await call("start_finetune", dataset_id=dataset_id, model="toy", dry_run=True, epochs=2)
    assert answer["job_id"] is None
    assert answer["arguments"]["epochs"] == 2
    assert answer["arguments"]["max_seq_length"] == 256
    assert answer["arguments"]["lora_alpha"] == 32
    assert not workspace.store.rows("SELECT id FROM jobs")
    assert not list(workspace.home.jobs.iterdir())


async def test_what_the_plan_warns_of_is_said_at_the_start(call: Call, dataset_id: str) -> None:
    started = await call("start_finetune", dataset_id=dataset_id, model="toy", dry_run=True)
    assert any("rows are thin" in warning for warning in started["warnings"])


async def test_the_start_that_a_dry_run_suggests_chooses_the_same(call: Call, dataset_id: str) -> None:
    first = await call("start_finetune", dataset_id=dataset_id, model="toy", dry_run=True, seed=7)
    (step,) = first["next_steps"]
    assert step["tool"] == "start_finetune"
    assert "dry_run" not in step["arguments"]
    again = await call("start_finetune", **step["arguments"], dry_run=True)
    assert again["arguments"] == first["arguments"]


async def test_the_start_that_a_dry_run_suggests_goes_on_from_the_same_adapter(
    call: Call, dataset_id: str, adapter: Row
) -> None:
    asked = {"dataset_id": dataset_id, "model": "toy", "continue_from": adapter["id"][:6], "dry_run": True}
    (step,) = (await call("start_finetune", **asked))["next_steps"]
    assert step["arguments"]["continue_from"] == adapter["id"]
    assert (await call("start_finetune", **step["arguments"], dry_run=True))["arguments"]["target_modules"] == [
        "q_proj"
    ]


@pytest.mark.usefixtures("held_device")
async def test_a_started_job_waits_its_turn_and_can_be_cancelled_and_resumed(
    call: Call, refused: Refused, dataset_id: str, workspace: Workspace
) -> None:
    started = await call("start_finetune", dataset_id=dataset_id[:6], model="toy", max_steps=2, name="counting")
    job_id = started["job_id"]
    assert job_id.startswith("job-counting-")
    assert started["state"] == "queued"
    assert workspace.store.job(job_id)["spec"]["dataset_id"] == dataset_id
    assert (await refused("resume_job", job_id=job_id)).startswith("job_not_resumable: ")
    text = await refused("delete_artifact", artifact_id=dataset_id, confirm=True)
    assert text.startswith("still_needed: ") and job_id in text

    await call("cancel_job", job_id=job_id[:9])
    cancelled = await call("get_status", job_id=job_id, wait_s=30)
    assert cancelled["job"]["state"] == "cancelled"
    assert cancelled["poll_after_s"] is None
    assert "resume_job" in {step["tool"] for step in cancelled["next_steps"]}
    assert (await refused("cancel_job", job_id=job_id)).startswith(f"job_ended: {job_id} is cancelled already.")

    assert (await call("resume_job", job_id=job_id))["state"] == "queued"
    await call("cancel_job", job_id=job_id, keep_checkpoint=False)
    assert (await call("get_status", job_id=job_id, wait_s=30))["job"]["state"] == "cancelled"


async def test_an_ollama_tag_is_refused_with_the_model_to_train_instead(refused: Refused, dataset_id: str) -> None:
    text = await refused("start_finetune", dataset_id=dataset_id, model="qwen3:8b")
    assert text.startswith("model_not_trainable: 'qwen3:8b' is an Ollama tag")
    assert 'Next: plan_finetune(dataset_id="…", model="unsloth/Qwen3-8B").' in text


async def test_a_gguf_file_is_refused(refused: Refused, dataset_id: str, tmp_path: Path) -> None:
    (tmp_path / "Qwen3-4B-Q4_K_M.gguf").write_bytes(b"GGUF")
    text = await refused("start_finetune", dataset_id=dataset_id, model=str(tmp_path / "Qwen3-4B-Q4_K_M.gguf"))
    assert text.startswith("model_not_trainable: ")
    assert 'model="unsloth/Qwen3-4B"' in text


async def test_a_hub_model_out_of_reach_is_refused_with_what_works_here(
    refused: Refused, dataset_id: str, workspace: Workspace
) -> None:
    text = await refused("start_finetune", dataset_id=dataset_id, model="nobody/None-1B")
    assert text.startswith("model_not_downloadable: 'nobody/None-1B' is not cached on this machine")
    assert "http://127.0.0.1:9 cannot be reached" in text
    assert 'plan_finetune(dataset_id="…", model="toy")' in text
    assert not workspace.store.rows("SELECT id FROM jobs")


async def test_a_name_without_an_owner_is_refused_with_the_full_one(refused: Refused, dataset_id: str) -> None:
    text = await refused("start_finetune", dataset_id=dataset_id, model="qwen3-8b")
    assert text.startswith("model_not_found: ")
    assert "Nearest: unsloth/Qwen3-8B." in text


async def test_a_folder_that_is_not_there_or_holds_no_model_is_refused(
    refused: Refused, dataset_id: str, tmp_path: Path
) -> None:
    text = await refused("start_finetune", dataset_id=dataset_id, model=str(tmp_path / "nowhere"))
    assert text.startswith("model_not_found: There is no folder ")
    assert (await refused("start_finetune", dataset_id=dataset_id, model=str(tmp_path))).startswith("not_a_model: ")


async def test_what_a_machine_without_a_gpu_cannot_do_is_refused(refused: Refused, dataset_id: str) -> None:
    text = await refused("start_finetune", dataset_id=dataset_id, model="toy", load_in_4bit=True)
    assert text.startswith("four_bit_needs_gpu: ")
    text = await refused("start_finetune", dataset_id=dataset_id, model="toy", packing=True)
    assert text.startswith("packing_needs_gpu: ")


async def test_an_id_of_another_kind_is_refused(refused: Refused, dataset_id: str, adapter: Row) -> None:
    text = await refused("start_finetune", dataset_id=adapter["id"], model="toy")
    assert text.startswith(f"wrong_kind: {adapter['id']} is of kind ")
    assert 'Next: list_artifacts(kind="dataset").' in text


async def test_an_unknown_job_is_refused_with_the_nearest(refused: Refused, ended_job: EndedJob) -> None:
    job_id = ended_job("finetune", "failed")
    for tool in ("cancel_job", "resume_job", "get_status", "delete_artifact"):
        key = "artifact_id" if tool == "delete_artifact" else "job_id"
        text = await refused(tool, **{key: f"{job_id[:-4]}none"})
        assert text.startswith("job_not_found: ")
        assert f"Nearest: {job_id}." in text
        assert "Next: get_status()." in text


async def test_an_ambiguous_prefix_is_refused_with_all_that_it_means(refused: Refused, ended_job: EndedJob) -> None:
    ids = [ended_job("finetune", "failed") for _ in range(2)]
    text = await refused("get_status", job_id="job-")
    assert text.startswith("ambiguous_id: 2 jobs begin with 'job-'.")
    assert all(job_id in text for job_id in ids)


@pytest.mark.usefixtures("held_device")
async def test_an_export_is_queued_with_what_was_asked_for(
    call: Call, refused: Refused, adapter: Row, workspace: Workspace
) -> None:
    text = await refused("merge_and_export", adapter_id=adapter["id"], outputs=["gguf:q2_k"])
    assert text.startswith("unknown_output: ")
    assert "Next: merge_and_export(" in text
    workspace.store.add_artifact("ad-other-0001", "adapter", "other", adapter["document"], parents=[])
    asked = {
        "adapter_id": adapter["id"], "outputs": ["gguf:q8_0"], "adapter_scale": 0.5,
        "combine_with": {"ad-other-0001": 0.3}, "combination": "ties", "verify": False,
    }  # fmt: skip
    answer = await call("merge_and_export", **asked)
    assert workspace.store.job(answer["job_id"])["spec"] == {**asked, "name": adapter["name"]}
    await call("cancel_job", job_id=answer["job_id"])
    assert (await call("get_status", job_id=answer["job_id"], wait_s=30))["job"]["state"] == "cancelled"
