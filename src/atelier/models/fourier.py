"""Fourier features of boxes (GLIGEN, arXiv 2301.07093, section 3; temperature 100, no 2π factor)."""

import torch
from torch import Tensor


def fourier_embedding(boxes: Tensor, frequencies: int = 8, temperature: float = 100.0) -> Tensor:
    """Embeds box corners as sines and cosines of geometrically spaced frequencies.

    Always computed in float32: in fp16 the highest frequency is off by up to 0.043, in bf16 by 0.237.

    Args:
        boxes: [..., 4] normalised xyxy in [0, 1].
        frequencies: F; frequency k is ``temperature ** (k / F)``.

    Returns:
        [..., F*2*4] float32, flattened from [frequency][sin, cos][x0, y0, x1, y1].
    """
    exponents = torch.arange(frequencies, dtype=torch.float32, device=boxes.device) / frequencies
    angles = (temperature**exponents)[:, None] * boxes.float().unsqueeze(-2)  # [..., F, 4]
    return torch.stack((angles.sin(), angles.cos()), dim=-2).flatten(-3)
