"""Starts toy trainings under the real launcher, in this process or in one that can be killed."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from atelier.training.launcher import LocalLauncher

HERE = Path(__file__).parent
SOURCE = HERE.parents[1] / "src"
PATHS = os.pathsep.join([str(SOURCE), str(HERE)])

CONFIG: dict[str, Any] = {
    "steps": 24, "batch_size": 16, "micro_batch": 4, "processes": 2, "zero_stage": 2, "lr": 1e-2,
    "ema_decay": 0.9, "log_every": 5, "checkpoint_every_steps": 6, "keep_checkpoints": 3,
    "schedule": "flat_cosine", "warmup_steps": 4, "weight_decay": 0.01,
}  # fmt: skip


def plan(
    folder: Path,
    objective: dict[str, Any] | None = None,
    stop_at: int | None = None,
    checkpoints_at: str | None = None,
    **changes: Any,
) -> Path:
    """Writes a toy training's settings; its output goes to ``folder``/out, its logs to ``folder``/logs."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "plan.json"
    path.write_text(json.dumps({
        "folder": str(folder / "out"), "config": CONFIG | changes, "objective": {"dropout": 0.2} | (objective or {}),
        "stop_at": stop_at, "checkpoints_at": checkpoints_at,
    }))  # fmt: skip
    return path


def launch(settings: Path, processes: int = 2, nodes: int = 1) -> None:
    """Runs it to its end, here."""
    launcher = LocalLauncher(environment={"PYTHONPATH": PATHS})
    launcher.run("toy", [str(settings)], processes, settings.parent / "logs", nodes)


def start(settings: Path, processes: int = 2, nodes: int = 1) -> "subprocess.Popen[str]":
    """Runs it from a launcher process of its own, which can be signalled."""
    code = (
        "import sys, pathlib; from launching import launch; launch(pathlib.Path(sys.argv[1]), *map(int, sys.argv[2:]))"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, str(settings), str(processes), str(nodes)],
        env=os.environ | {"PYTHONPATH": PATHS},
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_until(condition: Any, seconds: float = 90.0) -> None:
    """Waits until ``condition()`` holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def rank_pids(settings: Path) -> list[int]:
    """The process ids that the ranks left in their records."""
    return [json.loads(path.read_text())["pid"] for path in sorted((settings.parent / "logs").glob("rank-*.json"))]


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except FileNotFoundError:
        return False
