"""Progress of the training in rank 0: samples done, rate, ETA, loss, share of time waiting for data."""

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
            self._progress.to(run.step * run.config.batch_size, step=run.step, **self._fields(run))

    @staticmethod
    def _fields(run: TrainingRun) -> dict[str, Any]:
        if not run.metrics:
            return {}
        return {"loss": float(run.metrics["loss"]), "data wait": f"{100 * run.metrics['data_wait']:.1f}%"}
