"""Progress of the training in rank 0: samples done, rate, ETA, step, loss, MFU, share of time waiting for data."""

from typing import Any

from atelier.progress import Progress
from atelier.training.callbacks.base import Callback
from atelier.training.run import TrainingRun


class ShowProgress(Callback):
    """Reports in samples, since a step's size differs between configurations."""

    def __init__(self, every_s: float = 5.0) -> None:
        self.every_s = every_s
        self._progress: Progress | None = None

    def on_start(self, run: TrainingRun) -> None:
        if run.ranks.first:
            batch = run.config.batch_size
            self._progress = Progress(
                "training", run.config.steps * batch, "samples", start=run.step * batch, every_s=self.every_s
            )

    def on_step(self, run: TrainingRun) -> None:
        if self._progress is not None:
            self._progress.to(run.step * run.config.batch_size, step=run.step, **fields(run.metrics))


def fields(line: dict[str, Any]) -> dict[str, Any]:
    """What a progress line says of the latest log line: MFU where the device's peak is known, else TFLOP/s."""
    if not line:
        return {}
    shown: dict[str, Any] = {"loss": float(line["loss"])}
    if "mfu" in line:
        shown["MFU"] = f"{100 * line['mfu']:.1f}%"
    elif "tflops_per_s" in line:
        shown["TFLOP/s"] = float(line["tflops_per_s"])
    return shown | {"data wait": f"{100 * line['data_wait']:.1f}%"}
