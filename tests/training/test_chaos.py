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
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from atelier.training.callbacks.metrics_log import read_lines
from atelier.training.checkpoint import step_of
from atelier.training.series import Series, open_series
from tests.training.launching import HERE, PATHS, alive, launch, plan, wait_until
from tests.training.test_resume import logged, optimizer_bits

KILLS = int(os.environ.get("ATELIER_CHAOS_KILLS") or 20)
INTERVAL = 8
STEPS_A_KILL = 36
# A step takes long enough, and a save writes enough, that both are hit.
SETTINGS: dict[str, Any] = {"checkpoint_every_steps": INTERVAL, "log_every": 1, "keep_checkpoints": 2}
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
def left_alone(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """A training of so many steps that nobody killed, and that saved nothing before its end."""
    made: dict[int, Path] = {}

    def folder(steps: int) -> Path:
        if steps not in made:
            made[steps] = tmp_path_factory.mktemp("left-alone")
            quick = SETTINGS | {"steps": steps, "checkpoint_every_steps": None}
            launch(plan(made[steps], objective=OBJECTIVE | {"delay": 0.0}, **quick))
        return made[steps]

    return folder


@dataclass
class Tally:
    """What happened in all trainings of a test."""

    kills: int = 0
    in_a_save: int = 0
    resumed: int = 0
    most_lost: int = 0


def reached(folder: Path) -> int:
    """The last step that is in the log."""
    lines = read_lines(folder / "out" / "metrics.jsonl")
    return int(lines[-1]["step"]) if lines else 0


def begun(folder: Path, since: float) -> int:
    """The step of the save that was begun since then and is not published; 0 without one."""
    steps = [0]
    for path in (folder / "out/.checkpoints").glob(".step-*.tmp"):
        with contextlib.suppress(FileNotFoundError):  # published, or removed, just now
            step = step_of(path.name[1:].removesuffix(".tmp"))
            if step is not None and path.stat().st_mtime >= since:
                steps.append(step)
    return max(steps)


def shoot(pids: list[int], chance: random.Random, folder: Path, in_save: bool) -> None:
    """Kills the ranks at a random moment; ``in_save`` waits for a save to begin first, a few after the start."""
    if in_save:
        step, began = reached(folder) + chance.randint(0, 2) * INTERVAL, time.time()
        wait_until(lambda: begun(folder, began) > step or not all(map(alive, pids)), 600)  # busy cores
        time.sleep(chance.uniform(0, 0.03))
    else:
        time.sleep(chance.uniform(0.2, 4.0))
    first, second = chance.sample(pids, 2)
    for pid in (first, second):
        # A rank may have come to its end by itself, or with the other one, before its turn.
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        time.sleep(chance.choice([0, 0, 0.01, 0.1]))


def test_killed_again_and_again(left_alone: Any, tmp_path: Path, zygote: Zygote) -> None:
    kills = KILLS * 7 // 10
    tally = kill_again_and_again(kills, None, zygote, left_alone, tmp_path)
    assert tally.in_a_save >= kills // 5, "too few kills hit a save: nothing was shown"


def test_killed_again_and_again_on_s3(s3_bucket: str, left_alone: Any, tmp_path: Path, zygote: Zygote) -> None:
    """A part of the kills on each of the two servers; the zygote inherits their variables."""
    kill_again_and_again(max(KILLS * 3 // 20, 1), s3_bucket, zygote, left_alone, tmp_path)


def kill_again_and_again(
    kills: int, place: str | None, zygote: Zygote, left_alone: Callable[[int], Path], tmp_path: Path
) -> Tally:
    """Kills and resumes, and compares the end with the training that was left alone.

    One that comes to its end too early is followed by another.
    """
    tally, chance, steps, number = Tally(), random.Random(7), STEPS_A_KILL * kills, 0
    while tally.kills < kills:
        folder, prefix = tmp_path / str(number), f"{place}/{number}" if place else None
        settings = plan(folder, objective=OBJECTIVE, checkpoints_at=prefix, **SETTINGS | {"steps": steps})
        series = open_series(prefix or str(folder / "out" / ".checkpoints"), folder / "work")
        codes = [-9, -9]
        while tally.kills < kills and codes != [0, 0]:
            codes = kill_once(series, chance, zygote, settings, tally)
        assert zygote.start(settings, folder / "last")
        assert zygote.answer() == [0, 0]
        assert logged(folder) == logged(left_alone(steps))
        assert optimizer_bits(folder) == optimizer_bits(left_alone(steps))
        number += 1
    print(f"{place or 'disk'}: {tally}, an interval is {INTERVAL} steps")
    return tally


def kill_once(series: Series, chance: random.Random, zygote: Zygote, settings: Path, tally: Tally) -> list[int]:
    """Starts the ranks, kills them, and looks at what is left; returns how they ended."""
    folder, log, began = settings.parent, settings.parent / f"attempt-{tally.kills:03d}", time.time()
    pids = zygote.start(settings, log)
    newest = (series.steps() or [0])[0]
    shoot(pids, chance, folder, in_save=tally.kills % 3 != 2)
    codes: list[int] = zygote.answer()
    texts = [Path(f"{log}-{rank}").read_text() for rank in range(2)]
    for code, said in zip(codes, texts, strict=True):
        # One that outlives the other for a moment may end by the broken connection.
        lost_peer = code == 1 and -9 in codes and re.search("closed by peer|reset by peer|Broken pipe", said)
        assert code in (-9, 0) or lost_peer, f"a rank failed by itself, see {log}-0 and -1"
    tally.kills += -9 in codes
    resume = re.search(r"resuming from step (\d+)", texts[0])
    if resume:
        tally.resumed += 1
        assert int(resume.group(1)) == newest, "the last good checkpoint was there and was not used"
    assert "damaged" not in "".join(texts)
    after = (series.steps() or [0])[0]
    tally.in_a_save += begun(folder, began) > after
    if not (folder / "out" / "checkpoint").exists():  # else it was complete
        # Of the steps that were done; in the middle of a save too.
        lost = reached(folder) - after
        assert lost <= INTERVAL, f"{lost} steps lost in attempt {log}"
        tally.most_lost = max(tally.most_lost, lost)
    return codes
