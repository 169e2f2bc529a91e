"""Preemption: SIGTERM and SIGINT ask the training to save at the next step boundary and end."""

from atelier.training.callbacks.base import Callback, Request
from atelier.training.process import stop_asked
from atelier.training.run import TrainingRun


class StopOnSignal(Callback):
    """Asks all ranks to save and stop once this rank was signalled."""

    def request(self, run: TrainingRun) -> Request:
        return Request.STOP if stop_asked() else Request.NOTHING
