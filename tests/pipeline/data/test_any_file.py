"""No file, however broken, gives anything but a dataset or an error in the agreed form, in generated cases.

Most cases go through what reads foreign bytes (reading, layouts, cleaning, staging); every twentieth makes the whole
dataset. `TUNEWRIGHT_TEST_CASES=10000` tries as many as were asked for (a minute); the suite tries fewer.
"""

import gzip
import io
import json
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tunewright.pipeline.data import cleaning, splits, staging
from tunewright.pipeline.data.arguments import DatasetArguments
from tunewright.pipeline.data.prepare import prepare
from tunewright.pipeline.data.processing import Recipe
from tunewright.pipeline.data.sources import resolve
from tunewright.pipeline.errors import TunewrightError
from tunewright.pipeline.workspace import Workspace

CASES = int(os.environ.get("TUNEWRIGHT_TEST_CASES", "1000"))
WHOLE = CASES // 20
SUFFIXES = (
    ".json", ".jsonl", ".csv", ".tsv", ".parquet", ".arrow", ".txt", ".md", ".jsonl.gz", ".json.gz", ".csv.zst", ".xyz",
)  # fmt: skip
COLUMNS = (
    "instruction", "input", "output", "messages", "conversations", "prompt", "response", "completion", "chosen",
    "rejected", "label", "text", "system", "history", "tools", "question", "answer", "reasoning", "",
)  # fmt: skip
ROLES = ("user", "assistant", "system", "human", "gpt", "tool", "function_call", "observation", "wizard", "")

TEXTS = st.one_of(
    st.text(max_size=40),
    st.sampled_from(
        [
            "", " ", "Hi", "<|im_end|>", "a<|im_start|>b", "<p>x</p>", "{{name}}", "cafÃ©", "a@b.org", "\x00", "\ud800",
            "4111 1111 1111 1111", '[{"role": "user"', "</s>", "<think>\nx\n</think>\n\ny",
            "\n\nHuman: a\n\nAssistant: b",
        ]
    ),
)  # fmt: skip
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXTS)
TURNS = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "role": st.sampled_from(ROLES) | SCALARS, "content": TEXTS | SCALARS | st.lists(SCALARS, max_size=2),
            "from": st.sampled_from(ROLES), "value": TEXTS, "tool_calls": SCALARS | st.lists(SCALARS, max_size=2),
        },
    ),
    max_size=5,
)  # fmt: skip
VALUES = st.recursive(
    SCALARS | TURNS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
# Well-formed rows stand among the others, so that many cases get past the layout.
GOOD = st.builds(lambda a, b: {"instruction": a, "input": "", "output": b}, TEXTS, TEXTS)
ROWS = st.lists(GOOD | st.dictionaries(st.sampled_from(COLUMNS), VALUES, max_size=5) | SCALARS, max_size=8)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=True)


def _as_bytes(rows: list[Any], suffix: str) -> bytes:
    """The rows as the suffix wants them, where they can be; else as JSON lines under a wrong name."""
    if suffix.startswith((".csv", ".tsv")):
        names = list(dict.fromkeys(key for row in rows if isinstance(row, dict) for key in row)) or ["a"]
        cells = [[str(row.get(name, "")) for name in names] for row in rows if isinstance(row, dict)]
        return "\n".join(",".join(line) for line in [names, *cells]).encode("utf-8", "replace")
    if suffix == ".parquet":
        table = pa.table({"text": [_json(row) for row in rows], "label": list(range(len(rows)))})
        buffer = io.BytesIO()
        pq.write_table(table, buffer)
        return buffer.getvalue()
    if suffix.startswith(".json") and not suffix.startswith(".jsonl"):
        return _json(rows).encode()
    return "\n".join(_json(row) for row in rows).encode()


@st.composite
def files(draw: st.DrawFn) -> tuple[str, bytes]:
    suffix = draw(st.sampled_from(SUFFIXES))
    content = draw(st.one_of(st.binary(max_size=200), ROWS.map(lambda rows: _as_bytes(rows, suffix))))
    if suffix.endswith(".gz") and draw(st.booleans()):
        content = gzip.compress(content, mtime=0)
    if draw(st.integers(0, 2)) == 0 and content:  # damaged on the way
        at = draw(st.integers(0, len(content) - 1))
        damage = draw(st.sampled_from([b"", b"\x00", b"\xff\xfe", b'"', b"\n", b"[" * 50]))
        content = content[:at] + damage + content[at + draw(st.integers(0, 3)) :]
    return suffix, content


@contextmanager
def written(workspace: Workspace, suffix: str, content: bytes) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=workspace.home.root.parent) as folder:
        file = Path(folder) / f"rows{suffix}"
        file.write_bytes(content)
        yield file


def assert_agreed(error: TunewrightError) -> None:
    assert re.fullmatch(r"[a-z0-9_]+", error.code)
    assert error.what and error.allowed and len(str(error)) < 4000
    assert "Traceback" not in str(error)


QUIET = settings(
    deadline=None, database=None, suppress_health_check=list(HealthCheck), derandomize=True,
    phases=[Phase.generate, Phase.shrink],
)  # fmt: skip


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return Workspace.open(tmp_path_factory.mktemp("any") / "home")


@settings(QUIET, max_examples=CASES - WHOLE)
@given(case=files())
def test_any_file_is_staged_or_refused(workspace: Workspace, case: tuple[str, bytes]) -> None:
    with written(workspace, *case) as file:
        try:
            sources = resolve(str(file), "train", workspace)
            staged = staging.stage(
                workspace, sources, DatasetArguments(), Recipe(cleaning.actions(None)), file.parent, lambda done: None
            )
        except TunewrightError as error:
            assert_agreed(error)
            return
        rows = list(splits.staged_rows(staged.rows, set(range(len(staged))))) if len(staged) else []
        assert len(rows) == len(staged)
        assert all(row.kind == staged.kind for row in rows)
        assert len(rows) + sum(staged.drops.counts.values()) == staged.rows_read


@settings(QUIET, max_examples=WHOLE)
@given(case=files())
def test_any_file_becomes_a_whole_dataset_or_nothing(workspace: Workspace, case: tuple[str, bytes]) -> None:
    with written(workspace, *case) as file:
        before = set(workspace.home.datasets.iterdir())
        try:
            dataset = prepare(workspace, str(file))
        except TunewrightError as error:
            assert_agreed(error)
            assert set(workspace.home.datasets.iterdir()) == before
            return
        document = dataset["document"]
        folder = Path(document["path"])
        for split in ("train", "eval"):
            assert splits.count_rows(folder / f"{split}.parquet") == document[f"{split}_rows"]
            assert len(list(splits.read(folder / f"{split}.parquet"))) == document[f"{split}_rows"]
        assert document["train_rows"] > 0
