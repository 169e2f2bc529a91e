"""Samples drawn during the training, so that one sees what the loss does not show."""

import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from atelier.training.callbacks.base import Callback
from atelier.training.callbacks.metrics_log import Tracker
from atelier.training.callbacks.undisturbed import takes_part, undisturbed
from atelier.training.run import TrainingRun

if TYPE_CHECKING:
    from PIL import Image


class DrawPreviews(Callback):
    """Saves a grid ``previews/step-000123.png`` every ``preview_every`` steps and at the end; rank 0 draws.

    On a CPU rank 0 draws with its own threads alone: taking those of the waiting ranks too gains a tenth on idle
    cores, and OpenMP's spinning made it ten times slower on busy ones.
    """

    def __init__(self, tracker: Tracker | None = None) -> None:
        self.tracker = tracker
        self._images: tuple[int, list[Image.Image] | None] = (-1, None)

    def on_start(self, run: TrainingRun) -> None:
        if run.ranks.first:
            for path in (run.folder / "previews").glob("step-*.png"):
                if int(path.stem.removeprefix("step-")) > run.step:
                    path.unlink()

    def on_step(self, run: TrainingRun) -> None:
        every = run.config.preview_every
        if every and (run.step % every == 0 or run.finished):
            images = self.images(run)
            if images and run.ranks.first:
                sheet = grid(images)
                _save(sheet, run.folder / "previews" / f"step-{run.step:06d}.png")
                if self.tracker is not None:
                    self.tracker.log_image(sheet, "preview", run.step)
            if run.ranks.world > 1:
                torch.distributed.barrier()

    def images(self, run: TrainingRun) -> "list[Image.Image] | None":
        """The recipe's samples at this step, drawn once; None on ranks that take no part and for recipes without."""
        if self._images[0] != run.step and takes_part(run):
            began = time.monotonic()
            with undisturbed(run):
                self._images = (run.step, run.objective.preview(run.model, run.step))
            print(f"preview at step {run.step}: {time.monotonic() - began:.1f} s", flush=True)
        return self._images[1]


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
