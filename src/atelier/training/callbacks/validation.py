"""The recipe's own metric during the training: for layouts, whether what is drawn follows the boxes."""

import time

import torch

from atelier.training.callbacks.base import Callback
from atelier.training.callbacks.metrics_log import Tracker, append_line, sync_file, truncate_log
from atelier.training.callbacks.preview import DrawPreviews
from atelier.training.callbacks.undisturbed import takes_part, undisturbed
from atelier.training.protocol import Validated
from atelier.training.run import TrainingRun

VALIDATION = "validation.jsonl"


class Validate(Callback):
    """Appends ``{"step", metric: value, …}`` to ``validation.jsonl`` every ``validate_every`` steps and at the end.

    Does nothing for an objective without ``validate``. The pictures are the preview's: where both are due at a step
    they are drawn once.
    """

    logs = (VALIDATION,)

    def __init__(self, previews: DrawPreviews, tracker: Tracker | None = None) -> None:
        self.previews, self.tracker = previews, tracker

    def on_start(self, run: TrainingRun) -> None:
        if run.ranks.first:
            truncate_log(run.folder / VALIDATION, run.step)

    def on_step(self, run: TrainingRun) -> None:
        objective, every = run.objective, run.config.validate_every or run.config.preview_every
        if not isinstance(objective, Validated) or not every or (run.step % every and not run.finished):
            return
        if takes_part(run):
            images = self.previews.images(run)
            began = time.monotonic()
            with undisturbed(run):
                values = objective.validate(run.model, run.step, images or [])
            run.validation = values
            if run.ranks.first and values:
                print(f"validation at step {run.step}: {time.monotonic() - began:.1f} s, {shown(values)}", flush=True)
                append_line(run.folder / VALIDATION, {"step": run.step, **values})
                if self.tracker is not None:
                    self.tracker.log_metrics({f"validation/{name}": value for name, value in values.items()}, run.step)
        if run.ranks.world > 1:
            torch.distributed.barrier()

    def on_save(self, run: TrainingRun) -> None:
        if run.ranks.first:
            sync_file(run.folder / VALIDATION)


def shown(values: dict[str, float]) -> str:
    """Metrics as one line."""
    return ", ".join(f"{name} {value:.3f}" for name, value in values.items())
