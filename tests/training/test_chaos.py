"""A training that is killed again and again, many times in the middle of a save, ends as one that was not.

``make chaos`` kills a hundred times; ``ATELIER_CHAOS_KILLS`` says how often here.
"""

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from atelier.training.callbacks.metrics_log import read_lines
from atelier.training.checkpoint import step_of
from atelier.training.series import open_series
from tests.training.launching import HERE, PATHS, alive, launch, plan, wait_until
from tests.training.test_resume import logged, optimizer_bits

KILLS = int(os.environ.get("ATELIER_CHAOS_KILLS") or 20)
INTERVAL = 4
# A step takes long enough, and a save writes enough, that both are hit.
SETTINGS: dict[str, Any] = {
    "steps": 25 * KILLS,
    "checkpoint_every_steps": INTERVAL,
    "log_every": 1,
    "keep_checkpoints": 2,
}
OBJECTIVE = {"delay": 0.01, "ballast": 400_000}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


class Zygote:
    """The process that forks the ranks."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "zygote.py")],
            env=os.environ | {"PYTHONPATH": PATHS, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def answer(self) -> Any:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def start(self, settings: Path, log: Path) -> list[int]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"settings": str(settings), "world": 2, "log": str(log)}) + "\n")
        self.process.stdin.flush()
        pids: list[int] = self.answer()
        return pids


@pytest.fixture
def zygote() -> Iterator[Zygote]:
    made = Zygote()
    yield made
    made.process.kill()


@pytest.fixture(scope="module")
def left_alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("left-alone")
    launch(plan(folder, objective=OBJECTIVE | {"delay": 0.0}, **SETTINGS))
    return folder


def reached(folder: Path) -> int:
    """The last step that is in the log."""
    lines = read_lines(folder / "out" / "metrics.jsonl")
    return int(lines[-1]["step"]) if lines else 0


def begun(folder: Path) -> int:
    """The step of the save that is going on, or was when the ranks were killed; 0 without one."""
    found = [step_of(path.name[1:].removesuffix(".tmp")) for path in (folder / "out/.checkpoints").glob(".step-*.tmp")]
    return max((step for step in found if step is not None), default=0)


def shoot(pids: list[int], chance: random.Random, folder: Path, in_save: bool) -> None:
    """Kills the ranks at a random moment; ``in_save`` waits for a save to begin first, a few after the start."""
    if in_save:
        step = reached(folder) + chance.randint(0, 5) * INTERVAL
        wait_until(lambda: begun(folder) > step or not all(map(alive, pids)), 120)
        time.sleep(chance.uniform(0, 0.03))
    else:
        time.sleep(chance.uniform(0.2, 4.0))
    first, second = chance.sample(pids, 2)
    for pid in (first, second):
        # A rank may have come to its end by itself, or with the other one, before its turn.
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        time.sleep(chance.choice([0, 0, 0.01, 0.1]))


def test_killed_again_and_again(left_alone: Path, tmp_path: Path, zygote: Zygote) -> None:
    kills = KILLS * 7 // 10
    in_a_save = kill_again_and_again(kills, None, zygote, left_alone, tmp_path)
    assert in_a_save >= kills // 5, "too few kills hit a save: nothing was shown"


def test_killed_again_and_again_on_s3(s3_bucket: str, left_alone: Path, tmp_path: Path, zygote: Zygote) -> None:
    """A part of the kills on each of the two servers; the zygote inherits their variables."""
    kill_again_and_again(max(KILLS * 3 // 20, 1), s3_bucket, zygote, left_alone, tmp_path)


def kill_again_and_again(kills: int, place: str | None, zygote: Zygote, left_alone: Path, tmp_path: Path) -> int:
    """Kills, resumes, and compares the end with the training that was left alone; how many kills hit a save."""
    where = place or "disk"
    chance = random.Random(7)
    settings = plan(tmp_path, objective=OBJECTIVE, checkpoints_at=place, **SETTINGS)
    series = open_series(place or str(tmp_path / "out" / ".checkpoints"), tmp_path / "work")
    in_a_save = resumed = 0
    for kill in range(kills):
        log = tmp_path / f"attempt-{kill:03d}"
        pids = zygote.start(settings, log)
        newest = (series.steps() or [0])[0]
        shoot(pids, chance, tmp_path, in_save=kill % 3 != 2)
        codes = zygote.answer()
        texts = [Path(f"{log}-{rank}").read_text() for rank in range(2)]
        for code, said in zip(codes, texts, strict=True):
            # One that outlives the other for a moment may end by the broken connection.
            lost_peer = code == 1 and -9 in codes and re.search("closed by peer|reset by peer|Broken pipe", said)
            assert code in (-9, 0) or lost_peer, f"a rank failed by itself, see {log}-0 and -1"
        text = texts[0]
        resume = re.search(r"resuming from step (\d+)", text)
        if resume:
            resumed += 1
            assert int(resume.group(1)) == newest, "the last good checkpoint was there and was not used"
        assert "damaged" not in "".join(texts)
        after = (series.steps() or [0])[0]
        lost = reached(tmp_path) - after
        # Behind a save that was going on, the one before it counts.
        caught = begun(tmp_path) > after
        in_a_save += caught
        assert lost <= INTERVAL * (2 if caught or place else 1), f"{lost} steps lost in attempt {kill}"
        if codes == [0, 0]:
            break
    print(f"{where}: {kill + 1} kills, {in_a_save} in a save, {resumed} resumed, at step {reached(tmp_path)}")
    assert zygote.start(settings, tmp_path / "last")
    assert zygote.answer() == [0, 0]
    assert logged(tmp_path) == logged(left_alone)
    assert optimizer_bits(tmp_path) == optimizer_bits(left_alone)
    return in_a_save
