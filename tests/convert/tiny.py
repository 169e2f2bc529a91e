"""Tiny grounded UNets of each family, wide enough that their original form tells its own configuration."""

from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from atelier.convert import unet_folder
from atelier.convert.weights import of_state

CONFIGS: dict[str, dict[str, Any]] = {
    "SD1": {
        "sample_size": 64,
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
        "block_out_channels": [32, 64],
        "layers_per_block": 2,
        "cross_attention_dim": 24,
        "attention_head_dim": 8,
    },
    "SD2": {
        "sample_size": 64,
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
        "block_out_channels": [64, 128],
        "layers_per_block": 1,
        "cross_attention_dim": 32,
        "attention_head_dim": [1, 2],
        "use_linear_projection": True,
    },
    "SDXL": {
        "sample_size": 128,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
        "block_out_channels": [64, 128],
        "layers_per_block": 1,
        "transformer_layers_per_block": [1, 2],
        "cross_attention_dim": 48,
        "attention_head_dim": [1, 2],
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 1600,
    },
}


def config(family: str) -> dict[str, Any]:
    """The family's tiny UNet as ``config.json`` has it."""
    unet = UNet2DConditionModel(**CONFIGS[family])
    return {name: value for name, value in unet.config.items() if not name.startswith("_")}


def state(family: str, seed: int = 0) -> dict[str, Tensor]:
    """Weights of every parameter, all different from what a fresh model has."""
    generator = torch.Generator().manual_seed(seed)
    shapes = unet_folder.expected_shapes(CONFIGS[family])
    return {name: torch.randn(shape, generator=generator) for name, shape in sorted(shapes.items())}


def write_unet(folder: Path, family: str, seed: int = 0) -> dict[str, Tensor]:
    """A UNet folder (``config.json`` and weights); returns the weights."""
    made = state(family, seed)
    unet_folder.write(of_state(made), config(family), folder, 10**12)
    return made


def write_base(folder: Path, family: str, seed: int = 1) -> dict[str, Tensor]:
    """A pipeline folder with an ungrounded UNet and one other part; returns the UNet's weights."""
    from diffusers import DDIMScheduler

    torch.manual_seed(seed)
    unet = UNet2DConditionModel(**CONFIGS[family])
    unet.save_pretrained(folder / "unet")
    DDIMScheduler().save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text(
        '{"_class_name": "StableDiffusionPipeline", "scheduler": ["diffusers", "DDIMScheduler"], '
        '"unet": ["diffusers", "UNet2DConditionModel"], "safety_checker": [null, null]}'
    )
    return {name: tensor.clone() for name, tensor in unet.state_dict().items()}
