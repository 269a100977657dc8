"""Blind pairs: two answers to one question, told apart by A and B alone, for the agent or a person to judge. Light.

Guarantees that which answer is whose cannot be told from a pair or its id: a secret of the job, drawn at the first
offer, decides which comes first. Verdicts are kept as they come, whole, also with two servers at once. Counts say
nothing of single pairs; which was which is told once all are judged or the caller asks, and from then on no verdict is
taken: it would not be blind. Does not hide the job's `samples.jsonl` from a judge that reads it.
"""

import hashlib
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock

from tunewright.pipeline import files, jobs
from tunewright.pipeline.errors import Conflict, InvalidInput, NotFound, call, nearest
from tunewright.pipeline.evaluation import statistics
from tunewright.pipeline.evaluation.statistics import Interval
from tunewright.pipeline.jobs import State
from tunewright.pipeline.workspace import Workspace

Verdict = Literal["A", "B", "tie"]
VERDICTS: tuple[Verdict, ...] = ("A", "B", "tie")
JUDGEMENTS = "judgements.json"
SAMPLES = "samples.jsonl"


@dataclass(frozen=True)
class Pair:
    """One question with both answers. `messages` is the conversation up to the answer."""

    id: str
    messages: list[dict[str, Any]]
    a: str
    b: str


@dataclass(frozen=True)
class Tally:
    """What the verdicts come to, for the tuned model. `ties` are those judged and `equal`, pairs whose answers are the
    same and that are never offered; both count half in `win_rate` (0 to 1), which is None before the first.

    `first` is how often A was preferred where one was; None where none was. `revealed` says by pair which answer was
    the tuned model's, once that may be known.
    """

    judged: int
    remaining: int
    wins: int
    losses: int
    ties: int
    equal: int
    win_rate: Interval | None
    first: Interval | None
    sentence: str
    warning: str | None
    revealed: dict[str, Literal["A", "B"]] | None


def offer(workspace: Workspace, job_id: str, count: int) -> list[Pair]:
    """The next pairs, at most `count`, that have no verdict yet. Raises as `tally`."""
    job = _Judged.open(workspace, job_id)
    with job.lock:
        state = job.state()
        waiting = [name for name in job.pairs if name not in state["verdicts"]]
        return [job.pair(name, state["secret"]) for name in waiting[: max(0, count)]]


def submit(workspace: Workspace, job_id: str, verdicts: Mapping[str, Verdict]) -> Tally:
    """Takes verdicts by pair id: the better answer, or a tie. A second verdict for a pair replaces the first.

    Raises InvalidInput (a pair or a verdict that there is not; none of the verdicts is taken then), Conflict once it
    was told which was which, and as `tally`.
    """
    job = _Judged.open(workspace, job_id)
    with job.lock:
        state = job.state()
        job.check(verdicts)
        if _is_open(job, state):
            raise Conflict(
                "pairs_revealed", f"It was told which answers of {job.id} are whose: a verdict now would not be blind.",
                allowed="Another validation offers new pairs.",
                next=call("validate_adapter", adapter_id=job.adapter_id), done="The verdicts before stand as they are.",
            )  # fmt: skip
        state["verdicts"].update(verdicts)
        job.keep(state)
        return _tally(job, state)


def tally(workspace: Workspace, job_id: str, *, reveal: bool = False) -> Tally:
    """What the verdicts come to so far; `reveal` tells for good which answers were whose.

    Raises NotFound (no such job, or its samples are gone), InvalidInput (a job of another kind, or one without
    answers), Conflict (not finished).
    """
    job = _Judged.open(workspace, job_id)
    with job.lock:
        state = job.state()
        if reveal and not state["revealed"]:
            state["revealed"] = True
            job.keep(state)
        return _tally(job, state)


@dataclass(frozen=True)
class _Judged:
    """A finished validation: its samples that are judged, by pair id, and those whose answers differ (`pairs`)."""

    id: str
    adapter_id: str
    folder: Path
    samples: dict[str, dict[str, Any]]
    pairs: list[str]

    @classmethod
    def open(cls, workspace: Workspace, job_id: str) -> "_Judged":
        row = workspace.store.job(job_id)
        job_id, folder = row["id"], jobs.folder(workspace, row["id"])
        if row["kind"] != "validate":
            raise InvalidInput(
                "wrong_kind", f"{job_id} is a job of kind {row['kind']}.", allowed="Pairs belong to validations.",
                next="get_status()",
            )  # fmt: skip
        if row["state"] != State.SUCCEEDED:
            raise Conflict(
                "job_not_finished", f"{job_id} is {row['state']}.", allowed="Pairs are offered once it has succeeded.",
                next=call("get_status", job_id=job_id, wait_s=50),
            )  # fmt: skip
        samples = _samples(folder / SAMPLES, row["result"]["pairs"])
        if not samples:
            raise InvalidInput(
                "no_pairs", f"{job_id} has no pairs: pairs=0, or its data are texts without answers.",
                next=call("validate_adapter", adapter_id=row["spec"]["adapter_id"]),
            )  # fmt: skip
        differing = [name for name, sample in samples.items() if sample["tuned"]["text"] != sample["base"]["text"]]
        return cls(job_id, row["spec"]["adapter_id"], folder, samples, differing)

    @property
    def lock(self) -> FileLock:
        return FileLock(self.folder / f"{JUDGEMENTS}.lock", thread_local=False)

    def state(self) -> dict[str, Any]:
        """`secret`, `verdicts` and `revealed`; made at the first look. The caller holds the lock."""
        file = self.folder / JUDGEMENTS
        if not file.is_file():
            self.keep({"secret": secrets.token_hex(16), "verdicts": {}, "revealed": False})
        return files.read_json(file)

    def keep(self, state: dict[str, Any]) -> None:
        files.write_json(self.folder / JUDGEMENTS, state)

    def pair(self, name: str, secret: str) -> Pair:
        sample = self.samples[name]
        texts = {tuned_at(name, secret): sample["tuned"]["text"]}
        a, b = (texts.get(place, sample["base"]["text"]) for place in ("A", "B"))
        return Pair(name, sample["messages"], a, b)

    def check(self, verdicts: Mapping[str, str]) -> None:
        """Raises InvalidInput for what is no pair or no verdict."""
        for name, verdict in verdicts.items():
            if name not in self.pairs or verdict not in VERDICTS:
                known = nearest(name, self.pairs) if name not in self.pairs else f"Allowed: {', '.join(VERDICTS)}."
                what = "is no pair" if name not in self.pairs else f"cannot be judged {verdict!r}"
                raise InvalidInput(
                    "invalid_verdict", f"{name!r} {what} of {self.id}.", allowed=known,
                    next=call("submit_judgements", job_id=self.id, verdicts={(self.pairs or ["…"])[0]: "tie"}),
                    done="None of the verdicts was taken.",
                )  # fmt: skip


def _samples(file: Path, count: int) -> dict[str, dict[str, Any]]:
    """The samples that are judged: `count`, spread over all that have answers."""
    if not file.is_file():
        raise NotFound("files_gone", f"The samples are gone from {file}.", next="list_artifacts()")
    with file.open(encoding="utf-8") as lines:
        answered = [sample for line in lines if "text" in (sample := json.loads(line))["tuned"]]
    chosen = [answered[part * len(answered) // count] for part in range(count)] if answered else []
    return {f"pair-{sample['index']}": sample for sample in chosen}


def tuned_at(name: str, secret: str) -> Literal["A", "B"]:
    """Where the tuned model's answer stands in a pair: a fair coin for whoever does not know the secret."""
    return "A" if hashlib.sha256(f"{secret} {name}".encode()).digest()[0] % 2 else "B"


def _is_open(job: _Judged, state: dict[str, Any]) -> bool:
    """Whether it is known which answers were whose."""
    return state["revealed"] or len(state["verdicts"]) == len(job.pairs)


def _tally(job: _Judged, state: dict[str, Any]) -> Tally:
    verdicts: dict[str, Verdict] = state["verdicts"]
    decided = {name: verdict for name, verdict in verdicts.items() if verdict != "tie"}
    wins = sum(verdict == tuned_at(name, state["secret"]) for name, verdict in decided.items())
    losses = len(decided) - wins
    equal = len(job.samples) - len(job.pairs)
    ties = len(verdicts) - len(decided) + equal
    of = wins + losses + ties
    # Half points take part as they are: Wilson's interval is then wider than it need be, never narrower.
    rate = statistics.proportion(wins + ties / 2, of) if of else None
    first = statistics.proportion(sum(v == "A" for v in decided.values()), len(decided)) if decided else None
    return Tally(
        judged=len(verdicts), remaining=len(job.pairs) - len(verdicts), wins=wins, losses=losses, ties=ties,
        equal=equal, win_rate=rate and rate.rounded(), first=first and first.rounded(),
        sentence=_sentence(wins, losses, ties, equal, rate), warning=_warning(first),
        revealed={name: tuned_at(name, state["secret"]) for name in job.pairs} if _is_open(job, state) else None,
    )  # fmt: skip


def _sentence(wins: int, losses: int, ties: int, equal: int, rate: Interval | None) -> str:
    if rate is None:
        return "Nothing was judged yet."
    same = f" ({equal} with the same answer)" if equal else ""
    counts = f"Of {wins + losses + ties} pairs the tuned model won {wins}, lost {losses} and tied {ties}{same}"
    shown = f"win rate {100 * rate.value:.0f} % [{100 * rate.low:.0f}, {100 * rate.high:.0f}]"
    verdict = "no preference shown"
    if not rate.low <= 0.5 <= rate.high:
        verdict = f"{'tuned' if rate.low > 0.5 else 'base'} is preferred"
    return f"{counts}: {shown}, {verdict}."


def _warning(first: Interval | None) -> str | None:
    if first is None or first.low <= 0.5 <= first.high:
        return None
    interval = f"{100 * first.value:.0f} % [{100 * first.low:.0f}, {100 * first.high:.0f}]"
    return (
        f"The judge seems to prefer answer {'A' if first.value > 0.5 else 'B'} for its place: A won {interval} of the "
        "pairs that were decided, where half is to be expected."
    )
