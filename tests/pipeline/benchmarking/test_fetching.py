"""Exams of the Hub, by the real library over real HTTP from a stand-in, in a process as a worker's."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from standins.datasets_server import DatasetsStandIn

from tunewright.pipeline.benchmarking.exams import LETTERS

# A thread of a library that still runs while Python ends has once aborted the process after all was printed.
FETCH = """
import json, os, sys
from dataclasses import asdict
from tunewright.pipeline.benchmarking import fetching
from tunewright.pipeline.benchmarking.exams import BENCHMARKS
from tunewright.pipeline.errors import TunewrightError
for task, subject, limit in json.loads(sys.argv[1]):
    seen = []
    try:
        (exam,) = fetching.fetch(
            None, BENCHMARKS[task], [subject], with_examples=True, limit=limit, on_subject=seen.append
        )
        print(json.dumps([seen, asdict(exam)]))
    except TunewrightError as error:
        print(json.dumps(error.to_dict()))
sys.stdout.flush()
os._exit(0)
"""


def parquet(rows: list[dict[str, Any]]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


def fetch(url: str, home: Path, *wanted: tuple[str, str, int | None]) -> list[Any]:
    done = subprocess.run(
        [sys.executable, "-P", "-c", FETCH, json.dumps(wanted)], capture_output=True, encoding="utf-8", timeout=180,
        env={**os.environ, "HF_HOME": str(home), "HF_ENDPOINT": url}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def card(*configs: str) -> bytes:
    lines = ["---", "configs:"]
    for config in configs:
        lines += [f"- config_name: {config}", "  data_files:"]
        lines += [f"  - split: {split}\n    path: {config}/{split}-*" for split in ("dev", "val", "test")]
    return "\n".join([*lines, "---", ""]).encode()


@pytest.fixture(scope="module")
def fetched(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """What one process got, in the order of the tests that look at it: importing the library takes seconds."""
    columns = [
        {"question": f"问{n}", **dict(zip(LETTERS, "1234", strict=True)), "answer": LETTERS[n]} for n in range(4)
    ]
    listed = [{"question": f"q{n}", "choices": list("1234"), "answer": n} for n in range(4)]
    ceval = {"law": columns, "art": [columns[0] | {"answer": ""}] * 2, "logic": [columns[0] | {"answer": "E"}] * 2}
    files: dict[str, dict[str, bytes]] = {}
    for name, subjects in (("ceval/ceval-exam", ceval), ("cais/mmlu", {"anatomy": listed})):
        files[name] = {"README.md": card(*subjects)} | {
            f"{subject}/{split}-00000-of-00001.parquet": parquet(rows[:2] if split == "dev" else rows[1:])
            for subject, rows in subjects.items()
            for split in ("dev", "val", "test")
        }
    with pytest.MonkeyPatch.context() as patch, DatasetsStandIn(files) as hub:
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        return fetch(
            hub.url, tmp_path_factory.mktemp("hf"), ("ceval", "law", 2), ("mmlu", "anatomy", None),
            ("cmmlu", "arts", None), ("ceval", "art", None), ("ceval", "logic", None),
        )  # fmt: skip


def test_the_forms_of_the_hub_become_the_same_exams(fetched: list[Any]) -> None:
    (seen, ceval), (_, mmlu), missing = fetched[:3]
    assert seen == [0]
    assert ceval["questions"] == [{"text": f"问{n}", "options": list("1234")} for n in (1, 2)]
    assert ceval["key"] == ["B", "C"]
    # The second example is asked.
    assert [example["letter"] for example in ceval["examples"]] == ["A"]
    assert (mmlu["key"], mmlu["questions"][0]["text"]) == (["B", "C", "D"], "q1")
    assert missing["code"] == "hub_dataset_not_found"
    assert "task_dir" in missing["next"]


def test_questions_without_answers_or_with_an_unknown_one_are_refused(fetched: list[Any]) -> None:
    assert [error["code"] for error in fetched[3:]] == ["unusable_question"] * 2


def test_a_hub_out_of_reach_is_said_with_what_to_do(tmp_path: Path) -> None:
    (error,) = fetch("http://127.0.0.1:9", tmp_path, ("ceval", "law", None))
    assert error["code"] == "hub_unreachable"
    assert 'benchmark_adapter(adapter_id="…", task="ceval", task_dir="…")' in error["next"]
    assert "ceval/ceval-exam" in error["allowed"]
