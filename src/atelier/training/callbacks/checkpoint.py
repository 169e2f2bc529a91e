"""When a checkpoint is due: every so many steps or seconds."""

import time

from atelier.training.callbacks.base import Callback, Request
from atelier.training.run import TrainingRun


class SaveCheckpoints(Callback):
    """Asks for a checkpoint every ``checkpoint_every_steps`` steps or ``checkpoint_every_s`` seconds.

    Seconds are rank 0's; one rank's request binds all. The last step needs none: the engine saves it by itself.
    """

    def __init__(self) -> None:
        self._saved_at = time.monotonic()

    def on_start(self, run: TrainingRun) -> None:
        self._saved_at = time.monotonic()

    def request(self, run: TrainingRun) -> Request:
        steps, seconds = run.config.checkpoint_every_steps, run.config.checkpoint_every_s
        due = bool(steps) and run.step % (steps or 1) == 0
        due |= run.ranks.first and seconds is not None and time.monotonic() - self._saved_at >= seconds
        return Request.SAVE if due else Request.NOTHING

    def on_save(self, run: TrainingRun) -> None:
        self._saved_at = time.monotonic()
