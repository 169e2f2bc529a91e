"""Sends a run's records to MLflow from a thread of its own: training neither waits for the server nor dies with it."""

import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from atelier.tracking.service import client, shown

FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0
AWAY_CLOSE_S = 3.0
BATCH = 500
"""Metric values in one request; MLflow takes up to 1,000."""
LIMIT = 20_000
"""Records kept while the server is away; beyond it the oldest metrics go first."""

_TRANSIENT = {"INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED", "UNAUTHENTICATED"}


@dataclass
class Record:
    """One thing to be sent: metric values (which may be joined with their neighbours), or any other call."""

    send: Callable[[Any], None] | None = None
    metrics: list[tuple[str, float, int, int]] = field(default_factory=list)
    run_id: Callable[[], str | None] = lambda: None


class Outbox:
    """A queue of records and the thread that sends them in order.

    What the server refuses for good (a bad name, a parameter with another value) is dropped with a warning; while it
    does not answer, everything waits and is tried again, with one warning when it goes and one line when it is back.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._records: deque[Record] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._away_since: float | None = None
        self._dropped = 0
        self._thread = threading.Thread(target=self._run, name="mlflow-outbox", daemon=True)
        self._thread.start()

    def put(self, record: Record) -> None:
        """Queues a record; never blocks on the network."""
        with self._changed:
            if len(self._records) >= LIMIT:
                self._forget_oldest_metrics()
            self._records.append(record)
            self._changed.notify_all()

    def flush(self, timeout_s: float) -> bool:
        """Waits until all is sent; False when the time is up before."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._records, timeout_s)

    def close(self, timeout_s: float) -> None:
        """Sends what is left and says what could not be sent.

        Waits for at most ``timeout_s``, and no longer than a moment for a server that does not answer.
        """
        end = time.monotonic() + timeout_s
        sent = self.flush(min(timeout_s, AWAY_CLOSE_S))
        while not sent and self._away_since is None and time.monotonic() < end:
            sent = self.flush(1.0)
        with self._changed:
            self._closing = True
            left = len(self._records)
            self._changed.notify_all()
        if not sent:
            self._say(f"{left} records were not delivered; the run's own files hold them all")
        self._thread.join(1.0)

    def _run(self) -> None:
        connected: Any = None
        pause = FIRST_PAUSE_S
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._records or self._closing)
                if self._closing:
                    return
                batch = self._next_batch()
            try:
                connected = connected or client(self.uri)
                self._send(connected, batch)
            except Exception as error:
                if _is_transient(error):
                    self._note_away(error)
                    with self._changed:
                        self._changed.wait_for(lambda: self._closing, pause)
                    pause = min(pause * 2, LONGEST_PAUSE_S)
                    continue
                self._say(f"refuses a record, which is left out: {_first_line(error)}")
            else:
                self._note_back()
                pause = FIRST_PAUSE_S
            with self._changed:
                for record in batch:
                    if self._records and self._records[0] is record:
                        self._records.popleft()
                self._changed.notify_all()

    def _next_batch(self) -> list[Record]:
        """The first record, and the metrics right behind it when it is metrics itself."""
        first = self._records[0]
        if not first.metrics:
            return [first]
        batch, values = [], 0
        for record in self._records:
            if not record.metrics or record.run_id is not first.run_id or values + len(record.metrics) > BATCH:
                break
            batch.append(record)
            values += len(record.metrics)
        return batch or [first]

    def _send(self, connected: Any, batch: list[Record]) -> None:
        if batch[0].send is not None:
            batch[0].send(connected)
            return
        from mlflow.entities import Metric

        run_id = batch[0].run_id()
        if run_id is not None:
            connected.log_batch(run_id, metrics=[Metric(*values) for record in batch for values in record.metrics])

    def _forget_oldest_metrics(self) -> None:
        for position, record in enumerate(self._records):
            if record.metrics:
                del self._records[position]
                self._dropped += 1
                return

    def _note_away(self, error: BaseException) -> None:
        if self._away_since is None:
            self._away_since = time.monotonic()
            self._say(
                f"does not answer; the work goes on and its records are sent when it is back ({_first_line(error)})"
            )

    def _note_back(self) -> None:
        if self._away_since is not None:
            away = time.monotonic() - self._away_since
            self._away_since = None
            lost = f"; {self._dropped} of its oldest metric records were given up" if self._dropped else ""
            self._say(f"answers again after {away:.0f} s{lost}")

    def _say(self, what: str) -> None:
        print(f"MLflow at {shown(self.uri)} {what}", file=sys.stderr, flush=True)


def _is_transient(error: BaseException) -> bool:
    """Whether trying again later may help."""
    from atelier.errors import ServiceError

    code = getattr(error, "error_code", None)
    return code in _TRANSIENT if code is not None else isinstance(error, OSError | ServiceError | TimeoutError)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
