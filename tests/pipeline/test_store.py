import math
import sqlite3
import subprocess
import sys
from pathlib import Path
from threading import Thread

import pytest

from tunewright.pipeline import store as store_module
from tunewright.pipeline.errors import InvalidInput, NotFound
from tunewright.pipeline.store import MIGRATIONS, Row, Store
from tunewright.pipeline.workspace import Workspace

WRITERS, ROWS_EACH = 4, 40
# Opens the home at argv[1] when told to on stdin, as if all servers of a machine started at once, and writes to it.
WRITER = """
import sys
from tunewright.pipeline.workspace import Workspace
print("ready", flush=True)
sys.stdin.readline()
store = Workspace.open(sys.argv[1]).store
for number in range(int(sys.argv[3])):
    store.add_event("job-1", "info", sys.argv[2], str(number))
"""


def versions(path: Path) -> tuple[int, set[str]]:
    db = sqlite3.connect(path)
    try:
        names = {row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type='table'")}
        return db.execute("PRAGMA user_version").fetchone()[0], names
    finally:
        db.close()


def test_an_empty_home_gets_the_whole_schema(workspace: Workspace) -> None:
    version, tables = versions(workspace.home.database)
    assert version == len(MIGRATIONS)
    assert {"jobs", "events", "metrics", "artifacts"} <= tables


def test_a_home_of_an_earlier_version_keeps_its_rows(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace.store.add_artifact("ds-1", "dataset", "a", {"rows": 3}, parents=[])
    newer = [*MIGRATIONS, "ALTER TABLE artifacts ADD COLUMN note TEXT;\nCREATE TABLE extra (id TEXT);\n"]
    monkeypatch.setattr(store_module, "MIGRATIONS", newer)
    store = Store(workspace.home.database)
    assert store.artifact("ds-1")["document"] == {"rows": 3}
    assert store.artifact("ds-1")["note"] is None
    assert versions(workspace.home.database)[0] == len(newer)
    store.close()


def test_a_failed_migration_changes_nothing(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = [*MIGRATIONS, "CREATE TABLE half (id TEXT);\nCREATE TABLE jobs (id TEXT);\n"]
    monkeypatch.setattr(store_module, "MIGRATIONS", broken)
    with pytest.raises(sqlite3.OperationalError, match="already exists"):
        Store(workspace.home.database)
    version, tables = versions(workspace.home.database)
    assert version == len(MIGRATIONS)
    assert "half" not in tables


def test_a_home_of_a_later_version_is_refused_and_left_alone(workspace: Workspace) -> None:
    workspace.store.execute(f"PRAGMA user_version={len(MIGRATIONS) + 7}")
    with pytest.raises(InvalidInput) as caught:
        Store(workspace.home.database)
    assert str(caught.value).startswith(f"home_too_new: The data home's schema is version {len(MIGRATIONS) + 7}")
    assert versions(workspace.home.database)[0] == len(MIGRATIONS) + 7


def test_a_transaction_that_raises_changes_nothing(workspace: Workspace) -> None:
    store = workspace.store
    store.add_artifact("ds-1", "dataset", "a", {}, parents=[])
    with pytest.raises(KeyboardInterrupt), store.transaction() as db:
        db.execute("DELETE FROM artifacts")
        raise KeyboardInterrupt
    assert store.artifact("ds-1")["name"] == "a"
    store.add_event("job-1", "info", "x", "the store is not left locked")


def test_a_step_that_is_done_again_replaces_its_metric(workspace: Workspace) -> None:
    store = workspace.store
    store.add_metric("job-1", "train", 2, {"loss": 3.5})
    store.add_metric("job-1", "train", 1, {"loss": 4.0})
    store.add_metric("job-1", "train", 2, {"loss": 3.0})
    store.add_metric("job-1", "eval", 2, {"loss": 9.0})
    store.add_metric("job-2", "train", 2, {"loss": 8.0})
    assert [(row["step"], row["numbers"]["loss"]) for row in store.metrics("job-1", "train")] == [(1, 4.0), (2, 3.0)]
    assert [(row["split"], row["step"]) for row in store.metrics("job-1")] == [("train", 1), ("eval", 2), ("train", 2)]


def test_of_many_metrics_both_ends_some_between_and_the_best_are_read_alone(workspace: Workspace) -> None:
    store = workspace.store
    losses = {step: abs(step - 70) / 10 for step in range(3, 103)}
    for step, loss in losses.items():
        store.add_metric("job-1", "train", step, {"loss": loss})
        store.add_metric("job-1", "eval", step, {"loss": -1.0})
        store.add_metric("job-2", "train", step, {"loss": -1.0})

    def steps(rows: list[Row]) -> list[int]:
        return [row["step"] for row in rows]

    assert steps(store.metrics_at_ends("job-1", "train", 2, 3)) == [3, 4, 100, 101, 102]
    assert steps(store.metrics_at_ends("job-1", "train", 60, 60)) == list(losses)
    assert steps(store.metrics_at_ends("job-1", "train", 200, 3)) == list(losses)
    assert steps(store.metrics_evenly("job-1", "train", 10)) == [*range(3, 103, 10), 102]
    assert steps(store.metrics_evenly("job-1", "train", 100)) == list(losses)
    assert store.best_metric("job-1", "train", "loss") == (70, 0.0)
    assert store.best_metric("job-1", "train", "loss", highest=True) == (3, 6.7)
    assert store.best_metric("job-1", "train", "reward") is None
    store.add_metric("job-1", "train", 103, {"loss": math.nan})
    assert store.best_metric("job-1", "train", "loss") == (70, 0.0)
    assert store.metrics_at_ends("job-3", "train", 2, 3) == store.metrics_evenly("job-3", "train", 10) == []
    assert store.best_metric("job-3", "train", "loss") is None


def test_events_are_the_last_ones_in_order(workspace: Workspace) -> None:
    for number in range(5):
        workspace.store.add_event("job-1", "info", "step", str(number))
    workspace.store.add_event("job-2", "info", "step", "other")
    assert [event["message"] for event in workspace.store.events("job-1", limit=3)] == ["2", "3", "4"]


def test_an_id_is_found_by_any_unique_prefix(workspace: Workspace) -> None:
    store = workspace.store
    for name in ("ds-identity-0001", "ds-identity-0002", "ds-other_0001", "ds-other", "ad-identity-0001"):
        store.add_artifact(name, "adapter" if name.startswith("ad") else "dataset", name, {}, parents=[])
    assert store.artifact("ad")["id"] == "ad-identity-0001"
    assert store.artifact("ds-identity-0001")["id"] == "ds-identity-0001"
    assert store.artifact("ds-other")["id"] == "ds-other", "the whole id wins over being a prefix of another"
    assert store.artifact("ds-other_")["id"] == "ds-other_0001"


def test_an_ambiguous_prefix_names_what_it_could_be(workspace: Workspace) -> None:
    for name in ("ds-identity-0001", "ds-identity-0002", "ds-else-0001"):
        workspace.store.add_artifact(name, "dataset", name, {}, parents=[])
    with pytest.raises(InvalidInput) as caught:
        workspace.store.artifact("ds-i")
    assert str(caught.value).startswith("ambiguous_id: 2 artifacts begin with 'ds-i'.")
    assert "ds-identity-0001, ds-identity-0002" in str(caught.value)
    assert "ds-else" not in str(caught.value)


@pytest.mark.parametrize("wrong", ["ds-identiti-0001", "", "%", "_"])
def test_an_unknown_id_names_the_nearest(workspace: Workspace, wrong: str) -> None:
    workspace.store.add_artifact("ds-identity-0001", "dataset", "a", {}, parents=[])
    with pytest.raises(NotFound) as caught:
        workspace.store.artifact(wrong)
    assert caught.value.code == "artifact_not_found"
    assert "Nearest: ds-identity-0001." in str(caught.value)
    assert "Next: list_artifacts()." in str(caught.value)


def test_an_artifact_of_another_kind_is_refused(workspace: Workspace) -> None:
    workspace.store.add_artifact("ds-identity-0001", "dataset", "a", {}, parents=[])
    with pytest.raises(InvalidInput) as caught:
        workspace.store.artifact("ds-identity-0001", "adapter", "export")
    assert "wrong_kind: ds-identity-0001 is of kind dataset." in str(caught.value)
    assert "ad- or ex-" in str(caught.value) and 'list_artifacts(kind="adapter")' in str(caught.value)


def test_children_are_those_that_name_the_whole_id(workspace: Workspace) -> None:
    store = workspace.store
    store.add_artifact("ad-a-0001", "adapter", "a", {}, parents=["ds-a-0001", "ad-b-0002"])
    store.add_artifact("ad-a-0002", "adapter", "a", {}, parents=["ds-a-00011"])
    assert [child["id"] for child in store.children("ds-a-0001")] == ["ad-a-0001"]
    assert [child["id"] for child in store.children("ad-b-0002")] == ["ad-a-0001"]
    assert store.children("ds-a") == []


def test_a_reader_does_not_wait_for_a_writer(workspace: Workspace) -> None:
    store = workspace.store
    store.add_artifact("ds-1", "dataset", "before", {}, parents=[])
    seen: list[str] = []

    def read() -> None:
        seen.append(store.artifact("ds-1")["name"])
        store.close()

    with store.transaction() as db:
        db.execute("UPDATE artifacts SET name='after'")
        reader = Thread(target=read)
        reader.start()
        reader.join(timeout=10)
        assert seen == ["before"]
    assert store.artifact("ds-1")["name"] == "after"


def test_processes_that_open_a_new_home_at_once_and_write_lose_nothing(tmp_path: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-P", "-c", WRITER, str(tmp_path / "home"), f"w{number}", str(ROWS_EACH)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8",
        )
        for number in range(WRITERS)
    ]  # fmt: skip
    for process in processes:
        assert process.stdout and process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin
        process.stdin.write("\n")
        process.stdin.flush()
    for process in processes:
        _, complaints = process.communicate(timeout=60)
        assert process.returncode == 0, complaints
    workspace = Workspace.open(tmp_path / "home")
    for number in range(WRITERS):
        rows = workspace.store.rows("SELECT message FROM events WHERE code=? ORDER BY id", f"w{number}")
        assert [row["message"] for row in rows] == [str(i) for i in range(ROWS_EACH)]
    workspace.store.close()
