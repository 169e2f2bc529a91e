"""Which networks a CrossFlow configuration means: the published ones, and the twins'."""

from typing import TYPE_CHECKING, Any

from atelier.errors import ConfigError
from atelier.models.crossflow.configs import RELEASED, CrossFlowConfig

if TYPE_CHECKING:
    from atelier.recipes.crossflow import Config

SHRINK = 4
"""The twins' autoencoder makes one latent pixel of 4 × 4."""
TEXT = {"width": 128, "tokens": 16, "num_layers": 2, "num_heads": 4, "hidden": 128, "num_reductions": 1, "dropout": 0.0}
TOWER = {"channels": 3, "patch": 2 * SHRINK, "width": 64, "layers": 2, "heads": 4}
"""Of pixels, as the published one; on latents it has as many patches."""


def published(config: "Config") -> CrossFlowConfig:
    """The released model of a resolution, language model and backbone.

    Raises:
        ConfigError: there is none.
    """
    name = f"{config.resolution}px_{config.language_model}_{config.backbone}"
    if name not in RELEASED:
        raise ConfigError(f"CrossFlow has no model {name}", f"use one of {', '.join(RELEASED)}")
    return RELEASED[name]


def twin(resolution: int, backbone: str) -> CrossFlowConfig:
    """The miniature of a backbone for canvases of ``resolution`` pixels.

    Raises:
        ConfigError: the resolution is no multiple of what the network divides it by.
    """
    if resolution % (4 * SHRINK):
        raise ConfigError(f"the twin cannot draw {resolution} px", f"use a multiple of {4 * SHRINK}")
    side = resolution // SHRINK
    shape = (4, side, side)
    tower = TOWER | {"image_size": resolution}
    if backbone == "dit":
        flow: dict[str, Any] = {"latent_size": side, "patch_size": 2, "hidden_size": 128, "depth": 5, "num_heads": 4}
        return CrossFlowConfig("dit", flow, TEXT, shape, tower)
    low = {
        "block_type": "TransformerBlock",
        "dim": 96,
        "hidden_dim": 192,
        "num_attention_heads": 4,
        "num_blocks": 5,
        "max_height": side // 2,
        "max_width": side // 2,
        "input_feature_ratio": 2,
    }
    high = {
        "block_type": "ConvNeXtBlock",
        "dim": 48,
        "hidden_dim": 96,
        "kernel_size": 5,
        "num_blocks": 3,
        "max_height": side,
        "max_width": side,
        "input_feature_ratio": 1,
    }
    return CrossFlowConfig("dimr", {"stage_configs": [low, high], "loss_coeffs": [0.25, 1]}, TEXT, shape, tower)
