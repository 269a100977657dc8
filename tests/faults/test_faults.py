"""The faults in short: a fixed seed, light work, every fault at least once. `make faults` is the long run."""

import json
import sys
from pathlib import Path

import psutil
import pytest
from faults.faults import FAULTS
from faults.harness import Harness
from faults.invariants import marked, violations
from faults.scenes import CHAT
from faults.world import opened

KINDS = ("prepare_dataset", "publish_hub", "publish_ollama", "benchmark", CHAT)
SEED, ROUNDS = 7, 10

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc and mounts a tmpfs"),
]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def test_no_fault_loses_or_spoils_anything(trained_toy: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    with opened(tmp_path, trained_toy) as world:
        harness = Harness(world, SEED, lines.append)
        await harness.prepare(KINDS)
        tally = await harness.play(ROUNDS, KINDS)
        assert tally.violations == [], "\n".join(lines)
        expected = set(FAULTS) - (set() if world.disk else {"fill_disk"})
        assert set(tally.struck) == expected, "\n".join(lines)
        assert tally.equal.total() > 0
        assert tally.rounds == ROUNDS == sum('"struck": true' in line for line in lines)
        assert all(json.loads(line) for line in lines)


def test_the_invariants_see_what_is_wrong(tmp_path: Path) -> None:
    with opened(tmp_path) as world:
        assert violations(world, psutil.Process().pid, set(), at_rest=True) == []
        home, store = world.workspace.home, world.workspace.store
        (home.exports / "ex-nobody-0000").mkdir()
        (home.datasets / ".partial-1-ds-left-0000").mkdir()
        (home.root / "torn.json").write_text("{", encoding="utf-8")
        weights = home.adapters / "ad-torn-0000" / "adapter_model.safetensors"
        weights.parent.mkdir()
        weights.write_bytes((2).to_bytes(8, "little") + b"{}" + b"more than the header says")
        store.add_artifact("ad-torn-0000", "adapter", "torn", {"path": str(weights.parent)}, parents=[])
        store.execute(
            "INSERT INTO jobs(id, kind, state, needs_device, spec, created_at) VALUES (?,?,?,?,?,?)",
            "job-dead-1111", "export", "running", True, "{}", 0.0,
        )  # fmt: skip
        with psutil.Popen([sys.executable, "-P", "-c", "input()"], stdin=-1) as orphan:
            found = violations(world, psutil.Process().pid, {"job-lost-0000"})
            assert orphan.pid in [process.pid for process in marked(world.mark)]
            orphan.kill()
    for expected in (
        "exports/ex-nobody-0000 has no row", "torn.json is torn", "adapter_model.safetensors is torn",
        "job-lost-0000 is lost", "job-dead-1111 is stuck", "an orphan:",
    ):  # fmt: skip
        assert any(expected in text for text in found), (expected, found)
