"""Which networks a CrossFlow configuration means: the published ones, their other combinations, and the twins'."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from atelier.errors import ConfigError
from atelier.models.crossflow.configs import RELEASED, CrossFlowConfig

if TYPE_CHECKING:
    from atelier.recipes.crossflow import Config

SHRINK = 4
"""The twins' autoencoder makes one latent pixel of 4 × 4."""
CLIP_TWIN, T5_TWIN = 128, 96
"""Widths of the twins' language models: unlike, as the published ones' are."""
TEXT = {"tokens": 16, "num_layers": 2, "num_heads": 4, "hidden": 128, "num_reductions": 1, "dropout": 0.0}
TOWER = {"channels": 3, "patch": 2 * SHRINK, "width": 64, "layers": 2, "heads": 4}
"""Of pixels, as the published one; on latents it has as many patches."""
TWO_STAGES = 8
"""The side of the largest latent for which DiMR's twin has two stages; above it has three, as published at 512 px."""


def published(config: "Config") -> CrossFlowConfig:
    """The published model of a resolution, language model and backbone, or the same parts put together otherwise.

    Five of the eight were published. Of the others each part is: DiT-H/2 at 256 px reads a latent of half the side.

    Raises:
        ConfigError: no part is known for this resolution.
    """
    if config.resolution not in (256, 512):
        raise ConfigError(f"CrossFlow has no model of {config.resolution} px", "use 256 or 512")
    name = f"{config.resolution}px_{config.language_model}_{config.backbone}"
    if name in RELEASED:
        return RELEASED[name]
    dimr, dit = RELEASED[f"{config.resolution}px_{config.language_model}_dimr"], RELEASED["512px_t5_dit"]
    flow = dit.flow | {"latent_size": dimr.latent_shape[1]}
    return replace(dimr, backbone="dit", flow=flow)


def twin(resolution: int, language_model: Literal["clip", "t5"], backbone: str) -> CrossFlowConfig:
    """The miniature of a backbone for canvases of ``resolution`` pixels: 32 stands for 256 px, 64 for 512 px.

    Raises:
        ConfigError: the resolution is no multiple of what the network divides it by.
    """
    if resolution % (4 * SHRINK):
        raise ConfigError(f"the twin cannot draw {resolution} px", f"use a multiple of {4 * SHRINK}")
    side = resolution // SHRINK
    shape, text = (4, side, side), TEXT | {"width": T5_TWIN if language_model == "t5" else CLIP_TWIN}
    tower = TOWER | {"image_size": resolution}
    if backbone == "dit":
        flow: dict[str, Any] = {"latent_size": side, "patch_size": 2, "hidden_size": 128, "depth": 5, "num_heads": 4}
        return CrossFlowConfig("dit", flow, text, shape, tower, language_model)
    two = side <= TWO_STAGES
    grid = side // 2 if two else side // 4
    stages = [_transformer(grid, side // grid), _convnext(48, 2 * grid, side // grid // 2)]
    if not two:
        stages.append(_convnext(24, side, 1))
    coefficients = [1 / 4, 1] if two else [1 / 4, 1 / 2, 1]
    flow = {"stage_configs": stages, "loss_coeffs": coefficients}
    return CrossFlowConfig("dimr", flow, text, shape, tower, language_model)


def _transformer(grid: int, ratio: int) -> dict[str, Any]:
    return {
        "block_type": "TransformerBlock",
        "dim": 96,
        "hidden_dim": 192,
        "num_attention_heads": 4,
        "num_blocks": 5,
        "max_height": grid,
        "max_width": grid,
        "input_feature_ratio": ratio,
    }


def _convnext(dim: int, side: int, ratio: int) -> dict[str, Any]:
    return {
        "block_type": "ConvNeXtBlock",
        "dim": dim,
        "hidden_dim": 2 * dim,
        "kernel_size": 5,
        "num_blocks": 3,
        "max_height": side,
        "max_width": side,
        "input_feature_ratio": ratio,
    }
