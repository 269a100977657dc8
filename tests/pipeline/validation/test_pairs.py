"""Blind pairs: nothing gives the order away, no verdict is lost or taken too late, and the tally says what is shown."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tunewright.pipeline import jobs
from tunewright.pipeline.errors import Conflict, InvalidInput, NotFound
from tunewright.pipeline.validation import pairs
from tunewright.pipeline.validation.pairs import Tally, Verdict
from tunewright.pipeline.workspace import Workspace

OURS, THEIRS = "We open at nine, answer {}.", "I do not know, answer {}."
# Judges the pairs that argv[2:] name, one at a time, each offered anew.
JUDGE = """
import sys
from tunewright.pipeline.validation import pairs
from tunewright.pipeline.workspace import Workspace
workspace = Workspace.open(sys.argv[1])
for name in sys.argv[3:]:
    pairs.offer(workspace, sys.argv[2], 3)
    pairs.submit(workspace, sys.argv[2], {name: "A"})
"""
Validated = Callable[..., str]


@pytest.fixture
def validated(workspace: Workspace) -> Validated:
    """`validated(20, equal=2)`: a finished validation of so many samples, the last `equal` answered alike."""

    def insert(
        samples: int, *, equal: int = 0, offered: int | None = None, state: str = "succeeded", kind: str = "validate"
    ) -> str:
        job_id = f"job-shop-{len(workspace.store.rows('SELECT id FROM jobs')):04}"
        folder = jobs.folder(workspace, job_id)
        folder.mkdir()
        lines = [
            {
                "index": number,
                "messages": [{"role": "user", "content": f"Question {number}?"}],
                "reference": "We open at nine.",
                "tuned": {"text": OURS.format(number)},
                "base": {"text": (OURS if number >= samples - equal else THEIRS).format(number)},
            }
            for number in range(samples)
        ]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / "samples.jsonl").write_text(text, encoding="utf-8")
        result = {"pairs": samples if offered is None else offered}
        workspace.store.execute(
            "INSERT INTO jobs(id, kind, state, needs_device, spec, created_at, result) VALUES (?,?,?,1,?,0,?)",
            job_id, kind, state, json.dumps({"adapter_id": "ad-shop-0001"}), json.dumps(result),
        )  # fmt: skip
        return job_id

    return insert


def prefer(pair: pairs.Pair, ours: bool) -> Verdict:
    """The verdict of a judge that knows the shop: for our answer, or against it."""
    return "A" if pair.a.startswith("We open") == ours else "B"


def judge(workspace: Workspace, job_id: str, wins: int, losses: int = 0, ties: int = 0) -> Tally:
    offered = pairs.offer(workspace, job_id, wins + losses + ties)
    verdicts = {pair.id: prefer(pair, i < wins) for i, pair in enumerate(offered[: wins + losses])}
    return pairs.submit(workspace, job_id, {**verdicts, **{pair.id: "tie" for pair in offered[wins + losses :]}})


def test_a_pair_shows_both_answers_and_names_no_model(workspace: Workspace, validated: Validated) -> None:
    (pair,) = pairs.offer(workspace, validated(1), 5)
    assert {pair.a, pair.b} == {OURS.format(0), THEIRS.format(0)}
    assert pair.messages == [{"role": "user", "content": "Question 0?"}]
    assert "tuned" not in repr(pair) and "base" not in repr(pair)


def test_the_order_is_a_coin_of_its_own_for_every_job_and_stays(workspace: Workspace, validated: Validated) -> None:
    job_id, other = validated(400), validated(400)
    offered = pairs.offer(workspace, job_id, 400)
    first = [pair.a.startswith("We open") for pair in offered]
    assert 160 < sum(first) < 240
    assert pairs.offer(workspace, job_id, 400) == offered
    elsewhere = [pair.a.startswith("We open") for pair in pairs.offer(workspace, other, 400)]
    assert 120 < sum(one == two for one, two in zip(first, elsewhere, strict=True)) < 280


def test_wins_losses_and_ties_are_the_tuned_models(workspace: Workspace, validated: Validated) -> None:
    found = judge(workspace, validated(20), wins=15, losses=3, ties=2)
    assert (found.judged, found.remaining, found.wins, found.losses, found.ties) == (20, 0, 15, 3, 2)
    assert found.win_rate is not None
    assert found.win_rate.value == pytest.approx(16 / 20)
    # Wilson's interval of 16 in 20.
    assert (found.win_rate.low, found.win_rate.high) == pytest.approx((0.5840, 0.9193), abs=1e-4)
    assert found.sentence == (
        "Of 20 pairs the tuned model won 15, lost 3 and tied 2: win rate 80 % [58, 92], tuned is preferred."
    )


def test_no_preference_is_told_where_the_interval_holds_a_half(workspace: Workspace, validated: Validated) -> None:
    assert judge(workspace, validated(10), wins=7, losses=3).sentence.endswith("no preference shown.")
    assert judge(workspace, validated(10), wins=0, losses=10).sentence.endswith("base is preferred.")


def test_the_same_answer_is_never_offered_and_counts_as_a_tie(workspace: Workspace, validated: Validated) -> None:
    job_id = validated(6, equal=2)
    assert len(pairs.offer(workspace, job_id, 10)) == 4
    found = judge(workspace, job_id, wins=4)
    assert (found.judged, found.ties, found.equal, found.remaining) == (4, 2, 2, 0)
    assert found.win_rate is not None and found.win_rate.value == pytest.approx(5 / 6, abs=1e-4)
    assert "tied 2 (2 with the same answer)" in found.sentence


def test_what_was_judged_is_not_offered_again(workspace: Workspace, validated: Validated) -> None:
    job_id = validated(6)
    first, second = pairs.offer(workspace, job_id, 2)
    pairs.submit(workspace, job_id, {first.id: "A"})
    assert [pair.id for pair in pairs.offer(workspace, job_id, 2)] == [second.id, "pair-2"]


def test_a_second_verdict_replaces_the_first(workspace: Workspace, validated: Validated) -> None:
    job_id = validated(3)
    (pair,) = pairs.offer(workspace, job_id, 1)
    assert pairs.submit(workspace, job_id, {pair.id: prefer(pair, True)}).wins == 1
    changed = pairs.submit(workspace, job_id, {pair.id: prefer(pair, False)})
    assert (changed.judged, changed.wins, changed.losses) == (1, 0, 1)


@pytest.mark.parametrize("verdicts", [{"pair-0": "A", "pair-99": "B"}, {"pair-0": "A", "pair-1": "C"}])
def test_an_unknown_pair_or_verdict_is_refused_and_nothing_is_taken(
    workspace: Workspace, validated: Validated, verdicts: Any
) -> None:
    job_id = validated(3)
    with pytest.raises(InvalidInput, match="invalid_verdict") as refusal:
        pairs.submit(workspace, job_id, verdicts)
    assert "pair-0" in refusal.value.next and ("pair-" in refusal.value.allowed or "tie" in refusal.value.allowed)
    assert pairs.tally(workspace, job_id).judged == 0


def test_counts_alone_are_told_until_all_are_judged(workspace: Workspace, validated: Validated) -> None:
    job_id = validated(4)
    assert judge(workspace, job_id, wins=3).revealed is None
    offered = pairs.offer(workspace, job_id, 4)
    found = pairs.submit(workspace, job_id, {pair.id: prefer(pair, True) for pair in offered})
    assert found.revealed is not None and len(found.revealed) == 4
    for pair in offered:
        assert (pair.a if found.revealed[pair.id] == "A" else pair.b).startswith("We open")


def test_once_it_was_told_which_is_which_no_verdict_is_taken(workspace: Workspace, validated: Validated) -> None:
    job_id = validated(4)
    judge(workspace, job_id, wins=1)
    assert pairs.tally(workspace, job_id).revealed is None
    assert pairs.tally(workspace, job_id, reveal=True).revealed is not None
    with pytest.raises(Conflict, match="pairs_revealed"):
        pairs.submit(workspace, job_id, {"pair-1": "A"})
    assert pairs.tally(workspace, job_id).judged == 1
    done = validated(1)
    judge(workspace, done, wins=1)
    with pytest.raises(Conflict, match="pairs_revealed"):
        pairs.submit(workspace, done, {"pair-0": "tie"})


def test_a_judge_that_prefers_a_place_is_warned(
    workspace: Workspace, validated: Validated, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One that puts the tuned model's answer first about as often as last: in one of twenty draws chance looks unfair.
    monkeypatch.setattr(pairs.secrets, "token_hex", lambda count: "0" * 2 * count)
    job_id = validated(30)
    offered = pairs.offer(workspace, job_id, 30)
    found = pairs.submit(workspace, job_id, {pair.id: "B" for pair in offered})
    assert found.first is not None and found.first.value == 0
    assert found.warning is not None and "answer B for its place" in found.warning
    fair = judge(workspace, validated(30), wins=20, losses=10)
    assert fair.warning is None


def test_only_so_many_pairs_are_offered_as_were_asked_for_spread_over_the_samples(
    workspace: Workspace, validated: Validated
) -> None:
    job_id = validated(40, offered=4)
    assert [pair.id for pair in pairs.offer(workspace, job_id, 10)] == ["pair-0", "pair-10", "pair-20", "pair-30"]


def test_two_servers_at_once_lose_no_verdict(
    workspace: Workspace, validated: Validated, run_python: Callable[..., str]
) -> None:
    job_id = validated(40)
    names = [f"pair-{number}" for number in range(40)]
    with ThreadPoolExecutor(2) as pool:
        halves = [names[:19], names[19:39]]
        list(pool.map(lambda half: run_python(JUDGE, workspace.home.root, job_id, *half), halves))
    assert pairs.tally(workspace, job_id).judged == 39


def test_what_has_no_pairs_says_so(workspace: Workspace, validated: Validated) -> None:
    with pytest.raises(Conflict, match="job_not_finished"):
        pairs.offer(workspace, validated(3, state="running"), 3)
    with pytest.raises(InvalidInput, match="wrong_kind"):
        pairs.offer(workspace, validated(3, kind="benchmark"), 3)
    with pytest.raises(InvalidInput, match="no_pairs"):
        pairs.offer(workspace, validated(3, offered=0), 3)
    gone = validated(3)
    (jobs.folder(workspace, gone) / "samples.jsonl").unlink()
    with pytest.raises(NotFound, match="files_gone"):
        pairs.offer(workspace, gone, 3)
    with pytest.raises(NotFound, match="job_not_found"):
        pairs.tally(workspace, "job-nobody-0000")


def test_nothing_judged_is_no_win_rate(workspace: Workspace, validated: Validated) -> None:
    found = pairs.tally(workspace, validated(3))
    assert (found.win_rate, found.first, found.warning) == (None, None, None)
    assert found.sentence == "Nothing was judged yet."
