"""FLUX's tokens: 2 × 2 latents each, with their places.

Source: Black Forest Labs' FLUX.1 as diffusers' ``FluxPipeline`` calls it.
"""

import torch
from torch import Tensor

from atelier.errors import ConfigError

PATCH = 2
"""Latents a token's side; 16 pixels with FLUX's autoencoder."""


def pack(latents: Tensor) -> Tensor:
    """[B, C, H, W] → [B, H/2 · W/2, 4 C], tokens in reading order, a token's channels as (C, row, column).

    Raises:
        ConfigError: a side is odd.
    """
    batch, channels, height, width = latents.shape
    rows, columns = _token_grid(height, width)
    cut = latents.reshape(batch, channels, rows, PATCH, columns, PATCH)
    return cut.permute(0, 2, 4, 1, 3, 5).reshape(batch, rows * columns, channels * PATCH**2)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """The inverse of ``pack``: [B, N, 4 C] → [B, C, height, width].

    Args:
        height, width: of the latents.

    Raises:
        ConfigError: a side is odd, or these are another number of tokens.
    """
    batch, count, channels = tokens.shape
    rows, columns = _token_grid(height, width)
    if count != rows * columns:
        raise ConfigError(
            f"{count} tokens make no latents of {height} × {width}, which have {rows * columns}",
            "unpack to the size that was packed",
        )
    cut = tokens.reshape(batch, rows, columns, channels // PATCH**2, PATCH, PATCH)
    return cut.permute(0, 3, 1, 4, 2, 5).reshape(batch, channels // PATCH**2, height, width)


def image_ids(height: int, width: int, device: torch.device | str = "cpu") -> Tensor:
    """The places (0, row, column) of latents' tokens, float32 [H/2 · W/2, 3]; what the rotary embedding reads.

    Raises:
        ConfigError: a side is odd.
    """
    rows, columns = _token_grid(height, width)
    row, column = torch.meshgrid(
        torch.arange(rows, dtype=torch.float32, device=device),
        torch.arange(columns, dtype=torch.float32, device=device),
        indexing="ij",
    )
    return torch.stack([torch.zeros_like(row), row, column], dim=-1).reshape(rows * columns, 3)


def text_ids(length: int, device: torch.device | str = "cpu") -> Tensor:
    """The places of a prompt's tokens: all zero, float32 [length, 3]."""
    return torch.zeros(length, 3, device=device)


def _token_grid(height: int, width: int) -> tuple[int, int]:
    if height % PATCH or width % PATCH:
        raise ConfigError(
            f"latents of {height} × {width} make no tokens of {PATCH} × {PATCH}",
            "use pictures of whole 16 pixels a side",
        )
    return height // PATCH, width // PATCH
