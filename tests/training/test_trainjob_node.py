"""A node's process as its container would start it: torchrun under Trainer's variables, exit code and message."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from atelier.training.group import reserved_port
from atelier.training.trainjob.report import Report, parse
from tests.training.launching import PATHS, plan, wait_until


def node(
    folder: Path, *command: str, processes: int = 2, of: int = 1, rank: int = 0, port: int = 0
) -> "subprocess.Popen[str]":
    """Starts one; its message goes to ``folder``/message-<rank>."""
    environment = os.environ | {
        "PYTHONPATH": PATHS, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1",
        "PET_NNODES": str(of), "PET_NPROC_PER_NODE": str(processes), "PET_NODE_RANK": str(rank),
        "PET_MASTER_ADDR": "127.0.0.1", "PET_MASTER_PORT": str(port or reserved_port()),
        "ATELIER_TERMINATION_LOG": str(folder / f"message-{rank}"),
    }  # fmt: skip
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "atelier.training.trainjob.node",
            f"--scratch={folder / f'node-{rank}'}",
            "--grace=30",
            *command,
        ],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def message(folder: Path, rank: int = 0) -> Report:
    report = parse((folder / f"message-{rank}").read_text())
    assert report is not None
    return report


def test_complete_with_rank_0_shown(tmp_path: Path) -> None:
    settings = plan(tmp_path, steps=4, log_every=2, checkpoint_every_steps=None)
    process = node(tmp_path, "toy", str(settings))
    shown, _ = process.communicate(timeout=120)
    assert process.returncode == 0, shown
    assert "training: 64/64 samples" in shown
    assert message(tmp_path) == Report("complete")
    assert (tmp_path / "out" / "checkpoint" / "manifest.json").exists()


def test_an_error_of_ours_gives_its_exit_code_and_words(tmp_path: Path) -> None:
    process = node(tmp_path, "worker_that_fails", "ours", processes=1)
    shown, _ = process.communicate(timeout=120)
    assert process.returncode == 3, shown
    report = message(tmp_path)
    assert (report.cause, report.error, report.what) == ("bad_data", "DataError", "shard 7 is truncated")
    assert "the last thing it said" in report.tail


def test_a_killed_rank_is_told_apart_from_its_survivors(tmp_path: Path) -> None:
    """Rank 1 is killed; rank 0, which loses its peer or hangs, is ended soon after and is not blamed."""
    settings = plan(tmp_path, objective={"fault": {"rank": 1, "progress": 0.3, "kind": "kill"}})
    began = time.monotonic()
    process = node(tmp_path, "toy", str(settings))
    shown, _ = process.communicate(timeout=120)
    assert process.returncode == 1, shown
    report = message(tmp_path)
    assert report.rank == 1
    assert "SIGKILL" in report.what
    assert report.cause in ("unknown", "out_of_memory")  # the latter where this machine's cgroup counted a kill
    assert time.monotonic() - began < 90, "the grace for saving is not waited for"


def test_sigterm_saves_and_says_so(tmp_path: Path) -> None:
    settings = plan(tmp_path, objective={"delay": 0.05}, log_every=1)
    process = node(tmp_path, "toy", str(settings))
    wait_until(lambda: (tmp_path / "out" / "metrics.jsonl").exists())
    process.send_signal(signal.SIGTERM)
    shown, _ = process.communicate(timeout=120)
    assert process.returncode == 75, shown
    assert message(tmp_path).outcome == "preempted"
    assert list((tmp_path / "out" / ".checkpoints").glob("step-*/manifest.json"))


def test_a_node_that_was_not_asked_ends_with_the_one_that_was(tmp_path: Path) -> None:
    settings = plan(tmp_path, objective={"delay": 0.05}, log_every=1)
    port = reserved_port()
    nodes = [node(tmp_path, "toy", str(settings), processes=1, of=2, rank=rank, port=port) for rank in range(2)]
    wait_until(lambda: (tmp_path / "out" / "metrics.jsonl").exists())
    nodes[1].send_signal(signal.SIGTERM)
    began = time.monotonic()
    shown = [process.communicate(timeout=120)[0] for process in nodes]
    assert [process.returncode for process in nodes] == [75, 75], shown
    assert time.monotonic() - began < 60, "torchrun's five minutes are not waited for"
    assert [message(tmp_path, rank).outcome for rank in range(2)] == ["preempted", "preempted"]


@pytest.mark.slow
def test_two_nodes_meet_by_trainers_variables(tmp_path: Path) -> None:
    settings = plan(tmp_path, steps=4, checkpoint_every_steps=None)
    port = reserved_port()
    nodes = [node(tmp_path, "toy", str(settings), processes=1, of=2, rank=rank, port=port) for rank in range(2)]
    shown = [process.communicate(timeout=120)[0] for process in nodes]
    assert [process.returncode for process in nodes] == [0, 0], shown
    assert "training: 64/64" in shown[0]
    assert "training:" not in shown[1]
