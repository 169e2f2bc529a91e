"""Several lanes in processes of their own, one an accelerator; each takes the next unit when it has a place for it.

The processes talk in lines of JSON over pipes (nothing is pickled). A worker that dies is noticed by its pipe's end
and named with the signal that killed it and the units that it had; a parent that dies takes its workers along, because
their pipes end too.
"""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from atelier import errors
from atelier.data.lane import Report
from atelier.data.quarantine import Quarantined
from atelier.data.work import WorkSpec
from atelier.errors import AtelierError
from atelier.storage.folder import OutputFolder

MODULE = "atelier.data.preprocess_worker"
ENDING_S = 10.0


def run_in_processes(
    units: Sequence[str], work: WorkSpec, out: OutputFolder, report: Report, workers: int, gpus: Sequence[str]
) -> str:
    """Works through units in ``workers`` processes that commit into ``out``'s work folder.

    Every process computes with as many threads a model as this one would (``OMP_NUM_THREADS``), since their number
    may change a result's last bits.

    Args:
        gpus: what ``CUDA_VISIBLE_DEVICES`` shows to each worker in turn; empty leaves it as it is.

    Returns:
        The work's digest.

    Raises:
        AtelierError: a worker's own error, or that one died.
    """
    setup = {
        "work": asdict(work),
        "out": [out.uri, str(out.path)],
        "decoders": max(2, min(16, len(os.sched_getaffinity(0)) // workers)),
    }
    said: queue.Queue[tuple[_Worker, dict[str, Any] | None]] = queue.Queue()
    running: list[_Worker] = []
    waiting, digests = deque(units), set[str]()
    try:
        for number in range(workers):
            running.append(_Worker(number, setup, gpus[number % len(gpus)] if gpus else None, said))
        open_ends = workers
        while open_ends:
            worker, message = said.get()
            if message is None:
                worker.check_end()
                open_ends -= 1
            elif "error" in message:
                raise worker.error(message)
            elif "batch" in message:
                bad = [Quarantined(key, reason) for key, reason in message["bad"]]
                report(message["batch"], bad, message["filtered"])
            elif "done" in message:
                digests.add(message["done"])
                worker.finished = True
            else:
                worker.give(waiting.popleft() if waiting else None)
        if len(digests) != 1:
            raise AtelierError(f"the workers' models differ: {sorted(digests)}", "their files were changed meanwhile")
        return digests.pop()
    finally:
        for worker in running:
            worker.end()


class _Worker:
    """A worker's process, and a thread that passes on what it says."""

    def __init__(
        self,
        number: int,
        setup: dict[str, Any],
        gpu: str | None,
        said: "queue.Queue[tuple[_Worker, dict[str, Any] | None]]",
    ) -> None:
        self.number, self.finished, self._said = number, False, said
        self._units: list[str] = []
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        if gpu is not None:
            environment["CUDA_VISIBLE_DEVICES"] = gpu
        # Its progress is ours to report.
        environment.pop("ATELIER_STATUS_FILE", None)
        self._process = subprocess.Popen(
            [sys.executable, "-m", MODULE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
        )
        self._send(setup)
        threading.Thread(target=self._listen, daemon=True).start()

    def give(self, unit: str | None) -> None:
        """Answers its question for a unit; None: there are no more."""
        if unit is not None:
            self._units.append(unit)
        self._send({"unit": unit})

    def error(self, message: dict[str, Any]) -> AtelierError:
        """The error that it reports, of its own class where that is one of ours."""
        kind = getattr(errors, message["error"], None)
        if isinstance(kind, type) and issubclass(kind, AtelierError):
            return kind(message["what"], message["fix"])
        return AtelierError(
            f"{self._name()} failed: {message['error']}: {message['what']}", "its traceback is in the step's log"
        )

    def check_end(self) -> None:
        """Raises when it ended before its work did."""
        code = self._process.wait()
        if not self.finished:
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
            fix = "run again: finished shards are kept"
            if code == -signal.SIGKILL:
                fix = "most likely memory ran out: give more, or use fewer workers; finished shards are kept"
            raise AtelierError(f"{self._name()} {how}", fix)

    def end(self) -> None:
        """Ends it, gently and then not."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(ENDING_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        with contextlib.suppress(OSError):
            if self._process.stdin:
                self._process.stdin.close()

    def _name(self) -> str:
        return (
            f"preprocess worker {self.number} (pid {self._process.pid}, at {', '.join(self._units[-3:]) or 'no unit'})"
        )

    def _send(self, message: dict[str, Any]) -> None:
        # A dead worker's broken pipe is no news: its other pipe has ended, which is reported with the reason.
        if self._process.stdin:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.write(json.dumps(message).encode() + b"\n")
                self._process.stdin.flush()

    def _listen(self) -> None:
        if self._process.stdout:
            with self._process.stdout as lines, contextlib.suppress(ValueError):
                for line in lines:
                    self._said.put((self, json.loads(line)))
        self._said.put((self, None))
