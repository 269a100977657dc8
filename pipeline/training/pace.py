"""How fast a run goes and when it will end: from the moments at which its steps, evaluations and saves ended. Light.

Guarantees: evaluations and saves count neither into the speed nor are they forgotten in the time left. Does not
guarantee anything before the second step: the first one compiles.
"""

from collections import deque
from statistics import fmean

WINDOW_STEPS = 20
# A forward pass is a third of forward and backward.
FORWARD_SHARE = 1 / 3


class Pace:
    """Moments are seconds of one monotonic clock, tokens a running total; the caller names both."""

    def __init__(self, now_s: float, tokens: int, logging_steps: int) -> None:
        self._mark_s, self._active_s = now_s, 0.0
        self._count = 0
        self._step_s: deque[float] = deque(maxlen=WINDOW_STEPS)
        # At each logging step: seconds of training until then, tokens until then.
        remembered = 1 + max(1, WINDOW_STEPS // logging_steps)
        self._logged: deque[tuple[float, int]] = deque([(0.0, tokens)], maxlen=remembered)
        self._evaluation_s: float | None = None
        self._save_s = 0.0

    def step_ended(self, now_s: float) -> None:
        if self._count == 1:
            self._step_s.clear()
        self._count += 1
        self._step_s.append(self._lap(now_s))
        self._active_s += self._step_s[-1]

    def logged(self, now_s: float, tokens: int) -> None:
        """After a logging step of training. The time since the step's end is the step's: reading its loss waits for it,
        as a GPU works behind the program's back.
        """
        lap_s = self._lap(now_s)
        self._active_s += lap_s
        if self._step_s:
            self._step_s[-1] += lap_s
        if len(self._logged) == 2 and self._logged[0][0] == 0.0:
            self._logged.popleft()
        self._logged.append((self._active_s, tokens))

    def evaluated(self, now_s: float) -> None:
        self._evaluation_s = self._lap(now_s)

    def saved(self, now_s: float) -> None:
        self._save_s = self._lap(now_s)

    def _lap(self, now_s: float) -> float:
        passed_s, self._mark_s = now_s - self._mark_s, now_s
        return passed_s

    @property
    def tokens_per_s(self) -> float:
        """Over the last WINDOW_STEPS steps, or since the logging step before where those are further apart."""
        (began_s, before), (ended_s, after) = self._logged[0], self._logged[-1]
        return (after - before) / (ended_s - began_s) if ended_s > began_s else 0.0

    def eta_s(
        self, step: int, max_steps: int, *, eval_every: int | None, save_every: int | None, eval_steps_worth: float
    ) -> float:
        """Seconds from logging `step` to the end, with the evaluations and saves due from this step on.

        `eval_steps_worth` is how many steps' rows one evaluation reads: its guess until one was measured.
        """
        step_s = fmean(self._step_s) if self._step_s else 0.0
        evaluation_s = self._evaluation_s
        if evaluation_s is None:
            evaluation_s = FORWARD_SHARE * eval_steps_worth * step_s
        evaluations, saves = _due(step, max_steps, eval_every), _due(step, max_steps, save_every)
        return (max_steps - step) * step_s + evaluations * evaluation_s + saves * self._save_s


def _due(step: int, max_steps: int, every: int | None) -> int:
    """How often a thing that is done every `every` steps, and at the last one, is still to be done."""
    return -(-max_steps // every) - (step - 1) // every if every else 0
