"""A training that goes on with other ranks and another ZeRO stage has the losses of one that was left alone."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from atelier.convert.training_checkpoint import trainable_state
from atelier.errors import Preempted
from atelier.training.callbacks.metrics_log import read_lines
from tests.training.launching import launch, plan

# No dropout: its masks are addressed by rank, every other draw by sample.
SETTINGS: dict[str, Any] = {"micro_batch": None, "log_every": 3, "steps": 24, "checkpoint_every_steps": None}
STOP = 10


def run(folder: Path, **changes: Any) -> None:
    launch(plan(folder, objective={"dropout": 0.0}, **SETTINGS | changes), changes.get("processes", 2))


def losses(folder: Path) -> list[tuple[int, float, float]]:
    lines = read_lines(folder / "out" / "metrics.jsonl")
    return [(line["step"], line["loss"], line["grad_norm"]) for line in lines]


@pytest.fixture(scope="module")
def left_alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("left-alone")
    run(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_other_ranks(tmp_path: Path, left_alone: Path, stage: int) -> None:
    """Saved on 2 ranks; on 1, and on 4, of this stage and of another."""
    with pytest.raises(Preempted):
        run(tmp_path / "saved", zero_stage=stage, stop_at=STOP)
    for processes, resumed_stage in ((1, stage), (4, stage), (4, (stage + 1) % 4)):
        folder = tmp_path / f"{processes}-{resumed_stage}"
        shutil.copytree(tmp_path / "saved" / "out", folder / "out")
        run(folder, zero_stage=resumed_stage, processes=processes)
        log = (folder / "logs" / "rank-00.log").read_text()
        assert f"resuming from step {STOP} of 24 (step-000000{STOP}, saved by 2 processes)" in log
        ours, theirs = losses(folder), losses(left_alone)
        assert [line[0] for line in ours] == [line[0] for line in theirs]
        for mine, other in zip(ours, theirs, strict=True):
            assert mine[1:] == pytest.approx(other[1:], abs=1e-5)
        for average in (False, True):
            expected = trainable_state(left_alone / "out" / "checkpoint", average=average)
            for name, value in trainable_state(folder / "out" / "checkpoint", average=average).items():
                torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-4)
