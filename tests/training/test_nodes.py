"""Several "nodes": torchrun agents of their own on loopback, one training."""

import json
import signal
import socket
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from pydantic import ValidationError

from atelier.errors import ConfigError, TrainingError
from atelier.training.callbacks.metrics_log import read_lines
from atelier.training.config import TrainConfig
from atelier.training.group import reserved_port
from atelier.training.launcher import LocalLauncher
from tests.training.launching import PATHS, alive, launch, plan, rank_pids, start, wait_until


def left_of(folder: Path) -> list[str]:
    """Command lines of processes that mention a test's folder: agents, ranks and launchers of its group."""
    found = []
    for process in psutil.process_iter():
        try:
            line = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if str(folder) in line and "atelier.training" in line:
            found.append(line)
    return found


def test_two_nodes_train_as_one_process(tmp_path: Path, one_rank: Any) -> None:
    short = {"steps": 10, "checkpoint_every_steps": None}
    launch(plan(tmp_path / "two", objective={"dropout": 0.0}, **short), nodes=2)
    one_rank(tmp_path / "one", **short)
    two = [line["loss"] for line in read_lines(tmp_path / "two" / "out" / "metrics.jsonl")]
    one = [line["loss"] for line in read_lines(tmp_path / "one" / "metrics.jsonl")]
    assert len(two) == 2
    assert two == pytest.approx(one, rel=1e-5)
    assert sorted(path.name for path in (tmp_path / "two" / "logs").glob("torchrun-*")) == [
        "torchrun-00.log", "torchrun-01.log"]  # fmt: skip
    assert not left_of(tmp_path)


def test_rank_killed_on_one_node_ends_all_nodes(tmp_path: Path) -> None:
    settings = plan(tmp_path, objective={"fault": {"rank": 1, "progress": 0.3, "kind": "kill"}})
    with pytest.raises(TrainingError) as caught:
        launch(settings, nodes=2)
    ended = time.time()
    assert "rank 1 (node 1) was killed by SIGKILL" in caught.value.what
    assert "about to go wrong" in caught.value.what
    survivor = json.loads((tmp_path / "logs" / "rank-00.json").read_text())
    assert ended - survivor.get("ended", ended) < 10
    assert not any(alive(pid) for pid in rank_pids(settings))
    assert not left_of(tmp_path)


def test_sigterm_saves_on_all_nodes(tmp_path: Path) -> None:
    settings = plan(tmp_path, objective={"delay": 0.05}, log_every=1)
    launcher = start(settings, nodes=2)
    wait_until(lambda: (tmp_path / "out" / "metrics.jsonl").exists())
    launcher.send_signal(signal.SIGTERM)
    _, shown = launcher.communicate(timeout=90)
    assert "Preempted" in shown, shown
    outcomes = [json.loads(path.read_text())["outcome"] for path in sorted((tmp_path / "logs").glob("rank-*.json"))]
    assert outcomes == ["preempted", "preempted"]
    assert list((tmp_path / "out" / ".checkpoints").glob("step-*/manifest.json"))
    assert not left_of(tmp_path)


def test_second_interrupt_aborts_all_nodes(tmp_path: Path) -> None:
    settings = plan(tmp_path, objective={"delay": 3.0}, log_every=1)
    launcher = start(settings, nodes=2)
    wait_until(lambda: len(rank_pids(settings)) == 2)
    wait_until(lambda: (tmp_path / "out").exists())
    began = time.monotonic()
    launcher.send_signal(signal.SIGINT)
    time.sleep(0.3)
    launcher.send_signal(signal.SIGINT)
    _, shown = launcher.communicate(timeout=30)
    assert time.monotonic() - began < 30
    assert "aborted by a second interrupt" in shown
    wait_until(lambda: not left_of(tmp_path), 5)


def test_nothing_outlives_a_killed_launcher(tmp_path: Path) -> None:
    settings = plan(tmp_path, objective={"delay": 3.0})
    launcher = start(settings, nodes=2)
    wait_until(lambda: len(rank_pids(settings)) == 2)
    launcher.kill()
    launcher.communicate()
    wait_until(lambda: not left_of(tmp_path), 10)


def test_a_ranks_own_children_do_not_outlive_it(tmp_path: Path) -> None:
    launcher = LocalLauncher(environment={"PYTHONPATH": PATHS})
    with pytest.raises(TrainingError, match="nobody expected"):
        launcher.run("worker_that_fails", ["child", str(tmp_path / "child.pid")], 1, tmp_path / "logs")
    child = int((tmp_path / "child.pid").read_text())
    wait_until(lambda: not alive(child), 10)  # its SIGKILL was sent; the kernel may take a moment


def test_processes_must_be_shared_equally(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="3 processes"):
        LocalLauncher().run("toy", [], 3, tmp_path / "logs", nodes=2)
    with pytest.raises(ValidationError, match="nodes 2"):
        TrainConfig(steps=1, batch_size=3, processes=3, nodes=2)


def test_reserved_port_is_given_to_nobody_else_but_can_be_listened_on() -> None:
    ports = [reserved_port() for _ in range(50)]
    assert len(set(ports)) == 50
    chosen = set()
    for _ in range(200):
        with socket.socket() as other:
            other.bind(("127.0.0.1", 0))
            chosen.add(other.getsockname()[1])
    assert not chosen & set(ports)
    with socket.socket() as own:
        own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        own.bind(("127.0.0.1", ports[0]))
        own.listen()
