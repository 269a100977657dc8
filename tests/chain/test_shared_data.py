"""The main job on real data, by the script that examples/ shows to readers. Skipped where that data is not."""

import json
from pathlib import Path

import pytest

from tunewright.examples import main_job
from tunewright.pipeline.workspace import Workspace

SHARED = Path(__file__).parents[3] / "shared" / "data"
STEPS = 5
# Of a thousand rows fifty are held out, and answering all of these took three minutes.
ROWS = 200

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("name", ["identity.json", "alpaca_en_demo.json"])
async def test_the_main_job_succeeds_on_real_data(
    name: str, home: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if not (SHARED / name).is_file():
        pytest.skip("a clone without the shared data")
    monkeypatch.setenv("TUNEWRIGHT_HOME", home)
    rows = tmp_path / name
    rows.write_text(json.dumps(json.loads((SHARED / name).read_text(encoding="utf-8"))[:ROWS]), encoding="utf-8")
    monkeypatch.setenv("TUNEWRIGHT_ALLOW_DIRS", str(tmp_path))
    await main_job.main(str(rows), "toy", max_steps=STEPS)
    printed = capsys.readouterr().out
    store = Workspace.open(home).store
    assert {row["state"] for row in store.rows("SELECT state FROM jobs")} == {"succeeded"}
    assert len(store.artifacts("adapter")) == len(store.artifacts("export")) == 1
    job_id = store.rows("SELECT id FROM jobs WHERE kind='finetune'")[0]["id"]
    assert [row["step"] for row in store.metrics(job_id, "train")] == list(range(1, STEPS + 1))
    # On the same rows each time; a training step's loss is of other rows than the one before.
    held_out = [row["numbers"]["loss"] for row in store.metrics(job_id, "eval")]
    assert len(held_out) > 1 and held_out == sorted(held_out, reverse=True) and held_out[-1] < held_out[0]
    assert json.dumps("gguf:q8_0") in printed
