"""The moments of a training run at which a callback may act."""

from enum import IntFlag

from atelier.training.run import TrainingRun


class Request(IntFlag):
    """What a callback of any rank may ask of all ranks after a step."""

    NOTHING = 0
    SAVE = 1
    STOP = 2
    WAIT = 4
    """For the save that is going on: no further step before it is whole."""


class Callback:
    """Does nothing; every callback overrides the moments it cares about.

    All moments are on every rank and in the main thread. A callback that works on rank 0 alone leaves the others
    waiting at the next collective, which is what keeps the ranks together.
    """

    logs: tuple[str, ...] = ()
    """Files in the run's folder that it appends to: they travel with the checkpoints."""

    def on_start(self, run: TrainingRun) -> None:
        """The model is built and, on a resume, its state is back."""

    def on_step(self, run: TrainingRun) -> None:
        """An update is done."""

    def on_log(self, run: TrainingRun) -> None:
        """``run.metrics`` is new (every ``log_every`` steps and at the last)."""

    def request(self, run: TrainingRun) -> Request:
        """Asked after each step; what any rank asks, all do."""
        return Request.NOTHING

    def on_save(self, run: TrainingRun) -> None:
        """A checkpoint of this step is about to be written: make durable what must not be behind it."""

    def on_end(self, run: TrainingRun) -> None:
        """The training ends, finished or stopped; not called when it failed."""
