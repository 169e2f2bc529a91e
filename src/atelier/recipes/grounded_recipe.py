"""What the GLIGEN recipes' ``Recipe`` have in common; light to import, as every recipe is."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from atelier.recipes.starting import Starting

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from atelier.convert.weights import Weights
    from atelier.recipes.layouts import Layout
    from atelier.storage.inputs import InputFolder

ADAPTER = "gligen_adapter.safetensors"


@dataclass(frozen=True)
class GroundedRecipe:
    """An adapter that is trained on layouts, exported over its base and sampled from layouts.

    Attributes:
        profile: the name of the size.
        config: its ``resolution``, ``max_boxes`` and ``beta`` are read here.
        text_model: None: the language models are the base's own.
        control: what samples are shown beside, see ``evaluation.control``.
    """

    profile: str
    config: Any
    text_model: ClassVar[str | None] = None
    control: ClassVar[str] = "grounding"

    @property
    def twin(self) -> str:
        """The name of the shipped base."""
        raise NotImplementedError

    @property
    def starting(self) -> Starting:
        """A training may begin with an earlier one's adapter, all of it, on the very same base."""
        return Starting(
            files=(ADAPTER,), needed=(ADAPTER,), same_base=(), parts=("unet",), take=_take, read=_read_adapter
        )

    @property
    def base_parts(self) -> tuple[str, ...]:
        """The subfolders of the base that are read."""
        from atelier.recipes.twins.assets import PARTS

        return PARTS[self.twin]

    def check_base(self, fetch: Callable[[str], Path]) -> None:
        """Any base of the right parts will do."""

    def features(self, base: Path) -> dict[str, Any]:
        """A manifest of features needs to say nothing of the models that made them."""
        return {}

    def check_features(self, metadata: Mapping[str, Any]) -> None:
        """A batch says itself what it lacks."""

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
            **(self._grounding(pipeline, layouts) if grounded else {}),
        ).images
        return images

    def _grounding(self, pipeline: Any, layouts: "list[Layout]") -> dict[str, Any]:
        """The pipeline's arguments of the layouts."""
        given: dict[str, Any] = pipeline.layout_arguments(
            [layout.boxes for layout in layouts],
            [layout.phrases for layout in layouts],
            beta=self.config.beta,
            max_boxes=self.config.max_boxes,
        )
        return given


def _take(source: Path, folder: Path, base: "InputFolder") -> list[str]:
    from atelier.convert.conversion import convert

    target = folder / ADAPTER
    target.unlink(missing_ok=True)
    return list(convert(source, target, to="adapter", base=base.fetch_all()).lines)


def _read_adapter(folder: Path) -> "Weights":
    from atelier.convert.weights import of_safetensors

    return of_safetensors(folder / ADAPTER)
