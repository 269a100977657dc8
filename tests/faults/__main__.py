"""Faults on the toy, for long: `PYTHONPATH=tests python -m faults --rounds N --seed S [--only FAULT …]`.

Prints one JSON line a round and a summary; exits with 1 where an invariant was violated.
"""

import argparse
import asyncio
import json
import signal
import sys
import tempfile
from pathlib import Path
from types import FrameType

from faults.faults import FAULTS
from faults.harness import Harness
from faults.scenes import CHAT, SCENES
from faults.tally import Tally
from faults.world import opened

from tunewright.pipeline import toy
from tunewright.pipeline.settings import Home

KINDS = [*SCENES, CHAT]
# Where tests/conftest.py keeps the toy with its weights.
TEST_HOME = Path(__file__).parents[2] / ".cache" / "test-home"


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


async def run(given: argparse.Namespace, root: Path) -> Tally:
    home = Home.open(TEST_HOME)
    with opened(root, toy.folder(home) if toy.is_trained(home) else None) as made:
        harness = Harness(made, given.seed, say, given.only)
        await harness.prepare(given.kinds)
        await harness.play(given.rounds, given.kinds)
        return harness.tally


def end(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


def main() -> int:
    parser = argparse.ArgumentParser(prog="faults", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", nargs="+", choices=FAULTS, default=[])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    given = parser.parse_args()
    # So that the disk is taken down and the processes end with us then too.
    signal.signal(signal.SIGTERM, end)
    with tempfile.TemporaryDirectory() as temporary:
        tally = asyncio.run(run(given, Path(temporary)))
    say(json.dumps(vars(tally) | {"rounds": tally.rounds}, indent=2))
    return 1 if tally.violations else 0


if __name__ == "__main__":
    sys.exit(main())
