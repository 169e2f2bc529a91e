"""A FLUX of a few thousand parameters, all of whose layers differ in their shapes' ratios as the real ones do."""

from typing import Any

import torch
from diffusers import FluxTransformer2DModel

CONFIG: dict[str, Any] = {
    "patch_size": 1,
    "in_channels": 16,
    "num_layers": 2,
    "num_single_layers": 2,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 24,
    "pooled_projection_dim": 20,
    "guidance_embeds": True,
    "axes_dims_rope": (4, 6, 6),
}


def tiny_flux(**changed: Any) -> FluxTransformer2DModel:
    """A fresh one, the same each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: FluxTransformer2DModel = FluxTransformer2DModel.from_config(CONFIG | changed)
    return model.eval()


def inputs() -> dict[str, torch.Tensor]:
    """What ``velocity`` takes beside the model."""
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    return {
        "noisy": normal(2, 4, 8, 12),
        "sigmas": torch.tensor([0.2, 0.9]),
        "text": normal(2, 5, 24),
        "pooled": normal(2, 20),
        "guidance": torch.tensor([3.5, 1.0]),
    }
