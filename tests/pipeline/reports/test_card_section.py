"""The evaluation in the model card: its numbers, its intervals, and nothing of the data or of this machine."""

import json
from collections.abc import Callable
from typing import Any

import yaml

from tunewright.pipeline import reports
from tunewright.pipeline.publishing import card
from tunewright.pipeline.store import Row
from tunewright.pipeline.validation import pairs
from tunewright.pipeline.workspace import Workspace

ADAPTER = "ad-clinic-a1b2"
AddJob = Callable[..., Row]


def test_the_section_tells_sentence_metrics_and_benchmarks(
    workspace: Workspace, validation: Row, benchmark: Row
) -> None:
    lines = reports.markdown(workspace, ADAPTER).splitlines()
    assert lines[0] == "## Evaluation"
    assert validation["result"]["sentence"] in lines
    assert "| chrF ↑ | 35.9 [32.2, 39.5] | 48.2 [44.0, 52.3] | +12.3 [8.1, 16.4] |" in lines
    assert "| perplexity ↓ | 6.89 [6.11, 7.85] | 3.53 [3.25, 3.86] | – |" in lines
    assert "### C-Eval, 5-shot" in lines
    assert "| | tuned | base |" in lines
    assert "| All questions | 75.5% [73.2, 77.8] | 76.2% [73.9, 78.5] |" in lines
    assert "50 held-out samples." in lines


def test_no_text_of_the_data_and_no_path_stands_in_it(workspace: Workspace, validation: Row, benchmark: Row) -> None:
    note = f"The numbers of each subject stand in {workspace.home.root}/jobs/job-1/evaluation.json."
    result = {**benchmark["result"], "notes": [note]}
    workspace.store.execute("UPDATE jobs SET result=? WHERE id=?", json.dumps(result), benchmark["id"])
    text = reports.markdown(workspace, ADAPTER)
    assert str(workspace.home.root) not in text and "/jobs/" not in text
    for quoted in ("vomiting", "停经", "finding"):
        assert quoted not in text


def test_without_an_evaluation_there_is_no_section(workspace: Workspace, run: Row, add_job: AddJob) -> None:
    assert reports.markdown(workspace, ADAPTER) == ""
    add_job("validate", "job-failed", {"adapter_id": ADAPTER}, state="failed")
    assert reports.markdown(workspace, ADAPTER) == ""


def test_the_win_rate_of_blind_pairs_is_told(workspace: Workspace, validation: Row) -> None:
    offered = pairs.offer(workspace, validation["id"], 3)
    tally = pairs.submit(workspace, validation["id"], {pair.id: "tie" for pair in offered})
    assert tally.sentence in reports.markdown(workspace, ADAPTER)


def front_matter(text: str) -> dict[str, Any]:
    return yaml.safe_load(text.split("---\n")[1])


def test_the_card_holds_the_section_and_the_hubs_index_of_whole_benchmarks(
    workspace: Workspace, validation: Row, benchmark: Row
) -> None:
    text = card.build(workspace, workspace.store.artifact(ADAPTER), "tester/clinic")
    assert reports.markdown(workspace, ADAPTER) in text
    (entry,) = front_matter(text)["model-index"]
    assert entry["name"] == "clinic"
    (result,) = entry["results"]
    assert result["dataset"]["type"] == "ceval/ceval-exam"
    assert [(one["type"], one["value"]) for one in result["metrics"]] == [("accuracy", 0.755)]


def test_a_part_of_a_benchmark_or_one_of_a_folder_is_not_indexed(workspace: Workspace, benchmark: Row) -> None:
    for changes in ({"limit": 5}, {"task_dir": "/x/ceval"}, {"subjects": ["law"]}):
        spec = json.dumps({**benchmark["spec"], **changes})
        workspace.store.execute("UPDATE jobs SET spec=? WHERE id=?", spec, benchmark["id"])
        text = card.build(workspace, workspace.store.artifact(ADAPTER), "tester/clinic")
        assert "model-index" not in front_matter(text)
        assert "### C-Eval, 5-shot" in text


def test_what_is_not_the_adapter_that_was_evaluated_does_not_borrow_its_numbers(
    workspace: Workspace, validation: Row, benchmark: Row, export: Row
) -> None:
    (artifact,) = workspace.store.artifacts("export")
    gguf = card.build(workspace, artifact, "tester/clinic", ["gguf:q8_0"])
    assert "## Evaluation" in gguf and "model-index" not in front_matter(gguf)
    for changes in ({"adapter_scale": 0.5}, {"combine_with": {"ad-other": 0.5}, "combination": "cat"}):
        other = {**artifact, "document": {**artifact["document"], **changes}}
        text = card.build(workspace, other, "tester/clinic", ["merged_16bit"])
        assert "## Evaluation" not in text and "model-index" not in front_matter(text)
