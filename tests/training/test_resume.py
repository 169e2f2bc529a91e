"""A training that is ended by every means, again and again, ends with the bits of one that never was."""

import os
import signal
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from atelier.convert.training_checkpoint import trainable_state
from atelier.training.callbacks.metrics_log import read_lines
from atelier.training.checkpoint import folder_name
from atelier.training.parts import part_name
from atelier.training.series import LocalSeries
from tests.training.launching import alive, launch, plan, rank_pids, start, wait_until

TIMES = ("samples_per_s", "data_wait", "saving_s", "seconds", "tflops_per_s", "mfu")


def logged(folder: Path) -> list[dict[str, Any]]:
    """The loss log without what a clock wrote."""
    return [
        {name: value for name, value in line.items() if name not in TIMES}
        for line in read_lines(folder / "out" / "metrics.jsonl")
    ]


def optimizer_bits(folder: Path) -> dict[str, bytes]:
    """Every tensor of every rank's file: fp32 masters, both moments, EMA."""
    found = {}
    for rank in range(2):
        state = load_file(folder / "out" / "checkpoint" / part_name(rank))
        assert {name.split("/")[0] for name in state} == {"weight", "exp_avg", "exp_avg_sq", "ema"}
        found |= {f"{rank} {name}": value.numpy().tobytes() for name, value in state.items()}
    return found


def test_interrupted_training_ends_with_the_same_bits(undisturbed: Path, tmp_path: Path) -> None:
    # Slow enough to be hit in mid-training; previews on, which must not change a number.
    settings = plan(tmp_path, objective={"delay": 0.02}, preview_every=8)
    scratch = tmp_path / "out" / ".checkpoints"

    # 1. SIGTERM: saves at the next step and says that it was preempted.
    first = start(settings)
    wait_until(lambda: (tmp_path / "out" / "metrics.jsonl").exists())
    first.send_signal(signal.SIGTERM)
    _, shown = first.communicate(timeout=60)
    assert "Preempted" in shown, shown
    preempted_at, *_ = LocalSeries(scratch).steps()
    assert 5 <= preempted_at < 24

    # 2. kill -9 of the launcher: neither torchrun nor a rank outlives it.
    second = start(settings)
    wait_until(lambda: LocalSeries(scratch).steps()[0] > preempted_at)
    pids = rank_pids(settings)
    assert len(pids) == 2
    assert all(alive(pid) for pid in pids)
    os.kill(second.pid, signal.SIGKILL)
    second.wait()
    wait_until(lambda: not any(alive(pid) for pid in pids), 10)

    # 3. The newest checkpoint is damaged: the one before it is used.
    newest, before = LocalSeries(scratch).steps()[:2]
    shard = scratch / folder_name(newest) / part_name(0)
    bits = bytearray(shard.read_bytes())
    bits[-len(bits) // 4] ^= 1
    shard.write_bytes(bits)

    launch(settings)
    assert f"resuming from step {before}" in (tmp_path / "logs" / "rank-00.log").read_text()
    assert logged(tmp_path) == logged(undisturbed)
    assert optimizer_bits(tmp_path) == optimizer_bits(undisturbed)
    weights = trainable_state(tmp_path / "out" / "checkpoint")
    average = trainable_state(tmp_path / "out" / "checkpoint", average=True)
    assert not any(torch.equal(weights[name], average[name]) for name in weights)
    assert sorted(path.name for path in (tmp_path / "out" / "previews").iterdir()) == [
        "step-000008.png", "step-000016.png", "step-000024.png"]  # fmt: skip
    assert not scratch.exists()


def test_frozen_parameters_are_not_in_the_checkpoint(undisturbed: Path) -> None:
    assert {name.split(".")[0] for name in trainable_state(undisturbed / "out" / "checkpoint")} == {"adapter", "gate"}
