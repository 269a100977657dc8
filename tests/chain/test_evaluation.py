"""Evaluation over stdio with a real client: validation, blind pairs, a benchmark with its GGUF, report, comparison."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from chain.conftest import Chain

from tunewright.examples.session import ToolFailed, call, connect, follow
from tunewright.pipeline.publishing import card
from tunewright.pipeline.workspace import Workspace

pytestmark = pytest.mark.anyio

SUBJECT = "computer_network"
LETTERS = "ABCD"


def write_exam(folder: Path, questions: int = 12) -> Path:
    """C-Eval's own layout: five examples in dev/, questions in val/."""
    for split, count in (("dev", 5), ("val", questions)):
        (folder / split).mkdir(parents=True)
        with (folder / split / f"{SUBJECT}_{split}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["id", "question", *LETTERS, "answer", *(["explanation"] if split == "dev" else [])])
            for i in range(count):
                row = [i, f"What is {i} plus {i}?", 2 * i, 2 * i + 1, 2 * i + 2, 2 * i + 3, LETTERS[i % 4]]
                writer.writerow([*row, *(["Because."] if split == "dev" else [])])
    return folder


async def test_a_tuned_model_is_shown_to_be_better_judged_and_reported(
    chain: Chain, eventually: Callable[..., None]
) -> None:
    adapter_id = chain.answers["training"]["result"]["adapter_id"]
    dataset_id = chain.answers["dataset"]["dataset_id"]
    async with connect(chain.home) as client:
        prompts = ["Who runs the shop?", "Where is the shop?", "What does the shop sell?"]
        asked = await call(client, "validate_adapter", adapter_id=adapter_id, prompts=prompts, max_new_tokens=24)
        held_out = await call(
            client, "validate_adapter", adapter_id=adapter_id, dataset_id=dataset_id, max_new_tokens=24
        )
        first, second = [(await follow(client, job["job_id"]))["result"] for job in (asked, held_out)]
        assert first["samples"] == 3 and first["metrics"]
        loss = second["metrics"]["loss"]
        assert loss["tuned"]["value"] < loss["base"]["value"]
        assert second["sentence"]

        shown = await call(client, "submit_judgements", job_id=asked["job_id"], count=2)
        assert len(shown["pairs"]) == 2 and shown["tally"]["revealed"] is None
        again = await call(client, "submit_judgements", **shown["next_steps"][0]["arguments"], count=3)
        assert again["tally"]["judged"] == 2
        last = await call(client, "submit_judgements", **again["next_steps"][0]["arguments"])
        assert last["tally"]["remaining"] == 0 and last["tally"]["win_rate"]["value"] == 0.5
        with pytest.raises(ToolFailed, match="pairs_revealed"):
            await call(client, "submit_judgements", **again["next_steps"][0]["arguments"])

        report = (await client.read_resource(f"tw://jobs/{held_out['job_id']}/report.html")).contents[0]
        assert second["sentence"].split(".")[0][:20] in _text(report)
        # The worker writes it once its job has succeeded.
        eventually((Path(chain.home) / "jobs" / held_out["job_id"] / "report.html").is_file)
        run_id = chain.answers["started"]["job_id"]
        page = _text((await client.read_resource(f"tw://jobs/{run_id}/report.html")).contents[0])
        for said in ("<svg", "train loss", "eval loss", "Plan and reality", held_out["job_id"], "../../datasets/"):
            assert said in page, said
        assert second["sentence"] in page.replace("&#39;", "'")
        workspace = Workspace.open(chain.home)
        text = card.build(workspace, workspace.store.artifact(adapter_id), "tester/shop")
        assert "## Evaluation" in text and "shop is open" not in text and chain.home not in text
        side_by_side = await call(client, "compare_runs", job_ids=[asked["job_id"], held_out["job_id"]])
        assert side_by_side["comparison"]


def _text(content: Any) -> str:
    return content.text


async def test_a_benchmark_scores_tuned_base_and_gguf_on_the_same_questions(chain: Chain, tmp_path: Path) -> None:
    adapter_id = chain.answers["training"]["result"]["adapter_id"]
    folder = write_exam(tmp_path / "ceval-exam")
    async with connect(chain.home) as client:
        started = await call(
            client, "benchmark_adapter", adapter_id=adapter_id, task_dir=str(folder), n_shot=1,
            export_id=chain.answers["export"]["export_id"],
        )  # fmt: skip
        result = (await follow(client, started["job_id"]))["result"]
    assert result["questions"] == 12
    assert set(result["models"]) == {"tuned", "base", "export"}
    for model in result["models"].values():
        found = model["subjects"][SUBJECT]
        assert found["of"] == 12 and found["accuracy"] == round(found["correct"] / 12, 4)
        assert model["accuracy"]["low"] <= found["correct"] / 12 <= model["accuracy"]["high"]
    pairs = {(comparison["a"], comparison["b"]) for comparison in result["comparisons"]}
    assert ("tuned", "base") in pairs
    assert "better" not in result["sentence"] or "tuned" in result["sentence"].lower()
