"""Speed and time left, from moments that are given."""

from hypothesis import given
from hypothesis import strategies as st

from tunewright.pipeline.training.pace import Pace


def run(
    pace: Pace, now_s: float, first: int, last: int, *, step_s: float, tokens: int, logging_steps: int = 1
) -> float:
    """Steps `first` to `last`, each of `step_s` and `tokens`; returns the moment after them."""
    for step in range(first, last + 1):
        now_s += step_s
        pace.step_ended(now_s)
        if step == 1 or step % logging_steps == 0:
            pace.logged(now_s, step * tokens)
    return now_s


def left(pace: Pace, step: int, max_steps: int) -> float:
    return pace.eta_s(step, max_steps, eval_every=None, save_every=None, eval_steps_worth=0)


@given(step_s=st.floats(0.01, 100), tokens=st.integers(1, 100_000), logging_steps=st.sampled_from([1, 3, 10, 50]))
def test_the_first_step_which_compiles_counts_no_longer_than_it_must(
    step_s: float, tokens: int, logging_steps: int
) -> None:
    pace = Pace(0, 0, logging_steps)
    now_s = run(pace, 60 * step_s, 1, 1, step_s=0, tokens=tokens)
    assert left(pace, 1, 101) == 60 * step_s * 100
    run(pace, now_s, 2, 100, step_s=step_s, tokens=tokens, logging_steps=logging_steps)
    assert abs(pace.tokens_per_s * step_s / tokens - 1) < 1e-6
    assert abs(left(pace, 100, 150) / (50 * step_s) - 1) < 1e-6


def test_the_speed_follows_a_change_within_twenty_steps() -> None:
    pace = Pace(0, 0, 1)
    now_s = run(pace, 0, 1, 100, step_s=1, tokens=1000)
    assert pace.tokens_per_s == 1000
    run(pace, now_s, 101, 120, step_s=4, tokens=1000)
    assert pace.tokens_per_s == 250
    assert left(pace, 120, 130) == 40


def test_evaluations_and_saves_slow_no_step_and_are_not_forgotten() -> None:
    pace = Pace(0, 0, 1)
    now_s = run(pace, 0, 1, 10, step_s=1, tokens=500)
    pace.evaluated(now_s + 7)
    pace.saved(now_s + 10)
    run(pace, now_s + 10, 11, 12, step_s=1, tokens=500)
    assert pace.tokens_per_s == 500
    # 23 steps are left, the evaluations of 20, 30 and 35 (the last step) and the saves of 20 and 35.
    assert pace.eta_s(12, 35, eval_every=10, save_every=20, eval_steps_worth=99) == 23 + 3 * 7 + 2 * 3
    # At the last step its own evaluation and save are still to come.
    assert pace.eta_s(35, 35, eval_every=10, save_every=20, eval_steps_worth=99) == 7 + 3


def test_an_evaluation_not_yet_seen_is_guessed_from_its_rows() -> None:
    pace = Pace(0, 0, 1)
    run(pace, 0, 1, 4, step_s=3, tokens=10)
    assert pace.eta_s(4, 10, eval_every=10, save_every=None, eval_steps_worth=6) == 6 * 3 + 6 * 3 / 3


def test_tokens_of_before_are_not_of_this_run() -> None:
    pace = Pace(100, 5000, 1)
    for step in (1, 2, 3):
        pace.step_ended(100 + step)
        pace.logged(100 + step, 5000 + 10 * step)
    assert pace.tokens_per_s == 10


def test_before_the_first_step_nothing_is_known() -> None:
    pace = Pace(0, 0, 1)
    assert (pace.tokens_per_s, left(pace, 0, 10)) == (0, 0)
