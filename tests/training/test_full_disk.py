"""A checkpoint that the disk does not take: named, no half of it is left under a good name, the one before is used."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from atelier.training.checkpoint import verified
from atelier.training.series import LocalSeries
from tests.training.launching import PATHS, plan
from tests.training.toy import StopAt, ToyObjective

SHORT: dict[str, Any] = {"processes": 1, "checkpoint_every_steps": 2, "steps": 8}

CODE = """
import json, resource, signal, sys
from atelier.errors import StorageError
from toy import train_toy
settings = json.loads(open(sys.argv[1]).read())
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
# The kernel refuses to let any file grow beyond this, as a full disk would: the optimizer's state is larger.
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
try:
    train_toy(settings)
except StorageError as error:
    print("StorageError:", error)
"""


def train_on_a_full_disk(folder: Path) -> str:
    """What is said when no further checkpoint finds room."""
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(plan(folder, **SHORT))],
        env=os.environ | {"PYTHONPATH": PATHS, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "StorageError:" in done.stdout, done.stdout + done.stderr[-3000:]
    assert str(folder / "out" / ".checkpoints") in done.stdout
    assert "free" in done.stdout
    return done.stdout


def test_full_disk_is_named_and_leaves_no_half_checkpoint(tmp_path: Path) -> None:
    train_on_a_full_disk(tmp_path)
    assert not list((tmp_path / "out" / ".checkpoints").glob("step-*"))
    assert not (tmp_path / "out" / "checkpoint").exists()


def test_with_room_again_it_goes_on_from_the_last_good_one(
    one_rank: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    series = LocalSeries(tmp_path / "out" / ".checkpoints")
    one_rank(tmp_path / "out", ToyObjective(dropout=0.2), callbacks=[StopAt(3)], **SHORT)
    train_on_a_full_disk(tmp_path)
    assert series.steps()[0] == 3
    capfd.readouterr()
    assert one_rank(tmp_path / "out", ToyObjective(dropout=0.2), **SHORT).outcome == "complete"
    assert "resuming from step 3 of 8" in capfd.readouterr().out
    one_rank(tmp_path / "whole", ToyObjective(dropout=0.2), **SHORT)
    ends = [verified(folder / "checkpoint") for folder in (tmp_path / "out", tmp_path / "whole")]
    assert ends[0] is not None
    assert ends[1] is not None
    sums = [{entry["path"]: entry["sha256"] for entry in end.files} for end in ends]
    assert sums[0]["rank-00000.safetensors"] == sums[1]["rank-00000.safetensors"]
