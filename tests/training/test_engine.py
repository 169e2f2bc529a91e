"""The engine's arithmetic against what it must equal, in one process."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from atelier.errors import ConfigError, TrainingError
from atelier.training import checkpoint as checkpoints
from atelier.training.callbacks import Callback
from atelier.training.callbacks.metrics_log import read_lines
from atelier.training.config import TrainConfig
from atelier.training.protocol import Draws
from atelier.training.run import TrainingRun
from atelier.training.schedule import lr_factor
from tests.training.launching import CONFIG
from tests.training.toy import FEATURES, ToyDataset, ToyObjective

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


@pytest.mark.parametrize("zero_stage", [0, 1, 2])
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
        state = torch.load(tmp_path / name / "checkpoint/state/zero_pp_rank_0_mp_rank_00_optim_states.pt",
                           weights_only=False)["optimizer_state_dict"]["base_optimizer_state"]["state"]  # fmt: skip
        # After one step exp_avg_sq is (1 - beta2) · g².
        sizes[name] = sum(float(moments["exp_avg_sq"].sum()) for moments in state.values()) / (1 - 0.999)
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
    from atelier.convert.zero_checkpoint import trainable_state

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
    assert summary["parameters"] == {"trainable": 326, "frozen": 144}


def test_checkpoint_of_another_model_is_refused(one_rank: Any, tmp_path: Path) -> None:
    one_rank(tmp_path, **SHORT | {"steps": 4})
    checkpoint = checkpoints.verified(tmp_path / "checkpoint")
    assert checkpoint is not None
    (tmp_path / "checkpoint").rename(tmp_path / "kept")
    (tmp_path / ".checkpoints").mkdir()
    (tmp_path / "kept").rename(tmp_path / ".checkpoints" / "step-00000004")
    with pytest.raises(ConfigError, match="zero_stage 2, not 1"):
        one_rank(tmp_path, **SHORT | {"zero_stage": 1})


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
