"""A small real objective for the engine's tests: a frozen layer with a trained adapter, fitted by regression.

Also a rank's module for the launcher: ``python -m toy config.json``.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from atelier.training.callbacks import Callback, Request
from atelier.training.protocol import Draws
from atelier.training.run import TrainingRun

FEATURES, HIDDEN = 8, 16


class ToyModel(torch.nn.Module):
    def __init__(self, dropout: float, ballast: int = 0) -> None:
        super().__init__()
        # Weights that are saved and change nothing: they make a save take its time.
        self.ballast = torch.nn.Parameter(torch.ones(ballast)) if ballast else None
        self.base = torch.nn.Linear(FEATURES, HIDDEN)
        self.base.requires_grad_(False)
        self.adapter = torch.nn.Sequential(torch.nn.Linear(HIDDEN, HIDDEN), torch.nn.Tanh(), torch.nn.Linear(HIDDEN, 3))
        # Of no dimension, as the gates of GLIGEN are.
        self.gate = torch.nn.Parameter(torch.full((), 0.3))
        self.dropout = torch.nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.dropout(torch.relu(self.base(x.to(self.base.weight.dtype))))
        moved = torch.tanh(self.gate) * self.adapter(hidden)
        return moved if self.ballast is None else moved + 0.0 * self.ballast[0]


class ToyObjective:
    """Regression of a noisy input to its target; ``fault`` makes things go wrong on purpose."""

    def __init__(
        self,
        dropout: float = 0.0,
        noise: float = 0.1,
        fault: dict[str, Any] | None = None,
        scale: float = 1.0,
        delay: float = 0.0,
        ballast: int = 0,
    ) -> None:
        self.ballast = ballast
        self.dropout, self.noise, self.fault, self.scale, self.delay = dropout, noise, fault or {}, scale, delay

    def build(self) -> torch.nn.Module:
        return ToyModel(self.dropout, self.ballast)

    def parameter_groups(self, model: torch.nn.Module) -> list[dict[str, Any]]:
        assert isinstance(model, ToyModel)
        return [
            {
                "params": [*model.adapter.parameters(), *([] if model.ballast is None else [model.ballast])],
                "name": "adapter",
            },
            {"params": [model.gate], "name": "gates", "lr": 1e-2, "weight_decay": 0.0},
        ]

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        return {name: torch.from_numpy(np.stack([sample[name] for sample in samples])) for name in ("x", "y")}

    def loss(self, model: torch.nn.Module, batch: dict[str, Any], draws: Draws, progress: float) -> dict[str, Any]:
        if self.delay:
            time.sleep(self.delay)
        if self.fault and int(os.environ["RANK"]) == self.fault["rank"] and progress >= self.fault["progress"]:
            print("about to go wrong", flush=True)
            if self.fault["kind"] == "kill":
                os.kill(os.getpid(), 9)
            raise RuntimeError("the toy broke as it was told to")
        x = batch["x"] + self.noise * draws.normal((FEATURES,))
        error = (model(x).float() - batch["y"]).square().mean(dim=1)
        return {"loss": self.scale * error.mean(), "absolute": error.sqrt().mean()}

    def trainable_state(self, model: torch.nn.Module) -> dict[str, torch.Tensor]:
        return {name: value.detach() for name, value in model.named_parameters() if value.requires_grad}

    def gauges(self, model: torch.nn.Module) -> dict[str, float]:
        assert isinstance(model, ToyModel)
        return {"tanh(gate)": float(torch.tanh(model.gate.detach()).mean())}

    def preview(self, model: torch.nn.Module, step: int) -> list[Image.Image] | None:
        assert not model.training
        assert not torch.is_grad_enabled()
        torch.rand(7)  # would shift the training's random numbers if nobody put the generator back
        values = model(torch.zeros(4, FEATURES)).sigmoid() * 255
        return [Image.new("RGB", (8, 8), tuple(int(v) for v in row)) for row in values]

    def flops_per_sample(self) -> float:
        return 6.0 * HIDDEN * (HIDDEN + 3) + 2.0 * FEATURES * HIDDEN


class ToyDataset:
    """Samples made from their index alone."""

    def __init__(self, size: int = 200) -> None:
        self.size = size
        self.shard_starts = np.array([0, size])

    def __len__(self) -> int:
        return self.size

    def sample(self, index: int) -> dict[str, Any]:
        rng = np.random.default_rng(index)
        x = rng.standard_normal(FEATURES).astype(np.float32)
        return {"x": x, "y": np.tanh(x[:3] * x[3:6]).astype(np.float32)}


class StopAt(Callback):
    """Asks for a stop after a step, as a preemption would."""

    def __init__(self, step: int | None) -> None:
        self.step = step

    def request(self, run: TrainingRun) -> Request:
        return Request.STOP if run.step == self.step else Request.NOTHING


def train_toy(settings: dict[str, Any]) -> str:
    """Trains the toy in this rank as the settings say; returns the outcome."""
    torch.set_num_threads(1)
    from atelier.data.loader import Loader
    from atelier.training.callbacks import standard_callbacks
    from atelier.training.config import TrainConfig
    from atelier.training.engine import train

    config = TrainConfig(**settings["config"])
    objective = ToyObjective(**settings.get("objective", {}))
    callbacks = [*standard_callbacks(config), StopAt(settings.get("stop_at"))]
    return train(
        objective,
        ToyDataset(),
        config,
        Path(settings["folder"]),
        callbacks,
        loader=Loader,
        checkpoints_at=settings.get("checkpoints_at"),
    ).outcome


if __name__ == "__main__":
    given = json.loads(Path(sys.argv[1]).read_text())
    sys.exit(75 if train_toy(given) == "preempted" else 0)
