"""A training that no launcher watches any more saves and ends: nobody would collect what its GPUs cost."""

import threading

from atelier.storage import s3
from atelier.training.callbacks.base import Callback, Request
from atelier.training.run import TrainingRun

EVERY_S = 60.0


class EndUnwatched(Callback):
    """Looks, in a thread of rank 0, how old the launcher's sign of life is (by the store's own clock).

    A store that does not answer, or has no such object, says nothing: the training goes on.

    Args:
        sign: the ``s3://`` object that the launcher writes again and again.
        limit_s: the age at which the training ends as preempted.
    """

    def __init__(self, sign: str, limit_s: float, every_s: float = EVERY_S) -> None:
        self.sign, self.limit_s, self.every_s = sign, limit_s, every_s
        self._alone = False
        self._ended = threading.Event()

    def on_start(self, run: TrainingRun) -> None:
        if run.ranks.first:
            threading.Thread(target=self._look, name="watched", daemon=True).start()

    def on_end(self, run: TrainingRun) -> None:
        self._ended.set()

    def request(self, run: TrainingRun) -> Request:
        return Request.STOP if self._alone else Request.NOTHING

    def _look(self) -> None:
        while not self._ended.wait(self.every_s):
            try:
                age = s3.age(self.sign)
            except Exception as error:
                # Whatever a store answers: this thread must outlive it, or nobody ends an unwatched training.
                print(f"the launcher's sign of life cannot be read ({type(error).__name__}: {error})", flush=True)
                continue
            if age is not None and age > self.limit_s:
                print(f"no launcher has watched for {age:.0f} s: saving and ending", flush=True)
                self._alone = True
                return
