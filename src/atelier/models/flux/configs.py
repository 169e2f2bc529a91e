"""The released transformers' configurations, to count and to check on meta tensors without a download."""

from typing import Any

import torch
from diffusers import FluxTransformer2DModel

DEV: dict[str, Any] = {
    "patch_size": 1,
    "in_channels": 64,
    "num_layers": 19,
    "num_single_layers": 38,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 768,
    "guidance_embeds": True,
    "axes_dims_rope": (16, 56, 56),
}
"""FLUX.1-dev: 11,901,408,320 parameters."""
SCHNELL: dict[str, Any] = DEV | {"guidance_embeds": False}
"""FLUX.1-schnell: 11,891,178,560 parameters."""


def on_meta(config: dict[str, Any]) -> FluxTransformer2DModel:
    """The transformer of a configuration without its weights."""
    with torch.device("meta"):
        return FluxTransformer2DModel.from_config(config)
