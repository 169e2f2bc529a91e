"""The memory model against the ZeRO paper's figure and against what DeepSpeed really holds."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from atelier.training.launcher import LocalLauncher
from atelier.training.memory import STAGES, Stage, Workload, choose_stage, memory
from tests.training.held_memory import FROZEN, TRAINABLE
from tests.training.launching import PATHS


@pytest.mark.parametrize(("stage", "gigabytes"), [(0, 120.0), (1, 31.4), (2, 16.6), (3, 1.88)])
def test_figure_1_of_the_zero_paper(stage: Stage, gigabytes: float) -> None:
    """7.5 B parameters, 64 GPUs, mixed-precision Adam (K = 12)."""
    work = Workload(7_500_000_000, world=64, precision="fp16", bucket_elements=0)
    assert memory(work, stage).total / 1e9 == pytest.approx(gigabytes, rel=0.005)


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "precision"), [(0, "fp32"), (1, "fp32"), (2, "fp32"), (1, "bf16"), (2, "bf16")])
def test_what_deepspeed_holds(tmp_path: Path, stage: Stage, precision: str) -> None:
    """Two ranks on a CPU, one real step: masters, both moments and the moving average."""
    LocalLauncher(environment={"PYTHONPATH": PATHS}).run(
        "held_memory", [str(tmp_path), str(stage), precision], 2, tmp_path / "logs"
    )
    expected = memory(
        Workload(TRAINABLE, FROZEN, world=2, precision=precision, ema=True),  # type: ignore[arg-type]
        stage,
    )
    for rank in range(2):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        # DeepSpeed pads each shard a little.
        assert found["optimizer"] == pytest.approx(expected.optimizer, rel=0.02), found
        assert found["parameters"] == pytest.approx(expected.parameters)


def test_lowest_stage_that_fits_is_chosen_with_its_reason() -> None:
    # SDXL's GLIGEN adapter on 8 GPUs: 1.81 B trained, 2.57 B frozen.
    adapter = Workload(1_812_000_000, 2_567_000_000, world=8, ema=True, activation_bytes=2e9, micro_batch=8)
    choice = choose_stage(adapter, 141e9)
    assert choice.stage == 1
    assert "the lowest that bf16 can have" in choice.reason
    assert choose_stage(replace(adapter, precision="fp32"), 141e9).stage == 0
    # A full FLUX: 11.9 B on 8 GPUs (fp32 gradients, no EMA).
    flux = Workload(11_900_000_000, world=8, activation_bytes=10e9)
    assert choose_stage(flux, 141e9).stage == 1
    assert choose_stage(flux, 80e9).stage == 2
    assert f"ZeRO 1 would need {memory(flux, 1).total / 1e9:.1f} GB" in choose_stage(flux, 80e9).reason
    assert choose_stage(flux, 48e9).stage == 3


def test_what_would_fit_is_said() -> None:
    work = Workload(11_900_000_000, world=2, activation_bytes=4.5e9, micro_batch=8)
    choice = choose_stage(work, 141e9)
    assert choice.stage is None
    assert choice.memory == memory(work, 3)
    assert "no ZeRO stage fits" in choice.reason
    for way in ("4 GPUs (ZeRO 2)", "a micro-batch of 4 (ZeRO 3)", "activation checkpointing (ZeRO 2)"):
        assert way in choice.reason, choice.reason
    large = choose_stage(replace(work, activation_bytes=20e9), 141e9)
    assert "GPUs (ZeRO" not in large.reason, "160 GB of activations fit on no number of GPUs"
    hopeless = choose_stage(Workload(10**15), 16e9)
    assert "nothing short of a smaller model" in hopeless.reason


def test_one_gpu_gains_nothing_from_sharding() -> None:
    alone = Workload(1_000_000, precision="fp16")
    assert len({memory(alone, stage).total for stage in STAGES}) == 1
