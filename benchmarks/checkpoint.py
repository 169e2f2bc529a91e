"""What saving costs a training: the same steps with and without checkpoints, in turn, on two ranks."""

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import Bench, Result

WIDTH, LAYERS, BATCH, STEPS = 768, 9, 64, 360
EVERY_S, USUAL_S = 4.0, 60.0
ROUNDS = 2


def checkpoint_overhead_pct() -> Result:
    """Share of the training time that saving takes at an interval of a minute.

    Measured at one of four seconds, so that the noise of the machine is divided by many saves, and carried over: what
    one save costs, over the time between two (an interval, less what a save is begun earlier).
    """
    from atelier.training.callbacks.checkpoint import Interval
    from atelier.training.launcher import LocalLauncher

    seconds: dict[float | None, float] = {None: 0.0, EVERY_S: 0.0}
    took: list[float] = []
    state = 0
    for _ in range(ROUNDS):
        for every in seconds:
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                plan = folder / "plan.json"
                plan.write_text(json.dumps({"folder": str(folder / "out"), "every": every}))
                path = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
                LocalLauncher(environment={"PYTHONPATH": path}).run(
                    "benchmarks.checkpoint", [str(plan)], 2, folder / "logs"
                )
                seconds[every] += float(json.loads((folder / "out" / "train.json").read_text())["seconds"])
                if every is not None:
                    took += json.loads((folder / "took.json").read_text())
                state = sum(file.stat().st_size for file in (folder / "out" / "checkpoint").iterdir())
    # The most careful reading: as if each save took as long as the slowest.
    usual = Interval(USUAL_S, 0.0)
    usual.complete(max(took))
    between = usual.begins_at()
    one = (seconds[EVERY_S] - seconds[None]) / len(took)
    cost = one / between * 100
    note = (
        f"{state / 1e6:.0f} MB a checkpoint, {len(took)} saves of {max(took):.1f} s or less cost {one:.2f} s each: "
        f"{seconds[EVERY_S]:.1f} s against {seconds[None]:.1f} s without; at an interval of {USUAL_S:.0f} s one every "
        f"{between:.0f} s"
    )
    return Result("checkpoint_overhead_pct", round(cost, 3), "%", bar=2.0, better="lower", note=note)


BENCHES: dict[str, Bench] = {"checkpoint_overhead_pct": checkpoint_overhead_pct}


class _Numbers:
    """Samples made from their index."""

    shard_starts = np.array([0, 10_000])

    def __len__(self) -> int:
        return 10_000

    def sample(self, index: int) -> dict[str, Any]:
        return {"x": np.random.default_rng(index).standard_normal(WIDTH).astype(np.float32)}


def _rank(plan: dict[str, Any]) -> None:
    """The training itself: a perceptron of 5.3 million weights learns to give its input back."""
    import torch

    from atelier.data.loader import Loader
    from atelier.training.callbacks import standard_callbacks
    from atelier.training.callbacks.checkpoint import SaveCheckpoints
    from atelier.training.config import TrainConfig
    from atelier.training.engine import train

    class Objective:
        def build(self) -> torch.nn.Module:
            layers = [layer for _ in range(LAYERS) for layer in (torch.nn.Linear(WIDTH, WIDTH), torch.nn.GELU())]
            return torch.nn.Sequential(*layers)

        def parameter_groups(self, model: torch.nn.Module) -> list[dict[str, Any]]:
            return [{"params": list(model.parameters()), "name": "all"}]

        def collate(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
            return {"x": torch.from_numpy(np.stack([sample["x"] for sample in samples]))}

        def loss(self, model: Any, batch: dict[str, Any], draws: Any, progress: float) -> dict[str, Any]:
            return {"loss": (model(batch["x"]) - batch["x"]).square().mean()}

        def trainable_state(self, model: torch.nn.Module) -> dict[str, Any]:
            return dict(model.state_dict())

        def gauges(self, model: torch.nn.Module) -> dict[str, float]:
            return {}

        def preview(self, model: torch.nn.Module, step: int) -> None:
            return None

        def flops_per_sample(self) -> float:
            return 6.0 * LAYERS * WIDTH**2

    config = TrainConfig(
        steps=STEPS, batch_size=BATCH, processes=2, ema_decay=0.99, checkpoint_every_s=plan["every"], log_every=40
    )
    callbacks = standard_callbacks(config)
    train(Objective(), _Numbers(), config, Path(plan["folder"]), callbacks, loader=Loader)
    if os.environ["RANK"] == "0":
        (saves,) = (callback for callback in callbacks if isinstance(callback, SaveCheckpoints))
        Path(plan["folder"]).with_name("took.json").write_text(json.dumps(saves.took))


if __name__ == "__main__":
    _rank(json.loads(Path(sys.argv[1]).read_text()))
