"""Random kills of one long run of the toy, beside an untouched one: `python benchmarks/kills.py [--kills 20] …`.

Kills the worker (SIGKILL) at seeded random moments: while it loads, while it writes a checkpoint, at any time between,
and last while it stores the adapter. The job goes on by itself or, once its restarts are used up, by `resume_job`. It
must end as the untouched run did: every step once, the same losses, the same adapter. Prints a table of the kills and
exits with 1 where anything differs. About 15 s a kill on two cores.
"""

import argparse
import json
import math
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from tunewright.pipeline import jobs
from tunewright.pipeline.data.prepare import prepare
from tunewright.pipeline.jobs import MAX_RESTARTS, State
from tunewright.pipeline.training import checkpoints, request
from tunewright.pipeline.training.arguments import TrainingArguments
from tunewright.pipeline.workspace import Workspace

POLL_S = 0.002
TIMEOUT_S = 900
TOLERANCE = 1e-5
# Of the numbers of a step these are the machine's, not the run's.
RUN_NUMBERS = ("loss", "grad_norm", "learning_rate", "epoch")


@dataclass(frozen=True)
class Moment:
    """When to kill: `where` (load, save, between, end), not before training is at `step`, and `wait_s` after that."""

    where: str
    step: int
    wait_s: float


def moments(kills: int, steps: int, save_steps: int, load_s: float, step_s: float, rng: random.Random) -> list[Moment]:
    """The plan of the kills, spread over the run. With 8 or more, MAX_RESTARTS + 1 in a row hit the loading: the job
    is then interrupted for good and must be resumed."""
    wheres = [("load", "save", "between")[number % 3] for number in range(kills - 1)]
    rng.shuffle(wheres)
    if kills >= 8:
        burst = rng.randrange(1, kills - 1 - MAX_RESTARTS)
        wheres[burst : burst + MAX_RESTARTS + 1] = ["load"] * (MAX_RESTARTS + 1)
    plan: list[Moment] = []
    for number, where in enumerate(wheres):
        # Two checkpoints before the end at the latest: the last one of these must not find the run ended.
        step = round(rng.uniform(number, number + 1) * (steps - 2 * save_steps) / kills)
        plan.append(Moment(where, step, rng.uniform(0, load_s if where == "load" else 2 * step_s)))
    return [*plan, Moment("end", steps, 0.0)]


class Killing:
    """One run that is killed at its moments."""

    def __init__(self, workspace: Workspace, job_id: str) -> None:
        self._workspace, self._job_id = workspace, job_id
        self._killed_at = 0.0

    def row(self) -> Any:
        return self._workspace.store.job(self._job_id)

    def step(self) -> int:
        found = self._workspace.store.rows("SELECT max(step) AS step FROM metrics WHERE job_id=?", self._job_id)
        return found[0]["step"] or 0

    def wait(self, condition: Callable[[], object]) -> None:
        """Returns once `condition` holds. Exits where the job ends first, or nothing happens for a long time."""
        deadline = time.monotonic() + TIMEOUT_S
        while not condition():
            row = self.row()
            if row["state"] not in jobs.ACTIVE or not jobs.is_worker_alive(row) or time.monotonic() > deadline:
                raise SystemExit(f"the job was {row['state']} at step {self.step()} while a kill was waiting: {row}")
            time.sleep(POLL_S)

    def await_moment(self, moment: Moment) -> None:
        folder = jobs.folder(self._workspace, self._job_id)
        if moment.where == "end":
            self.wait(lambda: (self.row()["progress"] or {}).get("phase") == "saving the adapter")
            return
        if moment.where == "load":
            self.wait(lambda: self.row()["state"] == State.RUNNING)
        else:
            self.wait(lambda: self._is_training() and self.step() >= moment.step)
        if moment.where == "save":
            before = set(checkpoints.folder(folder).glob("checkpoint-*"))
            self.wait(lambda: set(checkpoints.folder(folder).glob("checkpoint-*")) - before)
        else:
            time.sleep(moment.wait_s)

    def _is_training(self) -> bool:
        # Metrics and progress of the worker before stand there until the next one writes its own.
        progress = self.row()["progress"] or {}
        return progress.get("phase") == "training" and progress["done"] > 0 and progress["at"] > self._killed_at

    def kill(self, number: int, moment: Moment) -> dict[str, Any]:
        """Kills at the moment and sees to it that the job goes on. Returns the table's line."""
        began, row = time.monotonic(), self.row()
        self.await_moment(moment)
        row, step = self.row(), self.step()
        os.kill(row["pid"], signal.SIGKILL)
        while jobs.is_worker_alive(row):
            time.sleep(POLL_S)
        self._killed_at = time.time()
        folder = checkpoints.folder(jobs.folder(self._workspace, self._job_id))
        written = [path.name for path in folder.glob("checkpoint-*")]
        jobs.reconcile(self._workspace)
        last = checkpoints.last(folder.parent)
        again = "by itself"
        if self.row()["state"] == State.INTERRUPTED:
            jobs.resume(self._workspace, self._job_id)
            again = "resume_job"
        whole = checkpoints.steps(last) if last else 0
        torn = len([name for name in written if checkpoints.steps(folder / name) > whole])
        return {
            "kill": number, "while": moment.where, "at step": step, "goes on from": whole, "torn": torn,
            "restarts": self.row()["restarts"], "again": again, "seconds": round(time.monotonic() - began, 1),
        }  # fmt: skip

    def finish(self) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while self.row()["state"] in jobs.ACTIVE and time.monotonic() < deadline:
            time.sleep(0.1)
        if self.row()["state"] != State.SUCCEEDED:
            raise SystemExit(f"{self._job_id} ended {self.row()['state']}: {self.row()['error']}")


def submit(workspace: Workspace, dataset_id: str, name: str, steps: int, save_steps: int) -> Killing:
    arguments = TrainingArguments(
        name=name, max_steps=steps, save_steps=save_steps, eval_steps=save_steps, batch_size=2,
        gradient_accumulation=2, lora_dropout=0.1, learning_rate=1e-3, early_stopping_patience=0,
    )  # fmt: skip
    spec = request.check(workspace, dataset_id, "toy", "sft", arguments, None)
    return Killing(workspace, jobs.submit(workspace, "finetune", name, spec, needs_device=True)["id"])


def differences(workspace: Workspace, untouched: str, killed: str) -> list[str]:
    """What is not the same in both runs, in words."""
    found: list[str] = []
    for split in ("train", "eval"):
        rows = [workspace.store.metrics(job_id, split) for job_id in (untouched, killed)]
        if [row["step"] for row in rows[0]] != [row["step"] for row in rows[1]]:
            found.append(f"{split}: not the same steps: {[row['step'] for row in rows[1]]}")
            continue
        for one, other in zip(*rows, strict=True):
            for name in RUN_NUMBERS:
                numbers = one["numbers"].get(name), other["numbers"].get(name)
                if numbers[0] != numbers[1] and not math.isclose(*numbers, rel_tol=TOLERANCE):
                    found.append(f"{split}: {name} at step {one['step']}: {numbers[0]} and {numbers[1]}")
    one, other = (_tensors(workspace, job_id) for job_id in (untouched, killed))
    off = max(float(np.abs(one[name] - other[name]).max()) for name in one)
    if one.keys() != other.keys() or off > TOLERANCE:
        found.append(f"adapters: a weight differs by {off:.2g}")
    return found


def _tensors(workspace: Workspace, job_id: str) -> dict[str, np.ndarray]:
    (path,) = [row["document"]["path"] for row in workspace.store.artifacts("adapter") if row["job_id"] == job_id]
    return load_file(Path(path) / "adapter_model.safetensors")


def rows() -> list[dict[str, str]]:
    return [{"instruction": f"Say {number}.", "input": "", "output": f"{number}, {number}!"} for number in range(24)]


def run(workspace: Workspace, kills: int, steps: int, save_steps: int, seed: int) -> list[str]:
    source = workspace.home.cache / "numbers.json"
    source.write_text(json.dumps(rows()), encoding="utf-8")
    dataset_id = prepare(workspace, source, eval_fraction=0.1)["id"]
    untouched = submit(workspace, dataset_id, "untouched", steps, save_steps)
    untouched.finish()
    row = untouched.row()
    first, *_, last = workspace.store.metrics(row["id"], "train")
    load_s, step_s = first["at"] - row["started_at"], (last["at"] - first["at"]) / (steps - 1)
    print(f"untouched: {load_s:.1f} s until the first step, {step_s:.3f} s a step", flush=True)

    killed = submit(workspace, dataset_id, "killed", steps, save_steps)
    plan = moments(kills, steps, save_steps, load_s, step_s, random.Random(seed))
    for number, moment in enumerate(plan, 1):
        line = killed.kill(number, moment)
        if number == 1:
            print(" | ".join(line))
        print(" | ".join(f"{value!s:>{len(name)}}" for name, value in line.items()), flush=True)
    killed.finish()
    losses = [workspace.store.metrics(one.row()["id"], "train")[-1]["numbers"]["loss"] for one in (untouched, killed)]
    print(f"final loss: untouched {losses[0]}, killed {kills} times {losses[1]}")
    return differences(workspace, untouched.row()["id"], killed.row()["id"])


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=203)
    parser.add_argument("--save-steps", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--home", help="data home to run in (default: a temporary one)")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        workspace = Workspace.open(given.home or Path(temporary) / "home")
        found = run(workspace, given.kills, given.steps, given.save_steps, given.seed)
    print("\n".join(found) or "identical: every step once, all losses, the adapter")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
