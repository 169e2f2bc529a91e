"""A training node's process in its pod: torchrun, and a report of how it ended.

``python -m atelier.training.trainjob.node --scratch=… --grace=… [--logs=s3://…] <module> [arguments]``. Trainer's torch
runtime says how many nodes there are, which one this is and where they meet (``PET_*``); torchrun reads that by itself.
"""

import argparse
import contextlib
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from atelier import errors
from atelier.training.process import log_path, record_path
from atelier.training.records import SETTLE_S, Record, first_failure, has_failed, raised_again, read_records
from atelier.training.tail import Follower, tail
from atelier.training.trainjob.causes import cause_of
from atelier.training.trainjob.report import Report, write

FAILURE_GRACE_S, POLL_S = 5.0, 0.2
UPLOADED = 2**23
"""Of each rank's log this many last bytes go to S3."""


def main(scratch: Path, logs_uri: str, grace_s: str, module: str, arguments: list[str]) -> int:
    """Runs this node's ranks; returns the container's exit code.

    0 when all completed, 75 when they saved and stopped, else that of the error (1 for errors that are not ours).

    Args:
        scratch: a folder of this machine.
        logs_uri: an ``s3://`` prefix for the ranks' logs; "": they stay here.
        grace_s: seconds that the ranks may take to save after SIGTERM.
    """
    # The first process of a container gets no signal that it has not asked for.
    signal.signal(signal.SIGTERM, _ended_early)
    node, processes = int(os.environ.get("PET_NODE_RANK", "0")), int(os.environ.get("PET_NPROC_PER_NODE", "1"))
    ranks = list(range(node * processes, (node + 1) * processes))
    logs = scratch / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    for rank in ranks:
        for left in (log_path(logs, rank), record_path(logs, rank)):
            left.unlink(missing_ok=True)
    kills = _memory_kills()
    command = [f"--shutdown-timeout={grace_s}", "--module", "atelier.training.rank", str(logs), module, *arguments]

    def leave() -> None:
        os._exit(_tell(conclude(logs, ranks, {}, False), logs, ranks, logs_uri))

    with _Supervisor(logs, ranks, leave) as supervisor:
        signals = _torchrun(command)
    report = conclude(logs, ranks, signals, _memory_kills() > kills, supervisor.first_dead)
    return _tell(report, logs, ranks, logs_uri)


def _tell(report: Report, logs: Path, ranks: list[int], logs_uri: str) -> int:
    """Leaves the report and the logs; returns the container's exit code."""
    write(report)
    if report.outcome == "failed":
        print(f"ranks {ranks[0]} to {ranks[-1]}: {report.cause}: {report.what}", file=sys.stderr, flush=True)
    if logs_uri:
        _upload(logs, ranks, logs_uri)
    return exit_code(report)


def conclude(
    logs: Path, ranks: list[int], signals: dict[int, int], out_of_memory: bool, first_dead: int | None = None
) -> Report:
    """What the records of this node's ranks say.

    Args:
        signals: rank → the signal that ended it, as torchrun saw it.
        out_of_memory: whether the kernel killed for memory here meanwhile.
        first_dead: the rank that died while the others lived, where that was seen.
    """
    records = _records(logs, ranks)
    outcomes = {str(record.get("outcome")) for record in records.values()}
    if len(records) == len(ranks) and outcomes == {"complete"}:
        return Report("complete")
    if len(records) == len(ranks) and outcomes <= {"preempted", "complete"}:
        return Report("preempted", "preempted", what="asked to end, saved its state")
    # A rank that the supervisor killed left no outcome either, and looks like the first of all.
    failed = first_failure(records) if first_dead is None else first_dead
    if failed is None:
        return Report("failed", "unknown", what="torchrun ended before its ranks began", fix="look at the pod's log")
    record, end = records[failed], tail(log_path(logs, failed))
    cause = cause_of(record, end, signals.get(failed), out_of_memory)
    known = raised_again(record)
    if known is not None:
        what, fix = known.what, known.fix
    elif "outcome" in record:
        what, fix = f"rank {failed} failed: {record.get('error')}: {record.get('message', '')}"[:600], ""
    else:
        by = signal.Signals(signals[failed]).name if failed in signals else "an unknown hand"
        what, fix = f"rank {failed} was killed by {by}", ""
    return Report("failed", cause, failed, str(record.get("error", "")), what, fix, end)


def exit_code(report: Report) -> int:
    """The container's exit code for a report."""
    if report.outcome == "complete":
        return 0
    if report.outcome == "preempted":
        return errors.Preempted.exit_code
    kind = getattr(errors, report.error, None)
    if isinstance(kind, type) and issubclass(kind, errors.AtelierError):
        return kind.exit_code
    return 1


class _Supervisor:
    """Shows the first local rank's output, and ends what torchrun would wait for in vain.

    When a rank has died torchrun asks the survivors to end, which ours take as a wish to save: together with a dead one
    they cannot, and the grace for saving would pass with all GPUs waiting. They get some seconds. When all have saved
    and stopped, the torchrun of a node that was not signalled itself waits five minutes for those that were.

    Args:
        leave: ends this process after ranks that have saved and stopped.
    """

    def __init__(self, logs: Path, ranks: list[int], leave: Callable[[], object]) -> None:
        self.logs, self.ranks, self.leave = logs, ranks, leave
        self.first_dead: int | None = None
        self._shown = Follower(log_path(logs, ranks[0]))
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="supervisor", daemon=True)

    def __enter__(self) -> "_Supervisor":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()
        self._shown.show()

    def _watch(self) -> None:
        dead_since: float | None = None
        stopped_since: float | None = None
        while not self._ended.wait(POLL_S):
            self._shown.show()
            records = _records(self.logs, self.ranks)
            dead = {rank: record for rank, record in records.items() if has_failed(record)}
            if dead_since is None and dead:
                dead_since = time.monotonic()
            if self.first_dead is None and dead_since is not None and time.monotonic() - dead_since > SETTLE_S:
                self.first_dead = first_failure(dead)
            outcomes = [record.get("outcome") for record in records.values()]
            if len(outcomes) == len(self.ranks) and "preempted" in outcomes and None not in outcomes and not dead:
                stopped_since = stopped_since or time.monotonic()
                if time.monotonic() - stopped_since > FAILURE_GRACE_S:
                    self._shown.show()
                    self.leave()
            if dead_since is not None and time.monotonic() - dead_since > FAILURE_GRACE_S:
                for record in records.values():
                    if "outcome" not in record:
                        with contextlib.suppress(ProcessLookupError):
                            os.kill(int(record["pid"]), signal.SIGKILL)


def _records(logs: Path, ranks: list[int]) -> dict[int, Record]:
    return {rank: record for rank, record in read_records(logs, max(ranks) + 1).items() if rank in ranks}


def _torchrun(arguments: list[str]) -> dict[int, int]:
    """Runs torchrun in this process; rank → signal of the ranks that were killed."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    try:
        torchrun(arguments)
    except ChildFailedError as error:
        return {rank: -failure.exitcode for rank, failure in error.failures.items() if failure.exitcode < 0}
    except SignalException:
        return {}
    return {}


def _memory_kills() -> int:
    """How often the kernel has killed for memory in this container (cgroup 2); 0 where that is not told."""
    try:
        found = re.search(r"^oom_kill (\d+)", Path("/sys/fs/cgroup/memory.events").read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(found.group(1)) if found else 0


def _ended_early(number: int, frame: FrameType | None) -> None:
    """SIGTERM before torchrun listens: nothing was begun, so nothing is lost."""
    write(Report("preempted", "preempted", what="asked to end before the training began"))
    os._exit(errors.Preempted.exit_code)


def _upload(logs: Path, ranks: list[int], place: str) -> None:
    """The ends of the ranks' logs, for a person who comes after the pod has gone; never a reason to fail."""
    from atelier.storage import s3
    from atelier.storage.uri import join

    for rank in ranks:
        path = log_path(logs, rank)
        with contextlib.suppress(errors.AtelierError, OSError), path.open("rb") as file:
            file.seek(max(path.stat().st_size - UPLOADED, 0))
            s3.write_bytes(join(place, path.name), file.read())


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--grace", required=True)
    parser.add_argument("--logs", default="")
    parser.add_argument("module")
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    given = parser.parse_args()
    code = main(given.scratch, given.logs, given.grace, given.module, given.arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
