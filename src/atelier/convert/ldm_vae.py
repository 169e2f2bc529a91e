"""The autoencoder of Latent Diffusion (KL-f8) by diffusers names, and its configuration."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from atelier.errors import ConfigError

_RENAMED = (
    (r"^(encoder|decoder)\.mid\.block_([12])\.", lambda m: f"{m[1]}.mid_block.resnets.{int(m[2]) - 1}."),
    (r"^(encoder|decoder)\.mid\.attn_1\.norm\.", lambda m: f"{m[1]}.mid_block.attentions.0.group_norm."),
    (r"^(encoder|decoder)\.mid\.attn_1\.([qkv])\.", lambda m: f"{m[1]}.mid_block.attentions.0.to_{m[2]}."),
    (r"^(encoder|decoder)\.mid\.attn_1\.proj_out\.", lambda m: f"{m[1]}.mid_block.attentions.0.to_out.0."),
    (r"^encoder\.down\.(\d+)\.block\.(\d+)\.", lambda m: f"encoder.down_blocks.{m[1]}.resnets.{m[2]}."),
    (r"^encoder\.down\.(\d+)\.downsample\.conv\.", lambda m: f"encoder.down_blocks.{m[1]}.downsamplers.0.conv."),
    (r"\.norm_out\.", lambda m: ".conv_norm_out."),
    (r"\.nin_shortcut\.", lambda m: ".conv_shortcut."),
)


def config_of(ddconfig: Mapping[str, Any], embed_dim: int, scale_factor: float) -> dict[str, Any]:
    """``AutoencoderKL``'s configuration from LDM's.

    Raises:
        ConfigError: it has attention outside the middle, which KL-f8 has not.
    """
    if ddconfig.get("attn_resolutions"):
        raise ConfigError("an autoencoder with attn_resolutions is not KL-f8", "give Stable Diffusion's")
    levels = len(ddconfig["ch_mult"])
    return {
        "in_channels": ddconfig["in_channels"],
        "out_channels": ddconfig["out_ch"],
        "block_out_channels": [ddconfig["ch"] * times for times in ddconfig["ch_mult"]],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "layers_per_block": ddconfig["num_res_blocks"],
        "latent_channels": embed_dim,
        "sample_size": ddconfig["resolution"],
        "scaling_factor": scale_factor,
    }


def to_diffusers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """LDM's names → diffusers'; the middle's attention from 1 × 1 convolutions to linear layers."""
    levels = _levels(state)
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        ours = _renamed(name, levels)
        renamed[ours] = tensor[..., 0, 0] if ".attentions." in ours and tensor.dim() == 4 else tensor
    return renamed


def _levels(names: Iterable[str]) -> int:
    return 1 + max((int(found[1]) for name in names if (found := re.match(r"decoder\.up\.(\d+)\.", name))), default=0)


def _renamed(name: str, levels: int) -> str:
    # The decoder's levels are numbered from the image in LDM, in the order of computation in diffusers.
    found = re.match(r"^decoder\.up\.(\d+)\.(block|upsample)\.(.*)$", name)
    if found:
        level = levels - 1 - int(found[1])
        inner = f"resnets.{found[3]}" if found[2] == "block" else f"upsamplers.0.{found[3]}"
        name = f"decoder.up_blocks.{level}.{inner}"
    for pattern, by in _RENAMED:
        name = re.sub(pattern, by, name)
    return name
