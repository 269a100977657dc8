"""Real data of other people's making, where it lies beside the clone: what is recognised and reported."""

from pathlib import Path

import pytest

from tunewright.pipeline.data import splits
from tunewright.pipeline.data.prepare import prepare
from tunewright.pipeline.store import Row
from tunewright.pipeline.workspace import Workspace

DATA = Path(__file__).parents[4] / "shared" / "data"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="../shared/data is not beside this clone")


def first(dataset: Row) -> splits.Record:
    return next(splits.read(Path(dataset["document"]["path"]) / "train.parquet"))


def test_identity_reports_its_placeholders_and_takes_their_values(workspace: Workspace) -> None:
    source = DATA / "identity.json"
    (warning,) = prepare(workspace, source)["document"]["warnings"]
    assert "{{name}}" in warning and "{{author}}" in warning and "substitutions=" in warning
    filled = prepare(workspace, source, substitutions={"name": "Lumen", "author": "Tunewright"})
    assert filled["document"]["warnings"] == []
    assert "Lumen" in first(filled).answer() and "{{" not in first(filled).answer()


def test_dpo_becomes_preference_pairs(workspace: Workspace) -> None:
    dataset = prepare(workspace, DATA / "dpo_en_demo.json")
    assert (dataset["document"]["kind"], dataset["document"]["format"]) == ("preference", "preference")
    assert dataset["document"]["train_rows"] + dataset["document"]["eval_rows"] > 290
    record = first(dataset)
    assert record.messages[-1]["role"] == "user" and record.chosen != record.rejected


def test_c4_becomes_raw_text(workspace: Workspace) -> None:
    dataset = prepare(workspace, DATA / "c4_demo.jsonl")
    assert (dataset["document"]["kind"], dataset["document"]["format"]) == ("text", "text")
    assert first(dataset).text.startswith("Don’t think you need all the bells")


def test_alpaca_keeps_nearly_all_rows_and_its_sequence_fits_are_shares(workspace: Workspace) -> None:
    document = prepare(workspace, DATA / "alpaca_en_demo.json", benchmark_dir=str(DATA / "ceval-exam"))["document"]
    assert document["train_rows"] + document["eval_rows"] > 980
    assert document["languages"][0]["language"] == "en" and document["languages"][0]["share"] > 0.95
    assert document["benchmark_overlap"] == {} and document["topics"]["skew"] is None
    shares = [fit["rows"] for fit in document["tokens"]["fits"].values()]
    assert shares == sorted(shares) and shares[-1] == 1


def test_a_benchmark_in_the_data_is_found(workspace: Workspace) -> None:
    source = DATA / "ceval-exam" / "val" / "law_val.csv"
    document = prepare(workspace, source, benchmark_dir=str(DATA / "ceval-exam"))["document"]
    assert sum(document["benchmark_overlap"].values()) > 10
