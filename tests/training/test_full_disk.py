"""A checkpoint that the disk does not take: named, and no half of it is left under a good name."""

import os
import subprocess
import sys
from pathlib import Path

from tests.training.launching import PATHS, plan

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


def test_full_disk_is_named_and_leaves_no_half_checkpoint(tmp_path: Path) -> None:
    settings = plan(tmp_path, processes=1, checkpoint_every_steps=2, steps=4)
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(settings)],
        env=os.environ | {"PYTHONPATH": PATHS, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "StorageError:" in done.stdout, done.stdout + done.stderr[-3000:]
    assert str(tmp_path / "out" / ".checkpoints") in done.stdout
    assert "free" in done.stdout
    assert not list((tmp_path / "out" / ".checkpoints").glob("step-*"))
    assert not (tmp_path / "out" / "checkpoint").exists()
