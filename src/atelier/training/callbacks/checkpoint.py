"""When a save begins and when the training waits for it: a kill at any moment costs at most one interval."""

import math
import sys
import time

from atelier.training.callbacks.base import Callback, Request
from atelier.training.run import TrainingRun

EARLY = 1.5
"""A save begins so many times earlier than the last one took."""

WAITING_SHARE = 0.02
"""A training that waits for its saves longer than this share of its time, the most that saving should cost, says so."""


class Interval:
    """An interval in one unit (steps or seconds), counted from the state that the newest whole checkpoint holds.

    A save covers nothing before it is whole. Begun when the interval is over it would leave up to two uncovered, so it
    begins as much earlier as it is expected to take: the first by half an interval, which is also the most that helps
    (saves that take longer than half of it follow each other without a pause, and the training waits in between).

    Args:
        limit: the most that may be lost.
        now: the clock (or the step) at the start.
    """

    def __init__(self, limit: float, now: float) -> None:
        self.limit = limit
        self._covered = self._begun = now
        self._took: float | None = None

    def begin(self, now: float) -> None:
        """A save of this moment's state begins."""
        self._begun = now

    def complete(self, now: float) -> None:
        """It is whole."""
        self._took, self._covered = now - self._begun, self._begun

    def begins_at(self) -> float:
        """When the next save should begin."""
        half = self.limit / 2
        early = half if self._took is None else min(half, EARLY * self._took)
        return self._covered + self.limit - early

    def due(self, now: float) -> bool:
        """Whether it should have begun."""
        return now >= self.begins_at()

    def over(self, now: float) -> bool:
        """Whether as much as may be lost is uncovered."""
        return now >= self._covered + self.limit


class SaveCheckpoints(Callback):
    """Asks for saves and waits, so that never more than ``checkpoint_every_steps`` or ``_s`` is uncovered.

    In seconds the step that is being computed comes on top. Rank 0 asks for all. The last step needs no save of its
    own: the engine makes the final checkpoint.

    Attributes:
        took: seconds that each save of this process took, from the copy to the publication.
    """

    def __init__(self) -> None:
        self.took: list[float] = []
        self._steps: Interval | None = None
        self._seconds: Interval | None = None
        self._saving_step: int | None = None
        self._saved_at = self._seconds_before = 0.0
        self._told = False

    def on_start(self, run: TrainingRun) -> None:
        self._seconds_before = run.seconds
        steps, seconds = run.config.checkpoint_every_steps, run.config.checkpoint_every_s
        self._steps = Interval(steps, run.step) if steps is not None else None
        self._seconds = Interval(seconds, time.monotonic()) if seconds is not None else None

    def request(self, run: TrainingRun) -> Request:
        if not run.ranks.first:
            return Request.NOTHING
        now = time.monotonic()
        clocks: list[tuple[Interval, float]] = []
        if self._steps is not None:
            clocks.append((self._steps, run.step))
        if self._seconds is not None:
            clocks.append((self._seconds, now))
        if self._saving_step is not None and run.kept_step >= self._saving_step:
            self._saving_step = None
            for interval, reading in clocks:
                interval.complete(reading)
            self.took.append(now - self._saved_at)
            self._tell(run, self.took[-1])
        asked = Request.NOTHING
        if not run.saving and any(interval.due(reading) for interval, reading in clocks):
            asked |= Request.SAVE
        if any(interval.over(reading) for interval, reading in clocks):
            asked |= Request.WAIT
        return asked

    def on_save(self, run: TrainingRun) -> None:
        self._saved_at, self._saving_step = time.monotonic(), run.step
        if self._steps is not None:
            self._steps.begin(run.step)
        if self._seconds is not None:
            self._seconds.begin(self._saved_at)

    def _tell(self, run: TrainingRun, took: float) -> None:
        """Says once that the training waits for its checkpoints, and what to do."""
        worked = run.seconds - self._seconds_before - run.waited_s
        if self._told or run.waited_s < max(1.0, WAITING_SHARE * worked):
            return
        self._told = True
        if run.config.checkpoint_every_steps is not None:
            name, given = "checkpoint_every_steps", float(run.config.checkpoint_every_steps)
            enough = 2 * took * (run.step - run.first_step) / max(worked, 1e-9)
        else:
            name, given = "checkpoint_every_s", run.config.checkpoint_every_s or 0.0
            enough = 2 * took
        print(
            f"warning: checkpoints take too long for {name}={given:g}: that of step {run.kept_step} took {took:.1f} s, "
            f"and the training waited {run.waited_s:.1f} s so far, so that a kill costs no more; set {name} to "
            f"{max(math.ceil(enough), math.ceil(2 * given))} or more, or keep checkpoints at a faster place",
            file=sys.stderr,
            flush=True,
        )
