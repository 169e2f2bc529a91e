"""A group of torchrun agents on this machine, one a "node": started together, watched, ended together."""

import os
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil

from atelier.training.process import log_path
from atelier.training.records import SETTLE_S, Record, first_failure, has_failed, read_records
from atelier.training.tail import Follower

_MARK = "ATELIER_GROUP"
"""A variable that every process of a group inherits: by it what outlived its parents is found."""

_POLL_S = 0.1


def agent_log(logs: Path, node: int) -> Path:
    """Where a node's torchrun writes."""
    return logs / f"torchrun-{node:02d}.log"


class AgentGroup:
    """``nodes`` torchruns with ``processes`` ranks in all, talking over loopback.

    A context manager: it starts the group, and whatever the block does, nothing of the group outlives it.

    Args:
        command: what each rank runs: arguments of torchrun from ``--module`` on.
        environment: of the agents and ranks.
        grace_s: how long ranks may take to save after a signal.
    """

    def __init__(
        self, command: list[str], processes: int, nodes: int, logs: Path, environment: dict[str, str], grace_s: int
    ) -> None:
        self.command, self.processes, self.nodes, self.logs, self.grace_s = command, processes, nodes, logs, grace_s
        self._mark = uuid.uuid4().hex
        self._environment = environment | {_MARK: self._mark}
        self._agents: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> "AgentGroup":
        port = reserved_port()
        try:
            for node in range(self.nodes):
                own = [
                    f"--nnodes={self.nodes}",
                    f"--node-rank={node}",
                    f"--nproc-per-node={self.processes // self.nodes}",
                    "--master-addr=127.0.0.1",
                    f"--master-port={port}",
                    "--local-addr=127.0.0.1",
                    f"--shutdown-timeout={self.grace_s}",
                ]
                self._agents.append(self._start(own + self.command, agent_log(self.logs, node)))
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._end()

    def _start(self, arguments: list[str], log: Path) -> "subprocess.Popen[bytes]":
        with log.open("wb") as file:
            # A session of its own: Ctrl-C reaches this process alone, which passes it on once.
            return subprocess.Popen(
                [sys.executable, "-m", "atelier.training.agent", str(os.getpid()), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env=self._environment,
                start_new_session=True,
            )

    def node_of(self, rank: int) -> int:
        """The node that a rank runs on."""
        return rank // (self.processes // self.nodes)

    def terminate(self) -> None:
        """Asks every rank to save and end."""
        for agent in self._agents:
            if agent.poll() is None:
                agent.terminate()

    def kill(self) -> None:
        """Ends every agent at once; the kernel ends their ranks with them."""
        for agent in self._agents:
            if agent.poll() is None:
                agent.kill()

    def follow(self, failure_grace_s: float) -> tuple[list[int], int | None]:
        """Shows rank 0's output until the group has ended; returns the agents' exit codes and the rank that failed.

        When a rank or an agent has died, the others get ``failure_grace_s``: torchrun would wait for survivors that
        wait for the dead, and the agents of other nodes do not even hear of it.
        """
        shown = Follower(log_path(self.logs, 0))
        dead_since: float | None = None
        failed: int | None = None
        while True:
            codes = [agent.poll() for agent in self._agents]
            shown.show()
            records = read_records(self.logs, self.processes)
            ended = [code for code in codes if code is not None]
            if len(ended) == len(codes):
                return ended, first_failure(records) if failed is None else failed
            now = time.monotonic()
            if dead_since is None and (
                any(has_failed(record) for record in records.values())
                or any(self._is_lost(node, code, records) for node, code in enumerate(codes))
            ):
                dead_since = now
            if dead_since is not None and failed is None and now - dead_since > SETTLE_S:
                # Settled before survivors are killed, and after torchrun has had time to bury the first dead.
                failed = first_failure({rank: record for rank, record in records.items() if has_failed(record)})
            if dead_since is not None and now - dead_since > failure_grace_s:
                self.kill()
            time.sleep(_POLL_S)

    def _is_lost(self, node: int, code: int | None, records: dict[int, Record]) -> bool:
        """Whether an agent has failed before its ranks came to an end of their own (asked to stop, it fails too)."""
        own = [record for rank, record in records.items() if self.node_of(rank) == node and "outcome" in record]
        return bool(code) and len(own) < self.processes // self.nodes

    def _end(self) -> None:
        """Ends what is left of the group, down to processes that a rank's libraries started."""
        self.kill()
        for agent in self._agents:
            agent.wait()
        for left in self._descendants():
            with suppress(psutil.Error):
                left.kill()

    def _descendants(self) -> Iterator[psutil.Process]:
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                if process.pid != os.getpid() and process.environ().get(_MARK) == self._mark:
                    yield process


def reserved_port() -> int:
    """A free TCP port of loopback that nobody else is given for the next minute.

    A port that was merely probed may be another's before torchrun listens on it. One with a connection in TIME_WAIT is
    skipped by the kernel when it chooses a port, but may be bound by name with SO_REUSEADDR, which torch's store sets.
    """
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("127.0.0.1", 0))
        server.listen(1)
        address = server.getsockname()
        with socket.socket() as caller:
            caller.connect(address)
            accepted, _ = server.accept()
            # The side that closes first keeps the TIME_WAIT: it must be the one whose own port this is.
            accepted.close()
            caller.recv(1)
    return int(address[1])
