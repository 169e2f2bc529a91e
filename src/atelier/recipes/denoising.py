"""What the diffusion recipes share: noising, the target of a prediction type, and weighted losses."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import SchedulerMixin
from torch import Tensor, nn

from atelier.errors import ConfigError
from atelier.training.protocol import Draws


@dataclass(frozen=True)
class NoiseSchedule:
    """The noise levels of a diffusers scheduler, as training needs them.

    Attributes:
        alphas_cumprod: float32 [T].
        prediction_type: "epsilon", "v_prediction" or "sample".
    """

    alphas_cumprod: Tensor
    prediction_type: str

    @classmethod
    def of(cls, scheduler: SchedulerMixin) -> "NoiseSchedule":
        """Reads them off a scheduler with a variance-preserving schedule (DDPM, DDIM, Euler, …)."""
        kind = scheduler.config["prediction_type"]
        if kind not in ("epsilon", "v_prediction", "sample"):
            raise ConfigError(f"prediction_type {kind!r} is not known", "use epsilon, v_prediction or sample")
        return cls(scheduler.alphas_cumprod.float(), kind)

    def timesteps(self, draws: Draws, power: float = 1.0) -> Tensor:
        """Timesteps [B]: uniform for ``power`` 1, biased to high noise below it (t ∝ u^power)."""
        count = len(self.alphas_cumprod)
        return (draws.uniform().pow(power) * count).long().clamp_max(count - 1)

    def noised(self, x: Tensor, noise: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """The noised latents and the prediction target, both like ``x`` [B, C, H, W]."""
        alpha = self.alphas_cumprod.to(x.device)[timesteps].view(-1, *[1] * (x.dim() - 1))
        signal, sigma = alpha.sqrt(), (1 - alpha).sqrt()
        target = {
            "epsilon": lambda: noise,
            "v_prediction": lambda: signal * noise - sigma * x,
            "sample": lambda: x,
        }[self.prediction_type]()
        return signal * x + sigma * noise, target


def load_scheduler(base: Path) -> SchedulerMixin:
    """The base folder's scheduler, of whatever class its configuration names."""
    path = base / "scheduler" / "scheduler_config.json"
    name = str(json.loads(path.read_text())["_class_name"])
    kind: Any = getattr(diffusers, name, None)
    if not (isinstance(kind, type) and issubclass(kind, SchedulerMixin)):
        raise ConfigError(f"{path} names {name!r}, which is no scheduler of diffusers", "correct the base folder")
    return kind.from_pretrained(base / "scheduler")  # type: ignore[attr-defined]  # mypy narrows Any to a bare type


def box_weights(boxes: Tensor, masks: Tensor, size: tuple[int, int], inside: float) -> Tensor:
    """Loss weights [B, 1, H, W]: ``inside`` in the boxes, 1 elsewhere, then mean 1 over each sample.

    Args:
        boxes: [B, N, 4] normalised xyxy.
        masks: [B, N]; 0 leaves a box out.
        size: (H, W) of the latents; a cell counts as inside when its centre is.
    """
    height, width = size
    y = (torch.arange(height, device=boxes.device) + 0.5) / height
    x = (torch.arange(width, device=boxes.device) + 0.5) / width
    x0, y0, x1, y1 = boxes.unsqueeze(-1).unbind(-2)  # each [B, N, 1]
    rows = (y >= y0) & (y < y1) & (masks.unsqueeze(-1) > 0)  # [B, N, H]
    columns = (x >= x0) & (x < x1)  # [B, N, W]
    covered = (rows.unsqueeze(-1) & columns.unsqueeze(-2)).any(1, keepdim=True)  # [B, 1, H, W]
    weights = torch.where(covered, inside, 1.0)
    return weights / weights.mean((1, 2, 3), keepdim=True)


def compute_dtype(model: nn.Module) -> torch.dtype:
    """The type that the model computes in: what its inputs are cast to (bf16 or fp16 under the engine's precision)."""
    return next((parameter.dtype for parameter in model.parameters()), torch.float32)


def weighted_mse(prediction: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean squared error a sample [B], in float32."""
    error = (prediction.float() - target.float()).square()
    if weights is not None:
        error = error * weights
    return error.flatten(1).mean(1)
