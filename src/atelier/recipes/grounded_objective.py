"""What the GLIGEN recipes' objectives have in common: everything but the model's start, the batch and the loss."""

from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor, nn

from atelier.models.flops import adapter_training_flops
from atelier.models.grounded_unet import adapter_parameters, gates
from atelier.models.training_view import TrainingView
from atelier.recipes.denoising import NoiseSchedule, box_weights, load_scheduler, weighted_mse
from atelier.recipes.grounding import adapter_groups, base_sizes
from atelier.recipes.previews import LayoutPreviews


class GroundedObjective:
    """An adapter on a frozen UNet as the engine sees it; a recipe adds ``build``, ``collate`` and ``loss``.

    Args:
        recipe: its ``config`` has ``gate_lr``, ``inside_weight``, ``resolution`` and ``max_boxes``.
        base: the frozen base's folder.
    """

    def __init__(self, recipe: Any, base: Path) -> None:
        self.recipe, self.config, self.base = recipe, recipe.config, base
        self.schedule = NoiseSchedule.of(load_scheduler(base))
        self._previews = LayoutPreviews(recipe, base)
        self.view = TrainingView()

    def parameter_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """The gates in a group of their own: they may have another learning rate."""
        return adapter_groups(model, self.config.gate_lr)

    def weighted_loss(self, prediction: Tensor, target: Tensor, batch: dict[str, Any]) -> dict[str, Tensor]:
        """The mean squared error, weighted inside the boxes (dropped ones too) where ``inside_weight`` is not 1."""
        weights = None
        if self.config.inside_weight != 1:
            size = (target.shape[2], target.shape[3])
            weights = box_weights(batch["boxes"], batch["masks"], size, self.config.inside_weight)
        return {"loss": weighted_mse(prediction, target, weights).mean()}

    def trainable_state(self, model: nn.Module) -> dict[str, Tensor]:
        """Fusers and position net under their diffusers names."""
        return {name: parameter.detach() for name, parameter in adapter_parameters(model).items()}

    def gauges(self, model: nn.Module) -> dict[str, float]:
        """tanh(alpha) of every gate: the loss shows nothing until they open."""
        return gates(model)

    def preview(self, model: nn.Module, step: int) -> list[Image.Image]:
        """See ``LayoutPreviews``."""
        return self._previews.draw(model)

    def validate(self, model: nn.Module, step: int, previews: list[Image.Image]) -> dict[str, float]:
        """See ``LayoutPreviews.validate``."""
        return self._previews.validate(model, previews)

    def flops_per_sample(self) -> float:
        """See ``adapter_training_flops``."""
        config, latent, tokens = base_sizes(self.base, self.config.resolution)
        return adapter_training_flops(config, latent, self.config.max_boxes, tokens)
