"""A sign of life of the launcher that its nodes can see: an object on S3, written again every minute.

A launcher may be killed before it can delete its TrainJob (KFP's own process between Argo and the step passes no signal
on). The nodes may not ask the cluster, so they look at this (``callbacks.end_unwatched``).
"""

import contextlib
import threading
from collections.abc import Callable

from atelier.errors import AtelierError

EVERY_S = 60.0
NAME = ".watched"
"""The object, below the training's outputs."""


class Heartbeat:
    """Calls ``beat`` at once and then every so often, while the block runs; storage that fails is tried again."""

    def __init__(self, beat: Callable[[], None] | None, every_s: float = EVERY_S) -> None:
        self.beat, self.every_s = beat, every_s
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def __enter__(self) -> "Heartbeat":
        if self.beat is not None:
            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()

    def _run(self) -> None:
        assert self.beat is not None
        while True:
            with contextlib.suppress(AtelierError):
                self.beat()
            if self._ended.wait(self.every_s):
                return
