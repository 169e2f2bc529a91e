"""Rank 0's output, followed from its pod into the step's own: reconnected when it breaks, no line twice."""

import contextlib
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime

from atelier.training.trainjob.api import Api

CONTAINER = "node"
PAUSE_S, DRAIN_S = 2.0, 10.0


class LogFollower:
    """Follows one pod in a thread until it is stopped.

    The server repeats whole seconds at a reconnect; its time stamps (nanoseconds) tell what was shown already.

    Args:
        show: is given each line, without its time.
    """

    def __init__(self, api: Api, pod: str, show: Callable[[str], None]) -> None:
        self.api, self.pod, self.show = api, pod, show
        self._last, self._at_last = "", 0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._follow, name=f"log-{pod}", daemon=True)
        self._thread.start()

    def stop(self, drain_s: float = DRAIN_S) -> None:
        """Ends it; what the container has said by now is still shown, for ``drain_s`` at most."""
        self._stopped.set()
        self._thread.join(drain_s)

    def _follow(self) -> None:
        while True:
            last_round = self._stopped.is_set()
            # Anything may break here, an upgraded server or a node that is gone: the job's status decides, not this.
            with contextlib.suppress(Exception):
                self._read()
            if last_round or self._stopped.wait(PAUSE_S):
                if last_round:
                    return
                continue

    def _read(self) -> None:
        since = None
        if self._last:
            since = round(time.time() - seconds_of(self._last)) + 2
        # Lines of the last shown instant come again: as many of them are passed over as were shown.
        repeated = self._at_last
        for raw in self.api.log(self.pod, CONTAINER, since):
            said, _, line = raw.decode(errors="replace").partition(" ")
            stamp = moment(said)
            if not stamp:
                continue
            if self._last and stamp < self._last:
                continue
            if stamp == self._last and repeated:
                repeated -= 1
                continue
            self._at_last = self._at_last + 1 if stamp == self._last else 1
            self._last = stamp
            self.show(line)


def moment(stamp: str) -> str:
    """An RFC 3339 time with all nine digits of its fraction, so that text compares as time does; "" for other text."""
    if not seconds_of(stamp):
        return ""
    fraction = stamp[20:].rstrip("Zz").split("+")[0] if stamp[19:20] == "." else ""
    return f"{stamp[:19]}.{fraction:0<9}"


def seconds_of(stamp: str) -> float:
    """Seconds since 1970 of an RFC 3339 time, 0.0 where it is none; nanoseconds are cut off."""
    try:
        return datetime.strptime(stamp[:19], "%Y-%m-%dT%H:%M:%S").replace(tzinfo=UTC).timestamp()
    except ValueError:
        return 0.0
