"""The engine's arithmetic against what it must equal, in one process."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from atelier.errors import ConfigError, TrainingError
from atelier.training import checkpoint as checkpoints
from atelier.training.callbacks import Callback
from atelier.training.callbacks.metrics_log import read_lines
from atelier.training.config import TrainConfig
from atelier.training.parts import part_name
from atelier.training.protocol import Draws
from atelier.training.run import TrainingRun
from atelier.training.schedule import lr_factor
from tests.training.launching import CONFIG
from tests.training.toy import FEATURES, StopAt, ToyDataset, ToyObjective

SHORT: dict[str, Any] = {"steps": 6, "log_every": 1, "warmup_steps": 0, "checkpoint_every_steps": None}


class Watch(Callback):
    """Keeps the trained weights after every step."""

    def __init__(self) -> None:
        self.weights: list[dict[str, torch.Tensor]] = []

    def on_start(self, run: TrainingRun) -> None:
        self.on_step(run)

    def on_step(self, run: TrainingRun) -> None:
        self.weights.append({k: v.clone() for k, v in run.objective.trainable_state(run.model).items()})


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in read_lines(folder / "metrics.jsonl")]


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_accumulation_equals_one_big_batch(one_rank: Any, tmp_path: Path, zero_stage: int) -> None:
    big, small = Watch(), Watch()
    one_rank(tmp_path / "big", callbacks=[big], micro_batch=16, zero_stage=zero_stage, **SHORT)
    one_rank(tmp_path / "small", callbacks=[small], micro_batch=2, zero_stage=zero_stage, **SHORT)
    assert len(big.weights) == len(small.weights) == 7
    for whole, added in zip(big.weights, small.weights, strict=True):
        for name in whole:
            torch.testing.assert_close(added[name], whole[name], rtol=1e-4, atol=1e-6)
    assert losses(tmp_path / "small") == pytest.approx(losses(tmp_path / "big"), rel=1e-5)


def test_engine_equals_a_plain_loop(one_rank: Any, tmp_path: Path) -> None:
    """Data order, draws, AdamW with two groups, clipping, schedule and EMA against torch alone."""
    from atelier.data.loader import Loader

    changes = SHORT | {"clip_norm": 0.05, "warmup_steps": 3}
    watch = Watch()
    one_rank(tmp_path, callbacks=[watch], **changes)
    config = TrainConfig(**(CONFIG | {"processes": 1} | changes))
    objective, dataset = ToyObjective(), ToyDataset()
    torch.manual_seed(config.seed)
    model = objective.build()
    groups = [{"lr": config.lr, "weight_decay": config.weight_decay} | g for g in objective.parameter_groups(model)]
    peaks = [group["lr"] for group in groups]
    optimizer = torch.optim.AdamW(groups, betas=config.betas, eps=config.eps)
    trained = [p for p in model.parameters() if p.requires_grad]
    loader = Loader(dataset, 16, seed=config.seed)
    norms = []
    for step in range(config.steps):
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * lr_factor(config, step)
        samples = next(loader)
        draws = Draws(config.seed, [(s["epoch"], s["index"]) for s in samples])
        objective.loss(model, objective.collate(samples), draws, step / config.steps)["loss"].backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(trained, 0.05)))
        optimizer.step()
        optimizer.zero_grad()
        for name, value in objective.trainable_state(model).items():
            torch.testing.assert_close(watch.weights[step + 1][name], value, rtol=1e-4, atol=1e-6)
    assert all(norm > 0.05 for norm in norms), "the toy's gradients are too small to see clipping"
    assert [line["grad_norm"] for line in read_lines(tmp_path / "metrics.jsonl")] == pytest.approx(norms, rel=1e-4)


def test_clipping_clips(one_rank: Any, tmp_path: Path) -> None:
    """Adam forgets the gradient's scale, so the sum of squared gradients in its second moment is what tells."""
    sizes = {}
    for name, clip in (("tight", 0.01), ("off", None)):
        one_rank(tmp_path / name, ToyObjective(scale=100.0), clip_norm=clip, **SHORT | {"steps": 1})
        state = load_file(tmp_path / name / "checkpoint" / part_name(0))
        # After one step exp_avg_sq is (1 - beta2) · g².
        squares = (float(value.sum()) for key, value in state.items() if key.startswith("exp_avg_sq/"))
        sizes[name] = sum(squares) / (1 - 0.999)
    assert sizes["tight"] == pytest.approx(0.01**2, rel=1e-3)
    assert sizes["off"] > 1.0


def test_warm_up_is_real(one_rank: Any, tmp_path: Path) -> None:
    one_rank(tmp_path, **SHORT | {"warmup_steps": 4, "schedule": "constant"})
    rates = [line["lr"] for line in read_lines(tmp_path / "metrics.jsonl")]
    assert rates == pytest.approx([0.0025, 0.005, 0.0075, 0.01, 0.01, 0.01])


def test_schedules() -> None:
    flat = TrainConfig(steps=100, batch_size=1, schedule="flat_cosine", flat_share=0.5, final_lr_share=0.1)
    assert lr_factor(flat, 0) == lr_factor(flat, 49) == 1.0
    assert lr_factor(flat, 75) == pytest.approx(0.55)
    assert lr_factor(flat, 100) == pytest.approx(0.1)
    cosine = TrainConfig(steps=110, batch_size=1, schedule="cosine", warmup_steps=10)
    assert lr_factor(cosine, 0) == pytest.approx(0.1)
    assert lr_factor(cosine, 60) == pytest.approx(0.5)


def test_ema_moves_and_lags(one_rank: Any, tmp_path: Path) -> None:
    from atelier.convert.training_checkpoint import trainable_state

    watch = Watch()
    one_rank(tmp_path, callbacks=[watch], **SHORT)
    average = trainable_state(tmp_path / "checkpoint", average=True)
    expected = {name: value.clone() for name, value in watch.weights[0].items()}
    for step, weights in enumerate(watch.weights[1:], start=1):
        decay = min(0.9, (1 + step) / (10 + step))
        for name, value in weights.items():
            expected[name].lerp_(value, 1 - decay)
    for name, value in expected.items():
        torch.testing.assert_close(average[name], value, rtol=1e-5, atol=1e-7)
        assert not torch.equal(value, watch.weights[0][name])
        assert not torch.equal(value, watch.weights[-1][name])


def test_groups_keep_their_learning_rates(one_rank: Any, tmp_path: Path) -> None:
    """Adam's first update is lr · sign(gradient), so the step shows each group's own rate."""
    watch = Watch()
    one_rank(
        tmp_path, callbacks=[watch], **SHORT | {"steps": 1, "lr": 1e-3, "weight_decay": 0.0, "schedule": "constant"}
    )
    moved = {name: (watch.weights[1][name] - value).abs().max() for name, value in watch.weights[0].items()}
    assert float(moved["gate"]) == pytest.approx(1e-2, rel=1e-2)
    assert float(moved["adapter.0.weight"]) == pytest.approx(1e-3, rel=1e-2)


def test_frozen_base_stays(one_rank: Any, tmp_path: Path) -> None:
    class Base(Callback):
        def on_start(self, run: TrainingRun) -> None:
            self.before = run.model.get_submodule("base").weight.clone()

        def on_end(self, run: TrainingRun) -> None:
            self.after = run.model.get_submodule("base").weight.clone()

    base = Base()
    one_rank(tmp_path, callbacks=[base], **SHORT)
    assert torch.equal(base.before, base.after)


def test_a_loss_that_is_not_finite_ends_the_training(one_rank: Any, tmp_path: Path) -> None:
    class Diverges(ToyObjective):
        def loss(self, model: Any, batch: Any, draws: Any, progress: float) -> dict[str, Any]:
            found = super().loss(model, batch, draws, progress)
            return {name: value / (0.0 if progress > 0.4 else 1.0) for name, value in found.items()}

    with pytest.raises(TrainingError, match="not finite at step 4"):
        one_rank(tmp_path, Diverges(), **SHORT)
    assert not (tmp_path / "checkpoint").exists()


def test_finished_training_is_not_trained_again(one_rank: Any, tmp_path: Path) -> None:
    one_rank(tmp_path, **SHORT)
    watch = Watch()
    assert one_rank(tmp_path, callbacks=[watch], **SHORT).step == 6
    assert not watch.weights
    summary = json.loads((tmp_path / "train.json").read_text())
    assert summary["parameters"] == {"trainable": 324, "frozen": 144}


def test_checkpoint_of_another_model_is_refused(one_rank: Any, tmp_path: Path) -> None:
    class Wider(ToyObjective):
        def build(self) -> torch.nn.Module:
            model = super().build()
            model.gate = torch.nn.Parameter(torch.zeros(1, 3))
            return model

    one_rank(tmp_path, **SHORT | {"steps": 4})
    assert checkpoints.verified(tmp_path / "checkpoint") is not None
    with pytest.raises(ConfigError, match="other trainable parameters"):
        one_rank(tmp_path, Wider(), **SHORT)


def test_a_finished_training_can_be_lengthened(one_rank: Any, tmp_path: Path) -> None:
    constant = SHORT | {"schedule": "constant"}
    one_rank(tmp_path / "short", **constant | {"steps": 3})
    one_rank(tmp_path / "short", **constant)
    one_rank(tmp_path / "long", **constant)
    assert losses(tmp_path / "short") == losses(tmp_path / "long")


def test_half_precision_without_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="zero_stage 1 does the same"):
        TrainConfig(steps=1, batch_size=16, zero_stage=0, precision="bf16")


@pytest.fixture
def fp16_on_this_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch computes in fp16 on any CPU; DeepSpeed admits it only on those that are fast at it."""
    from deepspeed.accelerator import get_accelerator

    monkeypatch.setattr(get_accelerator(), "is_fp16_supported", lambda: True)


def test_fp16_where_the_device_has_none_is_refused(
    one_rank: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deepspeed.accelerator import get_accelerator

    monkeypatch.setattr(get_accelerator(), "is_fp16_supported", lambda: False)
    with pytest.raises(ConfigError, match="fp16 is not supported"):
        one_rank(tmp_path, precision="fp16", **SHORT)


@pytest.mark.usefixtures("fp16_on_this_cpu")
@pytest.mark.parametrize(
    ("precision", "zero_stage"),
    [("fp32", 0), ("fp32", 1), ("fp32", 2), ("fp32", 3), ("bf16", 1), ("bf16", 2), ("bf16", 3), ("fp16", 2)],
)
def test_a_resumed_training_has_the_same_bits(one_rank: Any, tmp_path: Path, precision: str, zero_stage: int) -> None:
    """Stopped in the middle of a log line's interval and resumed: weights, moments, averages and log are equal."""
    changes = SHORT | {"steps": 24, "log_every": 5, "zero_stage": zero_stage, "precision": precision, "micro_batch": 8}
    # Large enough a loss that fp16's first scales overflow.
    scale = 1e4 if precision == "fp16" else 1.0
    one_rank(tmp_path / "whole", ToyObjective(scale=scale), **changes)
    half = one_rank(tmp_path / "cut", ToyObjective(scale=scale), callbacks=[StopAt(13)], **changes)
    assert half.outcome == "preempted"
    assert one_rank(tmp_path / "cut", ToyObjective(scale=scale), **changes).outcome == "complete"
    whole, cut = (load_file(tmp_path / name / "checkpoint" / part_name(0)) for name in ("whole", "cut"))
    assert {name: value.numpy().tobytes() for name, value in whole.items()} == {
        name: value.numpy().tobytes() for name, value in cut.items()
    }
    assert losses(tmp_path / "whole") == losses(tmp_path / "cut")
    states = [checkpoints.verified(tmp_path / name / "checkpoint") for name in ("whole", "cut")]
    assert states[0] is not None
    assert states[1] is not None
    for name in ("updates", "skipped", "scaler", "samples"):
        assert states[0].state[name] == states[1].state[name]
    if precision == "fp16":
        assert states[0].state["skipped"] > 0, "the loss scale never came down: nothing was tested"


@pytest.mark.slow
@pytest.mark.usefixtures("fp16_on_this_cpu")
@pytest.mark.parametrize("zero_stage", [1, 2, 3])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_learns_as_fp32_does(one_rank: Any, tmp_path: Path, precision: str, zero_stage: int) -> None:
    changes = SHORT | {"steps": 120, "log_every": 20, "zero_stage": zero_stage}
    one_rank(tmp_path / "half", precision=precision, **changes)
    one_rank(tmp_path / "full", **changes)
    half, full = losses(tmp_path / "half"), losses(tmp_path / "full")
    assert full[-1] < 0.9 * full[0]
    # fp16 skips its first updates while the loss scale comes down.
    assert half[-1] == pytest.approx(full[-1], rel=0.02 if precision == "bf16" else 0.25)


def test_draws_are_addressed_by_sample() -> None:
    keys = [(0, 3), (2, 3), (0, 7), (1, 7)]
    whole = Draws(5, keys)
    noise, chance, more = whole.normal((4, 3)), whole.chance(0.5), whole.uniform((2,))
    for position, key in enumerate(keys):
        alone = Draws(5, [key])
        assert torch.equal(alone.normal((4, 3))[0], noise[position])
        assert torch.equal(alone.chance(0.5)[0], chance[position])
        assert torch.equal(alone.uniform((2,))[0], more[position])
    assert len({float(value) for value in noise[:, 0, 0]}) == 4, "unequal addresses, unequal draws"
    assert not torch.equal(Draws(6, keys).normal((4, 3)), noise)


def test_draws_are_normal_and_uniform() -> None:
    draws = Draws(0, [(0, index) for index in range(2000)])
    normal, uniform = draws.normal((FEATURES,)), draws.uniform()
    assert normal.dtype == uniform.dtype == torch.float32
    assert float(normal.mean()) == pytest.approx(0, abs=0.03)
    assert float(normal.std()) == pytest.approx(1, abs=0.03)
    assert float(uniform.mean()) == pytest.approx(0.5, abs=0.03)
    assert 0 <= float(uniform.min()) <= float(uniform.max()) < 1


def test_configuration_that_cannot_accumulate_is_refused() -> None:
    with pytest.raises(ValueError, match="whole micro-batches"):
        TrainConfig(steps=1, batch_size=16, processes=2, micro_batch=3)
    with pytest.raises(ValueError, match="not divisible by processes"):
        TrainConfig(steps=1, batch_size=15, processes=2)
    with pytest.raises(ValueError, match="Extra inputs"):
        TrainConfig(steps=1, batch_size=15, epochs=2)
