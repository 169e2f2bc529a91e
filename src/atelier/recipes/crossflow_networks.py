"""Which networks a CrossFlow configuration means: the published ones, their other combinations, and the twins'."""

from typing import TYPE_CHECKING, Any

from atelier.errors import ConfigError
from atelier.models.crossflow.configs import RELEASED, CrossFlowConfig

if TYPE_CHECKING:
    from atelier.recipes.crossflow import Config

SHRINK = 4
"""The twins' autoencoder makes one latent pixel of 4 × 4."""
CLIP_TWIN, T5_TWIN = 128, 96
"""Widths of the twins' language models: unlike, as the published ones' are."""
TEXT = {"tokens": 16, "num_layers": 2, "num_heads": 4, "hidden": 128, "num_reductions": 1, "dropout": 0.0}
TOWER = {"channels": 4, "patch": 2, "width": 64, "layers": 2, "heads": 4}
TWIN_GRID = 4
"""The side of the twins' transformer stage, at either resolution (the published ones': 16)."""


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
    return CrossFlowConfig("dit", flow, dimr.text, dimr.latent_shape)


def twin(resolution: int, language_model: str, backbone: str) -> CrossFlowConfig:
    """The miniature of a backbone for canvases of ``resolution`` pixels: 32 stands for 256 px, 64 for 512 px.

    DiMR has two stages for latents of up to 8, and three above, as the published ones have at 256 and 512 px.

    Raises:
        ConfigError: the resolution is no multiple of what the network divides it by.
    """
    if resolution % (2 * TWIN_GRID * SHRINK):
        raise ConfigError(f"the twin cannot draw {resolution} px", f"use a multiple of {2 * TWIN_GRID * SHRINK}")
    side = resolution // SHRINK
    shape, text = (4, side, side), TEXT | {"width": T5_TWIN if language_model == "t5" else CLIP_TWIN}
    tower = TOWER | {"image_size": side}
    if backbone == "dit":
        flow: dict[str, Any] = {"latent_size": side, "patch_size": 2, "hidden_size": 128, "depth": 5, "num_heads": 4}
        return CrossFlowConfig("dit", flow, text, shape, tower)
    sides = [2 * TWIN_GRID]
    while sides[-1] < side:
        sides.append(2 * sides[-1])
    stages = [
        _transformer(side // TWIN_GRID),
        *(_convnext(48 >> n, each, side // each) for n, each in enumerate(sides)),
    ]
    coefficients = [1 / 2**n for n in reversed(range(len(stages)))]
    coefficients[0] = min(coefficients[0], 1 / 4)
    return CrossFlowConfig("dimr", {"stage_configs": stages, "loss_coeffs": coefficients}, text, shape, tower)


def _transformer(ratio: int) -> dict[str, Any]:
    return {
        "block_type": "TransformerBlock",
        "dim": 96,
        "hidden_dim": 192,
        "num_attention_heads": 4,
        "num_blocks": 5,
        "max_height": TWIN_GRID,
        "max_width": TWIN_GRID,
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
