"""Datasets of hubs, fetched by the real libraries over real HTTP from a stand-in, in a process as a worker's."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from standins.datasets_server import DatasetsStandIn

from tunewright.pipeline.data import hub
from tunewright.pipeline.data.hub import RemoteDataset
from tunewright.pipeline.errors import Unavailable
from tunewright.pipeline.workspace import Workspace

Fetch = Callable[..., dict[str, Any]]

# Answers one request a line: importing `datasets` takes seconds.
SERVE = """
import json, os, sys
from tunewright.pipeline.data import hub, sources
from tunewright.pipeline.errors import TunewrightError
for line in sys.stdin:
    source, split, max_rows, token = json.loads(line)
    os.environ["HF_TOKEN"] = token
    (found,) = sources.resolve(source, split)
    try:
        blocks = list(hub.blocks(found.remote, max_rows, None))
    except TunewrightError as error:
        answer = error.to_dict()
    else:
        answer = {"rows": [row for block in blocks for row in block.parsed()], "blocks": len(blocks)}
    print(json.dumps(answer), flush=True)
"""
CARD = """---
configs:
- config_name: english
  data_files: en.jsonl
- config_name: chinese
  data_files: zh.jsonl
---
"""
TURNS = [
    {"messages": [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": "a"}]} for i in range(2500)
]


def lines(*rows: dict[str, str]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def parquet(rows: list[dict[str, Any]]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def stand_in() -> Iterator[DatasetsStandIn]:
    datasets = {
        "o/plain": {"train.jsonl": lines({"text": "a"}, {"text": "b"}), "test.jsonl": lines({"text": "t"})},
        "o/shards": {"README.md": b"# Turns\n", "data/train-00000-of-00001.parquet": parquet(TURNS)},
        "o/configs": {
            "README.md": CARD.encode(), "en.jsonl": lines({"text": "en"}), "zh.jsonl": lines({"text": "zh"}),
        },
        "o/gated": {"train.jsonl": lines({"text": "secret"})},
        "o/empty": {"README.md": b"# Nothing yet\n"},
        "o/broken": {"train.jsonl": b'{"text": "x"}\n{"text": \n'},
    }  # fmt: skip
    with DatasetsStandIn(datasets, gated=frozenset({"o/gated"})) as server:
        yield server


@contextmanager
def fetching(home: Path, **env: str) -> Generator[Fetch]:
    """`fetch(source)` gives its rows and how many blocks they came in, or the error's fields."""
    with subprocess.Popen(
        [sys.executable, "-P", "-c", SERVE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        encoding="utf-8", cwd=home, env={**os.environ, "HF_HOME": str(home), **env},
    ) as process:  # fmt: skip
        asked, answers = process.stdin, process.stdout
        assert asked
        assert answers

        def fetch(source: Any, split: str = "train", max_rows: int | None = None, token: str = "") -> dict[str, Any]:
            asked.write(json.dumps([source, split, max_rows, token]) + "\n")
            asked.flush()
            return json.loads(answers.readline())

        yield fetch


@pytest.fixture(scope="module")
def fetch(stand_in: DatasetsStandIn, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fetch]:
    with fetching(tmp_path_factory.mktemp("fetch"), HF_ENDPOINT=stand_in.url) as serving:
        yield serving


def test_a_dataset_is_streamed_by_its_id_and_split(fetch: Fetch, stand_in: DatasetsStandIn) -> None:
    assert fetch("o/plain")["rows"] == [[1, {"text": "a"}], [2, {"text": "b"}]]
    assert "o/plain/train.jsonl" in stand_in.downloads
    assert fetch("hf://datasets/o/plain", "test")["rows"] == [[1, {"text": "t"}]]


def test_nested_rows_come_in_several_blocks(fetch: Fetch) -> None:
    fetched = fetch("o/shards")
    assert fetched["rows"] == [[i, row] for i, row in enumerate(TURNS, 1)]
    assert fetched["blocks"] == 3


def test_no_more_is_fetched_than_the_wanted_rows_may_need(fetch: Fetch) -> None:
    fetched = fetch("o/shards", max_rows=10)
    assert len(fetched["rows"]) == hub.READ_FACTOR * 10 + hub.READ_SPARE
    assert fetched["rows"][0] == [1, TURNS[0]]


def test_a_configuration_is_chosen_and_a_missing_one_is_asked_for(fetch: Fetch) -> None:
    assert fetch([{"source": "o/configs", "config": "chinese"}])["rows"] == [[1, {"text": "zh"}]]
    for source in ("o/configs", [{"source": "o/configs", "config": "chinesse"}]):
        error = fetch(source)
        assert error["code"] == "unknown_config"
        assert "english, chinese" in error["allowed"]
        assert '"config": "' in error["next"]
    assert '"config": "chinese"' in error["next"]


def test_a_split_that_is_not_there_is_refused_with_those_that_are(fetch: Fetch) -> None:
    error = fetch("o/plain", "tset")
    assert error["code"] == "unknown_split"
    assert "train, test" in error["allowed"]
    assert error["next"] == 'prepare_dataset(source="o/plain", split="test")'


def test_a_gated_dataset_needs_the_token(fetch: Fetch, stand_in: DatasetsStandIn) -> None:
    without = fetch("o/gated")
    assert without["code"] == "hub_dataset_gated"
    assert "HF_TOKEN is not set" in without["what"]
    wrong = fetch("o/gated", token="hf_wrong")
    assert wrong["code"] == "hub_dataset_gated"
    assert "hf_wrong" not in json.dumps(wrong)
    assert fetch("o/gated", token=stand_in.token)["rows"] == [[1, {"text": "secret"}]]


@pytest.mark.parametrize(
    ("source", "code"),
    [
        ("o/nowhere", "hub_dataset_not_found"),
        ("o/empty", "hub_dataset_unreadable"),
        ("o/broken", "hub_dataset_unreadable"),
    ],
)
def test_a_dataset_that_is_not_there_or_not_a_table_is_refused(fetch: Fetch, source: str, code: str) -> None:
    error = fetch(source)
    assert error["code"] == code
    assert source in error["what"]
    assert error["next"] != f'prepare_dataset(source="{source}")'


@pytest.mark.parametrize(
    "env", [{"HF_ENDPOINT": "http://127.0.0.1:9"}, {"HF_HUB_OFFLINE": "1"}], ids=["down", "offline"]
)
def test_a_hub_that_cannot_be_reached_is_said_with_what_to_do(tmp_path: Path, env: dict[str, str]) -> None:
    with fetching(tmp_path, **env) as fetch:
        error = fetch("o/plain")
    assert error["code"] == "hub_unreachable"
    assert "HF_ENDPOINT" in error["allowed"]
    assert ("HF_HUB_OFFLINE is set" in error["what"]) == ("HF_HUB_OFFLINE" in env)


def test_modelscope_without_its_library_says_what_to_install(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "modelscope", None)
    with pytest.raises(Unavailable, match="modelscope_missing") as raised:
        next(hub.blocks(RemoteDataset("modelscope", "o/name"), None, workspace))
    assert "pip install 'tunewright[modelscope]'" in raised.value.allowed
