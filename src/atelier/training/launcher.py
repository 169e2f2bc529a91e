"""Starts the ranks of a training: one Protocol, and the launcher that starts them on this machine.

On a cluster Kubeflow Trainer starts the same module under the same torchrun (``trainjob.launcher``).
"""

import contextlib
import os
import re
import shutil
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from atelier.errors import ConfigError, Preempted, TrainingError
from atelier.training.group import AgentGroup, agent_log
from atelier.training.process import log_path
from atelier.training.records import raised_again, read_records
from atelier.training.tail import tail

_OWN = ("RANK", "LOCAL_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun tells a rank; a launcher inside another training must not pass it on."""


class Launcher(Protocol):
    """Runs a module as the ranks of one training.

    Attributes:
        facts: what there is to note of the last run beside its result, e.g. ``gpu_hours``.
    """

    facts: dict[str, Any]

    def run(self, module: str, arguments: list[str], processes: int, logs: Path, nodes: int = 1) -> None:
        """Returns when every rank completed.

        Args:
            module: run as ``python -m module arguments…`` in each rank; returns or exits with 0 when it is complete,
                raises ``Preempted`` or exits with its code (75) when it was asked to stop and saved.
            processes: ranks in all; a multiple of ``nodes``. Rank r runs on node r // (processes / nodes).
            logs: a folder for the ranks' logs and records; emptied first.
            nodes: machines, or what stands for them.

        Raises:
            ConfigError: the ranks cannot be shared among the nodes.
            Preempted: the launcher was signalled and the ranks saved and ended.
            TrainingError: a rank failed or was killed; the message ends with its last lines.
            AtelierError: what a rank raised.
        """
        ...


@dataclass
class LocalLauncher:
    """torchrun on this machine, one agent a node, with loopback networking.

    SIGTERM or SIGINT asks the ranks to save and end; a second SIGINT kills them at once. When this process dies,
    however it dies, the kernel kills the agents and the ranks.

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
    facts: dict[str, Any] = field(default_factory=dict, init=False)

    def run(self, module: str, arguments: list[str], processes: int, logs: Path, nodes: int = 1) -> None:
        if nodes < 1 or processes < 1 or processes % nodes:
            raise ConfigError(
                f"{processes} processes cannot be shared equally among {nodes} nodes",
                "make processes a multiple of nodes",
            )
        shutil.rmtree(logs, ignore_errors=True)
        logs.mkdir(parents=True)
        command = ["--module", "atelier.training.rank", str(logs), module, *arguments]
        with (
            _Signals() as signals,
            AgentGroup(command, processes, nodes, logs, self._environment(), self.grace_s) as group,
        ):
            signals.reach(group)
            codes, failed = group.follow(self.failure_grace_s)
        _conclude(group, codes, failed, signals)

    def _environment(self) -> dict[str, str]:
        variables = os.environ | {"OMP_NUM_THREADS": str(self.threads), "PYTHONUNBUFFERED": "1"}
        for name in _OWN:
            variables.pop(name, None)
        if sys.platform == "linux":
            # Without it gloo resolves the host name, which on a laptop may be nobody's address.
            variables.setdefault("GLOO_SOCKET_IFNAME", "lo")
        return variables | self.environment


class _Signals:
    """Handles SIGTERM and SIGINT while the ranks run; outside the main thread, where Python has none, does nothing."""

    def __init__(self) -> None:
        self.received = 0
        self.aborted = False
        self._group: AgentGroup | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "_Signals":
        with contextlib.suppress(ValueError):
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def reach(self, group: AgentGroup) -> None:
        """Passes signals on to this group; also one that came while it was being started."""
        self._group = group
        if self.aborted:
            group.kill()
        elif self.received:
            group.terminate()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.received += 1
        if self.received == 1:
            print(
                "stopping after this step, saving a checkpoint (Ctrl-C again aborts at once)",
                file=sys.stderr,
                flush=True,
            )
            if self._group is not None:
                self._group.terminate()
        elif number == signal.SIGINT:
            self.aborted = True
            if self._group is not None:
                self._group.kill()


def _conclude(group: AgentGroup, codes: list[int], failed: int | None, signals: _Signals) -> None:
    """Returns when all ranks completed, else raises what happened."""
    processes, logs = group.processes, group.logs
    records = read_records(logs, processes)
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
        node = next((node for node, code in enumerate(codes) if code), 0)
        raise TrainingError(
            f"the training's ranks did not start (torchrun ended with {codes[node]}):\n{tail(agent_log(logs, node))}",
            f"the whole log is {agent_log(logs, node)}",
        )
    known = raised_again(records[failed])
    if known is not None:
        raise known
    node = group.node_of(failed)
    killed = records[failed].get("outcome") is None
    how = _death(agent_log(logs, node), int(records[failed]["pid"])) if killed else "failed"
    where = f" (node {node})" if group.nodes > 1 else ""
    raise TrainingError(
        f"rank {failed}{where} {how}; its last lines:\n{tail(log_path(logs, failed))}",
        f"the logs of all ranks are in {logs}; running again goes on from the last checkpoint",
    )


def _death(agent_log: Path, pid: int) -> str:
    """How torchrun says that a process died."""
    found = re.search(rf"exitcode\s*:\s*-(\d+)\b.*\(pid: {pid}\)", tail(agent_log, 200))
    if found:
        with contextlib.suppress(ValueError):
            return f"was killed by {signal.Signals(int(found.group(1))).name}"
    return "ended without a word (killed, or out of memory)"
