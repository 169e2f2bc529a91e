"""What the terminal shows of a run: a line a step, and under it the running step's progress."""

import shutil
import sys
import threading
import time
from typing import Any, TextIO

from atelier.orchestration.ledger import Run, tail
from atelier.progress import format_duration


class Follower(threading.Thread):
    """Follows a run's ledger and prints; on a terminal the running step's line is rewritten in place.

    Args:
        run: the run to follow.
        total: the number of its steps.
        stream: where to print.
        every_s: seconds between two progress lines where the stream is no terminal.
    """

    def __init__(self, run: Run, total: int, stream: TextIO = sys.stdout, every_s: float = 10.0) -> None:
        super().__init__(name="follower", daemon=True)
        self.run_, self.total, self.stream, self.every_s = run, total, stream, every_s
        self.terminal = stream.isatty()
        self._ended = threading.Event()
        self._told: set[int] = set()
        self._last_line, self._last_time = "", time.monotonic()

    def run(self) -> None:
        while not self._ended.wait(0.2):
            self._look()

    def end(self) -> None:
        """Prints what is left to print and stops."""
        self._ended.set()
        self.join()
        self._look()
        self._clear()

    def say(self, text: str) -> None:
        """Prints a line of the command line's own above the progress line."""
        self._clear()
        self.stream.write(text + "\n")
        self.stream.flush()

    def _look(self) -> None:
        for record in self.run_.steps():
            number = record["number"]
            if number in self._told:
                continue
            if record["status"] == "running":
                self._progress(record)
            else:
                self._told.add(number)
                self._clear()
                self._finished(record)

    def _head(self, record: dict[str, Any]) -> str:
        width = len(str(self.total))
        return f"{record['number']:>{width}}/{self.total} {record['name']:<11}"

    def _progress(self, record: dict[str, Any]) -> None:
        live = self.run_.live(record)
        line = live.get("line") or "started"
        elapsed = time.time() - record["started"]
        if self.terminal:
            columns = shutil.get_terminal_size().columns
            text = f"{self._head(record)} {line}  [{format_duration(elapsed)}]"
            self.stream.write("\r\x1b[K" + text[: columns - 1])
            self.stream.flush()
            return
        now = time.monotonic()
        if line == self._last_line or now - self._last_time < self.every_s:
            return
        self._last_line, self._last_time = line, now
        self.stream.write(f"{self._head(record)} {line}\n")
        self.stream.flush()

    def _finished(self, record: dict[str, Any]) -> None:
        status, head = record["status"], self._head(record)
        self._last_time = time.monotonic()
        if status == "cached":
            text = f"{head} cached"
        elif status == "done":
            text = f"{head} done in {_seconds(record['seconds'])}"
        elif status == "interrupted":
            text = f"{head} interrupted after {_seconds(record['seconds'])}"
        else:
            text = f"{head} FAILED after {_seconds(record['seconds'])}"
        self.stream.write(text + "\n")
        self.stream.flush()

    def _clear(self) -> None:
        if self.terminal:
            self.stream.write("\r\x1b[K")
            self.stream.flush()


def _seconds(value: float) -> str:
    return f"{value:.1f} s" if value < 60 else format_duration(value)


def failure(run: Run, again: str) -> str:
    """A failed run's account: the step, what was wrong, its log's last lines, what to try."""
    failed = [record for record in run.steps() if record["status"] in ("failed", "running")]
    if failed:
        record = failed[-1]
        error = record.get("error") or {}
        what = error.get("what") or "the step's process ended without a word (killed, perhaps out of memory)"
        fix, log, title = error.get("fix") or "", run.log_of(record), f"step {record['name']} failed"
    else:
        what, fix, log, title = "a step could not start", "", run.kfp_log, "the run failed"
    lines = [f"{title}: {what}"]
    lines += [f"  try: {fix}"] if fix else []
    lines += [f"  log: {log}", *(f"    | {line}" for line in tail(log, 20))]
    lines += [f"  {again}"]
    return "\n".join(lines)
