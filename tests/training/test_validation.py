"""Validation and previews leave no trace in the training; progress and logs hold what they should."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from atelier.training.callbacks import Callback
from atelier.training.callbacks.metrics_log import read_lines
from atelier.training.callbacks.progress import fields
from atelier.training.callbacks.validation import VALIDATION
from atelier.training.run import TrainingRun
from tests.training.launching import launch, plan
from tests.training.toy import FEATURES, ToyObjective

CLOCK = ("samples_per_s", "data_wait", "saving_s", "seconds", "tflops_per_s", "mfu")


class Measured(ToyObjective):
    """Draws from every global generator and changes flags, as a careless sampler would."""

    drawn = 0

    def preview(self, model: torch.nn.Module, step: int) -> Any:
        self.drawn += 1
        return super().preview(model, step)

    def validate(self, model: torch.nn.Module, step: int, previews: list[Any]) -> dict[str, float]:
        assert len(previews) == 4
        assert not model.training
        assert not torch.is_grad_enabled()
        model.get_submodule("adapter").train()
        noise = random.random() + float(np.random.rand()) + float(torch.rand(()))
        error = model(torch.zeros(4, FEATURES)).abs().mean()
        return {"level": float(error), "noise": noise}


class Trace(Callback):
    """Everything of the training that could differ, after every step."""

    def __init__(self) -> None:
        self.seen: list[Any] = []
        self.optimizer: Any = None
        self.hook = register_optimizer_step_post_hook(self.stepped)

    def stepped(self, optimizer: torch.optim.Optimizer, *arguments: Any) -> None:
        self.optimizer = optimizer

    def on_end(self, run: TrainingRun) -> None:
        self.hook.remove()

    def on_step(self, run: TrainingRun) -> None:
        model = run.model
        self.seen.append(
            {
                "weights": {name: value.clone() for name, value in model.state_dict().items()},
                "grads": {n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters()},
                "flags": [module.training for module in model.modules()],
                "trained": [p.requires_grad for p in model.parameters()],
                "optimizer": [
                    {"master": master.detach().clone()}
                    | {name: value.clone() for name, value in self.optimizer.state[master].items()}
                    for group in self.optimizer.param_groups
                    for master in group["params"]
                ],
                "torch": torch.get_rng_state(),
                "numpy": np.random.get_state()[1].copy(),
                "python": random.getstate(),
            }
        )


def assert_same(ours: Any, theirs: Any) -> None:
    assert type(ours) is type(theirs)
    if isinstance(ours, torch.Tensor):
        assert torch.equal(ours, theirs)
    elif isinstance(ours, np.ndarray):
        assert np.array_equal(ours, theirs)
    elif isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        for name in ours:
            assert_same(ours[name], theirs[name])
    elif isinstance(ours, list):
        assert len(ours) == len(theirs)
        for mine, other in zip(ours, theirs, strict=True):
            assert_same(mine, other)
    else:
        assert ours == theirs


def test_training_with_validation_has_the_same_bits(one_rank: Any, tmp_path: Path) -> None:
    traces = {}
    for name, every in (("without", None), ("with", 2)):
        random.seed(5)
        np.random.seed(5)
        traces[name] = Trace()
        objective = Measured(dropout=0.2)
        one_rank(tmp_path / name, objective, callbacks=[traces[name]], steps=9, log_every=1, validate_every=every)
        # Every second step and the last; without a preview due, validation has them drawn.
        assert objective.drawn == (5 if every else 0)
    assert len(traces["with"].seen) == 9
    assert {"master", "exp_avg", "exp_avg_sq"} <= traces["with"].seen[0]["optimizer"][0].keys()
    for ours, theirs in zip(traces["with"].seen, traces["without"].seen, strict=True):
        assert_same(ours, theirs)
    logs = {
        name: [
            {key: value for key, value in line.items() if key not in CLOCK}
            for line in read_lines(tmp_path / name / "metrics.jsonl")
        ]
        for name in traces
    }
    assert logs["with"] == logs["without"]
    assert [line["step"] for line in read_lines(tmp_path / "with" / VALIDATION)] == [2, 4, 6, 8, 9]
    assert not (tmp_path / "without" / VALIDATION).exists()


def test_a_preview_and_a_validation_of_one_step_draw_once(one_rank: Any, tmp_path: Path) -> None:
    objective = Measured()
    one_rank(tmp_path, objective, steps=8, preview_every=4)
    assert objective.drawn == 2
    assert [line["step"] for line in read_lines(tmp_path / VALIDATION)] == [4, 8]
    assert len(list((tmp_path / "previews").iterdir())) == 2


def test_two_ranks_under_zero_3_draw_together(tmp_path: Path) -> None:
    """Layers lie in parts on both ranks: one drawing alone would wait for the other for ever."""
    launch(plan(tmp_path, steps=4, preview_every=2, zero_stage=3, checkpoint_every_steps=None))
    assert len(list((tmp_path / "out" / "previews").iterdir())) == 2


def test_a_log_line_tells_what_was_achieved(one_rank: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one_rank(tmp_path, steps=6, log_every=2)
    line = read_lines(tmp_path / "metrics.jsonl")[-1]
    expected = line["samples_per_s"] * ToyObjective().flops_per_sample() / 1e12
    assert line["tflops_per_s"] == pytest.approx(expected, rel=1e-3)
    assert "mfu" not in line, "nobody states a CPU's peak"
    shown = [text for text in capsys.readouterr().err.splitlines() if text.startswith("training: 96/96 samples")]
    assert len(shown) == 1
    for part in ("/s, ETA 0:00, step 6, loss ", ", TFLOP/s ", ", data wait "):
        assert part in shown[0]


def test_progress_shows_mfu_where_it_is_known() -> None:
    line = {"loss": 0.25, "data_wait": 0.004, "tflops_per_s": 400.0, "mfu": 0.4123}
    assert fields(line) == {"loss": 0.25, "MFU": "41.2%", "data wait": "0.4%"}
    assert fields({}) == {}
