"""Previews of a layout recipe in training, and what can be read off them without a judge."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from atelier.recipes.denoising import compute_dtype
from atelier.recipes.layouts import Layout

COUNT, SEED = 8, 1


class LayoutPreviews:
    """The same eight layouts each time, from the same noise; the model is left as found.

    Args:
        recipe: gives ``layouts``, ``pipeline``, ``sample`` and, in ``config``, ``preview_steps`` and ``guidance``.
        base: the frozen base's folder.
    """

    def __init__(self, recipe: Any, base: Path) -> None:
        self._recipe, self._base = recipe, base
        self._pipeline: Any = None
        self._control: dict[str, float] | None = None

    @torch.no_grad()
    def draw(self, model: nn.Module, grounded: bool = True) -> list[Image.Image]:
        """The pictures; ``grounded=False`` is the control."""
        if self._pipeline is None:
            self._pipeline = self._recipe.pipeline(self._base, model)
        config, training, dtype = self._recipe.config, model.training, compute_dtype(model)
        device = next(model.parameters()).device.type
        model.eval()
        try:
            # The pipeline's other parts are float32: autocast joins them to a UNet in half precision.
            with (
                _beside(self._pipeline, model),
                torch.autocast(device, dtype, enabled=dtype != torch.float32),
            ):
                images: list[Image.Image] = self._recipe.sample(
                    self._pipeline, self._layouts(), config.preview_steps, config.guidance, grounded
                )
                return images
        finally:
            model.train(training)

    def validate(self, model: nn.Module, previews: list[Image.Image]) -> dict[str, float]:
        """How far the previews follow their boxes, and the same prompts and noise without grounding as control.

        Read off the pixels alone, no judge: the share of the ink that lies in the boxes, and of the boxes that hold
        ink. {} where nothing is known of what is drawn (the layouts have no labels).
        """
        from atelier.evaluation.layout import ink_metrics

        layouts = self._layouts()
        if not all(layout.labels for layout in layouts):
            return {}
        boxes = [layout.boxes for layout in layouts]
        if self._control is None:
            # Drawn once: without grounding the fusers are skipped, and the base is frozen.
            control = [np.asarray(image) for image in self.draw(model, grounded=False)]
            self._control = ink_metrics(control, boxes, "_ungrounded")
        return ink_metrics([np.asarray(image) for image in previews], boxes) | self._control

    def _layouts(self) -> list[Layout]:
        layouts: list[Layout] = self._recipe.layouts(COUNT, seed=SEED)
        return layouts


@contextlib.contextmanager
def _beside(pipeline: Any, model: nn.Module) -> Iterator[None]:
    """Has the pipeline's other parts where the model is; between previews the training has that memory."""
    device = next(model.parameters()).device
    others = [part for part in pipeline.components.values() if isinstance(part, nn.Module) and part is not model]
    homes = [next(part.parameters()).device for part in others]
    try:
        for part in others:
            part.to(device)
        yield
    finally:
        for part, home in zip(others, homes, strict=True):
            part.to(home)
