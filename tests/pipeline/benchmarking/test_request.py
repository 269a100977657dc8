"""What can be refused before a model is loaded is, each time with what would work."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tunewright.pipeline.benchmarking import request
from tunewright.pipeline.errors import InvalidInput, NotFound, Unavailable
from tunewright.pipeline.inference.subject import Subject
from tunewright.pipeline.store import Row
from tunewright.pipeline.workspace import Workspace


@pytest.fixture
def exam(bench: Any, tmp_path: Path) -> str:
    return str(bench.write_exam(tmp_path / "exam", {"law": 4, "college_physics": 4}))


def add_export(workspace: Workspace, adapter_id: str, sizes: dict[str, int], **parity: Any) -> str:
    folder = workspace.home.exports / "ex-tiny-0000"
    folder.mkdir()
    entries: list[dict[str, Any]] = []
    for output, size in sizes.items():
        path = folder / output.replace(":", "-")
        path.write_bytes(b"")
        entries.append({"output": output, "path": str(path), "bytes": size})
    document = {"adapter_id": adapter_id, "files": entries, "parity": parity}
    workspace.store.add_artifact("ex-tiny-0000", "export", "tiny", document, parents=[adapter_id])
    return "ex-tiny-0000"


def test_the_spec_names_all_that_the_worker_needs(workspace: Workspace, adapter: Row, exam: str) -> None:
    spec = request.check(workspace, adapter["id"], task_dir=exam, n_shot=3, chat_prompt=True, limit=2)
    assert Subject(**spec["subject"]).adapter_path == adapter["document"]["path"]
    assert {key: spec[key] for key in ("task", "task_dir", "subjects", "n_shot", "limit", "harness", "export")} == {
        "task": "ceval", "task_dir": exam, "subjects": ["college_physics", "law"], "n_shot": 3, "limit": 2,
        "harness": False, "export": None,
    }  # fmt: skip
    assert request.check(workspace, adapter["id"], task_dir=exam, subjects=["STEM"])["subjects"] == ["college_physics"]


def test_without_a_folder_all_subjects_come_from_the_hub(workspace: Workspace, adapter: Row) -> None:
    spec = request.check(workspace, adapter["id"], "cmmlu", subjects=["China specific"])
    assert (spec["task_dir"], len(spec["subjects"])) == (None, 15)


def test_wrong_arguments_are_refused(workspace: Workspace, adapter: Row, exam: str) -> None:
    with pytest.raises(InvalidInput, match=r"invalid_n_shot: n_shot=6 .*0 to 5"):
        request.check(workspace, adapter["id"], task_dir=exam, n_shot=6)
    with pytest.raises(InvalidInput, match="invalid_limit"):
        request.check(workspace, adapter["id"], task_dir=exam, limit=0)
    with pytest.raises(InvalidInput, match="unknown_subject"):
        request.check(workspace, adapter["id"], task_dir=exam, subjects=["physics"])
    with pytest.raises(NotFound, match="No adapter has the id"):
        request.check(workspace, "ad-none", task_dir=exam)


def test_a_broken_file_is_named_before_the_job_begins(workspace: Workspace, adapter: Row, exam: str) -> None:
    file = Path(exam) / "dev" / "law_dev.csv"
    file.write_text("id,question,A,B,C,D,answer\n0,q,1,2,3,4,Z\n", encoding="utf-8")
    with pytest.raises(InvalidInput, match=r"Row 2 of .*law_dev\.csv"):
        request.check(workspace, adapter["id"], task_dir=exam)
    assert request.check(workspace, adapter["id"], task_dir=exam, n_shot=0)["subjects"] == ["college_physics", "law"]


@pytest.mark.parametrize(
    ("parity", "output", "why"),
    [
        ({"recommendation": {"output": "gguf:q8_0", "why": "…"}}, "gguf:q8_0", "recommended"),
        ({"outputs": {"gguf:q8_0": {"passed": True}, "gguf:q4_k_m": {"passed": False}}}, "gguf:q8_0", "passed the"),
        ({}, "gguf:q4_k_m", "none passed"),
    ],
)
def test_the_file_that_is_measured_is_the_recommended_or_the_smallest_that_passed(
    workspace: Workspace, adapter: Row, exam: str, parity: dict[str, Any], output: str, why: str
) -> None:
    sizes = {"lora": 1, "gguf:f16": 30, "gguf:q8_0": 20, "gguf:q4_k_m": 10}
    export_id = add_export(workspace, adapter["id"], sizes, **parity)
    chosen = request.check(workspace, adapter["id"], task_dir=exam, export_id=export_id)["export"]
    assert (chosen["export_id"], chosen["output"]) == (export_id, output)
    assert why in chosen["why"]


def test_an_export_of_another_adapter_or_without_gguf_is_refused(workspace: Workspace, adapter: Row, exam: str) -> None:
    export_id = add_export(workspace, adapter["id"], {"merged_16bit": 10})
    with pytest.raises(InvalidInput, match=r"no_gguf.*merge_and_export"):
        request.check(workspace, adapter["id"], task_dir=exam, export_id=export_id)
    workspace.store.execute("UPDATE artifacts SET document=json_set(document, '$.adapter_id', 'ad-other')"
                            " WHERE id=?", export_id)  # fmt: skip
    with pytest.raises(InvalidInput, match="other_adapter"):
        request.check(workspace, adapter["id"], task_dir=exam, export_id=export_id)


def test_other_tasks_need_the_harness_and_say_how_to_install_it(
    workspace: Workspace, adapter: Row, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request, "find_spec", lambda name: None)
    with pytest.raises(Unavailable, match=r"harness_missing.*Nearest: ceval.*pip install 'tunewright\[harness\]'"):
        request.check(workspace, adapter["id"], "cevall")


@pytest.mark.skipif(find_spec("lm_eval") is None, reason="lm-eval is not installed (tunewright[harness])")
def test_what_the_harness_cannot_do_is_refused(workspace: Workspace, adapter: Row, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="export_not_in_harness"):
        request.check(workspace, adapter["id"], "gsm8k", export_id="ex-any")
    with pytest.raises(InvalidInput, match="subjects_not_in_harness"):
        request.check(workspace, adapter["id"], "gsm8k", subjects=["law"])
    with pytest.raises(InvalidInput, match="task_dir_not_found"):
        request.check(workspace, adapter["id"], "gsm8k", str(tmp_path / "gone"))
    assert request.check(workspace, adapter["id"], "gsm8k", n_shot=8)["harness"]
