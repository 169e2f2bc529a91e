"""Samples drawn during the training, so that one sees what the loss does not show."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from atelier.training.callbacks.base import Callback
from atelier.training.callbacks.metrics_log import Tracker
from atelier.training.run import TrainingRun

if TYPE_CHECKING:
    from PIL import Image


class DrawPreviews(Callback):
    """Saves a grid ``previews/step-000123.png`` every ``preview_every`` steps and at the end; rank 0 draws.

    The model is left exactly as it was: its training flags and the global generators are put back, and gradients
    are off. On a CPU rank 0 draws with its own threads alone: taking those of the waiting ranks too gains a tenth on
    idle cores, and OpenMP's spinning made it ten times slower on busy ones.
    """

    def __init__(self, tracker: Tracker | None = None) -> None:
        self.tracker = tracker
        self._drawn = -1

    def on_start(self, run: TrainingRun) -> None:
        if run.ranks.first:
            for path in (run.folder / "previews").glob("step-*.png"):
                if int(path.stem.removeprefix("step-")) > run.step:
                    path.unlink()

    def on_step(self, run: TrainingRun) -> None:
        every = run.config.preview_every
        if every and (run.step % every == 0 or run.finished):
            self._draw(run)

    def _draw(self, run: TrainingRun) -> None:
        if run.ranks.first and self._drawn != run.step:
            self._drawn = run.step
            path = run.folder / "previews" / f"step-{run.step:06d}.png"
            if not path.exists():
                images = undisturbed(run, lambda: run.objective.preview(run.model, run.step))
                if images:
                    sheet = grid(images)
                    _save(sheet, path)
                    if self.tracker is not None:
                        self.tracker.log_image(sheet, "preview", run.step)
        if run.ranks.world > 1:
            torch.distributed.barrier()


def undisturbed(run: TrainingRun, draw: Any) -> Any:
    """Calls ``draw`` and puts back the model's training flags and the generators."""
    flags = {module: module.training for module in run.model.modules()}
    devices = [run.ranks.device.index or 0] if run.ranks.device.type == "cuda" else []
    began = time.monotonic()
    try:
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            run.model.eval()
            return draw()
    finally:
        for module, training in flags.items():
            module.training = training
        print(f"preview at step {run.step}: {time.monotonic() - began:.1f} s", flush=True)


def grid(images: "list[Image.Image]", columns: int | None = None, gap: int = 2) -> "Image.Image":
    """One sheet of equally large images, in rows; about as wide as high without ``columns``."""
    from PIL import Image

    columns = columns or max(1, round(len(images) ** 0.5 + 0.49))
    rows = -(-len(images) // columns)
    width, height = max(image.width for image in images), max(image.height for image in images)
    sheet = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), "white")
    for number, image in enumerate(images):
        row, column = divmod(number, columns)
        sheet.paste(image.convert("RGB"), (column * (width + gap), row * (height + gap)))
    return sheet


def _save(sheet: "Image.Image", path: Path) -> None:
    from atelier.storage.atomic import replace_file

    with replace_file(path) as temporary, temporary.open("wb") as file:
        sheet.save(file, format="PNG")
