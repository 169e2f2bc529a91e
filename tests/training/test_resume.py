"""A training that is ended by every means, again and again, ends with the bits of one that never was."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from atelier.convert.zero_checkpoint import trainable_state
from atelier.training import checkpoint as checkpoints
from atelier.training.callbacks.metrics_log import read_lines
from tests.training.launching import alive, launch, plan, rank_pids, start, wait_until

TIMES = ("samples_per_s", "data_wait", "seconds", "tflops_per_s", "mfu")


def logged(folder: Path) -> list[dict[str, Any]]:
    """The loss log without what a clock wrote."""
    return [
        {name: value for name, value in line.items() if name not in TIMES}
        for line in read_lines(folder / "out" / "metrics.jsonl")
    ]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a training that nobody disturbed (and that drew no previews)."""
    folder = tmp_path_factory.mktemp("undisturbed")
    launch(plan(folder))
    return folder


def optimizer_bits(folder: Path) -> list[torch.Tensor]:
    """Every tensor of every rank's optimizer state: fp32 masters, both moments, EMA."""
    found = []
    for rank in range(2):
        state = torch.load(
            folder / f"out/checkpoint/state/zero_pp_rank_{rank}_mp_rank_00_optim_states.pt", weights_only=False
        )["optimizer_state_dict"]
        found += state["single_partition_of_fp32_groups"]
        for moments in state["base_optimizer_state"]["state"].values():
            assert {"exp_avg", "exp_avg_sq", "ema"} <= moments.keys()
            found += [moments[name] for name in sorted(moments)]
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
    preempted_at = checkpoints.newest_valid(scratch)
    assert preempted_at is not None
    assert 5 <= preempted_at.step < 24

    # 2. kill -9 of the launcher: neither torchrun nor a rank outlives it.
    second = start(settings)
    wait_until(lambda: list(scratch.glob("step-*[28]")))  # the next regular one: 12 or 18
    pids = rank_pids(settings)
    assert len(pids) == 2
    assert all(alive(pid) for pid in pids)
    os.kill(second.pid, signal.SIGKILL)
    second.wait()
    wait_until(lambda: not any(alive(pid) for pid in pids), 10)

    # 3. The newest checkpoint is damaged: the one before it is used.
    newest, before = [path for path, _ in checkpoints._listed(scratch)][:2]
    shards = newest / "state" / "zero_pp_rank_0_mp_rank_00_optim_states.pt"
    bits = bytearray(shards.read_bytes())
    bits[len(bits) // 2] ^= 1
    shards.write_bytes(bits)
    found = checkpoints.newest_valid(scratch)
    assert found is not None
    assert found.path == before

    launch(settings)
    assert f"resuming from step {found.step}" in (tmp_path / "logs" / "rank-00.log").read_text()
    assert logged(tmp_path) == logged(undisturbed)
    for ours, theirs in zip(optimizer_bits(tmp_path), optimizer_bits(undisturbed), strict=True):
        assert torch.equal(ours, theirs)
    weights = trainable_state(tmp_path / "out" / "checkpoint")
    average = trainable_state(tmp_path / "out" / "checkpoint", average=True)
    assert not any(torch.equal(weights[name], average[name]) for name in weights)
    assert sorted(path.name for path in (tmp_path / "out" / "previews").iterdir()) == [
        "step-000008.png", "step-000016.png", "step-000024.png"]  # fmt: skip
    assert not scratch.exists()


def test_frozen_parameters_are_not_in_the_checkpoint(undisturbed: Path) -> None:
    model = torch.load(undisturbed / "out/checkpoint/state/mp_rank_00_model_states.pt", weights_only=False)["module"]
    assert {name.split(".")[1] for name in model} == {"adapter", "gate"}
