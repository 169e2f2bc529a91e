"""What the GLIGEN recipes' ``Recipe`` have in common; light to import, as every recipe is."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from atelier.recipes.layouts import Layout


@dataclass(frozen=True)
class GroundedRecipe:
    """An adapter that is trained on layouts, exported over its base and sampled from layouts.

    Attributes:
        profile: the name of the size.
        config: its ``resolution``, ``max_boxes`` and ``beta`` are read here.
    """

    profile: str
    config: Any

    def export(self, base: Path, adapter: "dict[str, Tensor]", folder: Path) -> dict[str, int]:
        """Writes what was trained as a diffusers folder over the base; returns parameter counts."""
        from atelier.convert.pipeline_folder import export

        return export(base, adapter, folder)

    def layouts(self, count: int, seed: int) -> "list[Layout]":
        """Held-out layouts to sample and judge."""
        from atelier.recipes.layouts import digit_layouts, published_layouts

        if self.profile == "laptop":
            return digit_layouts(count, seed, self.config.resolution)
        return published_layouts()[:count]

    def sample(
        self, pipeline: Any, layouts: "list[Layout]", steps: int, guidance: float, grounded: bool = True
    ) -> "list[Image.Image]":
        """One picture a layout, each from its own seed's noise; ``grounded=False`` is the control.

        Args:
            pipeline: what the recipe's ``pipeline`` gives.
        """
        import torch

        images: list[Image.Image] = pipeline(
            [layout.prompt for layout in layouts],
            height=self.config.resolution,
            width=self.config.resolution,
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=[torch.Generator().manual_seed(layout.seed) for layout in layouts],
            gligen_boxes=[layout.boxes for layout in layouts] if grounded else None,
            gligen_phrases=[layout.phrases for layout in layouts] if grounded else None,
            gligen_scheduled_sampling_beta=self.config.beta,
            gligen_max_boxes=self.config.max_boxes,
        ).images
        return images
