"""Starts the ranks of a training: one Protocol, and the launcher that starts them on this machine.

On a cluster Kubeflow Trainer starts the same module under the same torchrun.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from atelier.errors import Preempted, TrainingError
from atelier.training.process import log_path, raised_again, record_path

AGENT_LOG = "torchrun.log"
TAIL_LINES = 30


class Launcher(Protocol):
    """Runs a module as the ranks of one training."""

    def run(self, module: str, arguments: list[str], processes: int, logs: Path) -> None:
        """Returns when every rank completed.

        Args:
            module: run as ``python -m module arguments…`` in each rank; returns or exits with 0 when it is complete,
                raises ``Preempted`` or exits with its code (75) when it was asked to stop and saved.
            logs: a folder for the ranks' logs and records; emptied first.

        Raises:
            Preempted: the launcher was signalled and the ranks saved and ended.
            TrainingError: a rank failed or was killed; the message ends with its last lines.
            AtelierError: what a rank raised.
        """
        ...


@dataclass
class LocalLauncher:
    """torchrun on this machine, with loopback networking.

    SIGTERM or SIGINT asks the ranks to save and end; a second SIGINT kills them at once. When this process dies,
    however it dies, the kernel kills torchrun and the ranks.

    Attributes:
        threads: threads of each rank's own arithmetic.
        grace_s: how long the ranks may take to save after a signal.
        failure_grace_s: how long the others may live on when a rank has died.
        environment: more variables for the ranks.
    """

    threads: int = 1
    grace_s: int = 600
    failure_grace_s: float = 5.0
    environment: dict[str, str] = field(default_factory=dict)

    def run(self, module: str, arguments: list[str], processes: int, logs: Path) -> None:
        shutil.rmtree(logs, ignore_errors=True)
        logs.mkdir(parents=True)
        command = [
            sys.executable,
            "-m",
            "atelier.training.agent",
            str(os.getpid()),
            "--standalone",
            "--nnodes=1",
            f"--nproc-per-node={processes}",
            "--local-addr=127.0.0.1",
            f"--shutdown-timeout={self.grace_s}",
            "--module",
            "atelier.training.rank",
            str(logs),
            module,
            *arguments,
        ]
        with (logs / AGENT_LOG).open("wb") as agent_log:
            # A session of its own: Ctrl-C reaches this process alone, which passes it on once.
            agent = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=agent_log,
                stderr=agent_log,
                env=self._environment(),
                start_new_session=True,
            )
        try:
            with _Signals(agent) as signals:
                code, failed = self._follow(agent, processes, logs)
        finally:
            if agent.poll() is None:
                agent.kill()
                agent.wait()
        self._conclude(code, failed, signals, processes, logs)

    def _environment(self) -> dict[str, str]:
        variables = os.environ | {"OMP_NUM_THREADS": str(self.threads), "PYTHONUNBUFFERED": "1"}
        for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
            variables.pop(name, None)
        if sys.platform == "linux":
            # Without it gloo resolves the host name, which on a laptop may be nobody's address.
            variables.setdefault("GLOO_SOCKET_IFNAME", "lo")
        return variables | self.environment

    def _follow(self, agent: "subprocess.Popen[bytes]", processes: int, logs: Path) -> tuple[int, int | None]:
        """Shows rank 0's output until the group has ended; returns torchrun's exit code and the rank that failed."""
        dead_since: float | None = None
        failed: int | None = None
        shown = 0
        while True:
            code = agent.poll()
            shown = _show(log_path(logs, 0), shown)
            records = _records(logs, processes)
            if code is not None:
                return code, _first_failure(records) if failed is None else failed
            now = time.monotonic()
            if dead_since is None and any(_has_failed(record) for record in records.values()):
                dead_since = now
            if dead_since is not None and failed is None and now - dead_since > 0.5:
                # Settled before survivors are killed, and after torchrun has had time to bury the first dead.
                failed = _first_failure({rank: record for rank, record in records.items() if _has_failed(record)})
            if dead_since is not None and now - dead_since > self.failure_grace_s:
                # torchrun would wait for survivors that wait for the dead. Its own death takes them along.
                agent.kill()
            time.sleep(0.1)

    def _conclude(self, code: int, failed: int | None, signals: "_Signals", processes: int, logs: Path) -> None:
        records = _records(logs, processes)
        outcomes = {rank: str(record.get("outcome")) for rank, record in records.items()}
        if signals.aborted:
            raise TrainingError(
                "the training was aborted by a second interrupt", "run again: it goes on from its last checkpoint"
            )
        if len(outcomes) == processes and set(outcomes.values()) == {"complete"}:
            return
        if len(outcomes) == processes and set(outcomes.values()) == {"preempted"}:
            raise Preempted("the training was asked to end and saved its state", "run again: it goes on from there")
        if signals.received and (failed is None or records[failed].get("outcome") != "failed"):
            raise Preempted(
                "the training was asked to end before it could save", "run again: it goes on from its last checkpoint"
            )
        if failed is None:
            raise TrainingError(
                f"the training's ranks did not start (torchrun ended with {code}):\n{tail(logs / AGENT_LOG)}",
                f"the whole log is {logs / AGENT_LOG}",
            )
        known = raised_again(records[failed])
        if known is not None:
            raise known
        killed = records[failed].get("outcome") is None
        how = _death(logs / AGENT_LOG, int(records[failed]["pid"])) if killed else "failed"
        raise TrainingError(
            f"rank {failed} {how}; its last lines:\n{tail(log_path(logs, failed))}",
            f"the logs of all ranks are in {logs}; running again goes on from the last checkpoint",
        )


class _Signals:
    """Handles SIGTERM and SIGINT while the ranks run; outside the main thread, where Python has none, does nothing."""

    def __init__(self, agent: "subprocess.Popen[bytes]") -> None:
        self.agent = agent
        self.received = 0
        self.aborted = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "_Signals":
        with contextlib.suppress(ValueError):
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.received += 1
        if self.received == 1:
            print(
                "stopping after this step, saving a checkpoint (Ctrl-C again aborts at once)",
                file=sys.stderr,
                flush=True,
            )
            self.agent.terminate()
        elif number == signal.SIGINT:
            self.aborted = True
            self.agent.kill()


def tail(path: Path, lines: int = TAIL_LINES) -> str:
    """A log's last lines, indented."""
    if not path.exists():
        return "  (no output)"
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - 64_000, 0))
        text = file.read().decode(errors="replace")
    return "\n".join(f"  {line}" for line in text.splitlines()[-lines:]) or "  (no output)"


def _show(path: Path, shown: int) -> int:
    """Copies what is new in ``path`` to stderr, whole lines only; returns how far it was shown."""
    if not path.exists():
        return shown
    with path.open("rb") as file:
        file.seek(shown)
        new = file.read()
    whole = new[: new.rfind(b"\n") + 1]
    if whole:
        sys.stderr.write(whole.decode(errors="replace"))
        sys.stderr.flush()
    return shown + len(whole)


def _records(logs: Path, processes: int) -> dict[int, dict[str, Any]]:
    return dict(_read_records(logs, processes))


def _read_records(logs: Path, processes: int) -> Iterator[tuple[int, dict[str, Any]]]:
    for rank in range(processes):
        with contextlib.suppress(OSError, ValueError):
            yield rank, json.loads(record_path(logs, rank).read_text())


def _has_failed(record: dict[str, Any]) -> bool:
    if "outcome" in record:
        return bool(record["outcome"] == "failed")
    try:
        os.kill(int(record["pid"]), 0)
    except ProcessLookupError:
        return True
    return False


def _first_failure(records: dict[int, dict[str, Any]]) -> int | None:
    """The rank whose end caused the others': one that left no record was killed, else the first that raised."""
    killed = [rank for rank, record in records.items() if "outcome" not in record]
    if killed:
        return killed[0]
    raised = [(float(record["ended"]), rank) for rank, record in records.items() if record["outcome"] == "failed"]
    return min(raised)[1] if raised else None


def _death(agent_log: Path, pid: int) -> str:
    """How torchrun says that a process died."""
    found = re.search(rf"exitcode\s*:\s*-(\d+)\b.*\(pid: {pid}\)", tail(agent_log, 200))
    if found:
        with contextlib.suppress(ValueError):
            return f"was killed by {signal.Signals(int(found.group(1))).name}"
    return "ended without a word (killed, or out of memory)"
