"""CrossFlow's losses as functions of what was drawn: the flow between two latents, the KL term, the contrastive term.

Source: arXiv 2412.15213, and the released models' training where the paper leaves something open.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from atelier.models.crossflow.flow import FlowNetwork
from atelier.models.crossflow.text_encoder import Posterior
from atelier.recipes.flow_matching import Interpolant

SIGMA_MIN = 1e-5
"""What is left of the text's latent at t = 1."""
KL_WEIGHT = 1e-2


class FlowLoss(NamedTuple):
    """The flow's loss a sample [B], and what it was computed from, a tensor an output of the network."""

    per_sample: Tensor
    predictions: list[Tensor]
    targets: list[Tensor]


def at_resolution(velocity: Tensor, side: int) -> Tensor:
    """The velocity for a coarser stage: the mean of each r × r patch, times r so that its variance stays."""
    ratio = velocity.shape[-1] // side
    return velocity if ratio == 1 else nn.functional.avg_pool2d(velocity, ratio) * ratio


def flow_loss(flow: FlowNetwork, path: Interpolant, t: Tensor, null: Tensor, dtype: torch.dtype) -> FlowLoss:
    """The squared error of every output against the velocity at its resolution, weighted and added up.

    Args:
        t: float32 [B]; null: bool [B].
        dtype: what the network computes in.
    """
    predictions = [prediction.float() for prediction in flow(path.x.to(dtype), t, null)]
    targets = [at_resolution(path.velocity, prediction.shape[-1]) for prediction in predictions]
    per_sample = sum(
        coefficient * (prediction - target).square().flatten(1).mean(1)
        for coefficient, prediction, target in zip(flow.loss_coeffs, predictions, targets, strict=True)
    )
    assert isinstance(per_sample, Tensor)
    return FlowLoss(per_sample, predictions, targets)


def kl_loss(posterior: Posterior) -> Tensor:
    """−½ Σ (1 + log σ² − (0.3 μ)⁶ − σ²) a sample [B].

    Not the textbook's μ²: the released models leave |μ| below 3.3 nearly free.
    """
    mean, log_var = posterior
    return -0.5 * (1 + log_var - (0.3 * mean) ** 6 - log_var.exp()).sum(-1)


class Everyone(NamedTuple):
    """Rows of all processes, and where this one's begin."""

    rows: Tensor
    first: int


def contrastive_loss(images: Tensor, texts: Tensor, all_images: Everyone, all_texts: Everyone, scale: Tensor) -> Tensor:
    """Symmetric InfoNCE of this process's pairs against everyone's; a scalar.

    Args:
        images, texts: normalised, [B, D].
        all_images, all_texts: the same of all processes.
        scale: what the cosines are multiplied by.
    """
    labels = torch.arange(len(images), device=images.device) + all_texts.first
    to_texts = nn.functional.cross_entropy(scale * images @ all_texts.rows.T, labels)
    to_images = nn.functional.cross_entropy(scale * texts @ all_images.rows.T, labels)
    return (to_texts + to_images) / 2


def swapped_among_nulls(targets: Tensor, null: Tensor) -> tuple[Tensor, Tensor]:
    """Upstream's null targets: the null samples of the local batch take each other's image, rolled by one.

    Returns:
        (targets, indicator); with fewer than two nulls neither is changed and nobody is null, so that a small batch
        hardly trains its guidance.
    """
    if int(null.sum()) < 2:
        return targets, torch.zeros_like(null)
    places = null.nonzero()[:, 0]
    swapped = targets.clone()
    swapped[places] = targets[places.roll(-1)]
    return swapped, null


def others_images(own: Tensor, everyone: Everyone, null: Tensor, draw: Tensor) -> Tensor:
    """Targets with another sample's image for every null one, drawn evenly among all processes' samples.

    Args:
        own: [B, C, H, W]; everyone's are the same of N ≥ 2 samples.
        draw: uniform in [0, 1), [B].
    """
    count = len(everyone.rows)
    places = torch.arange(len(own), device=own.device) + everyone.first
    away = 1 + (draw * (count - 1)).long().clamp_max(count - 2)
    partners = everyone.rows[(places + away) % count]
    return torch.where(null[:, None, None, None], partners, own)
