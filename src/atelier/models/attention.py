"""Attention in training: torch's fused kernels, or plain matrix products where those are quicker."""

import torch
from torch import Tensor
from torch.nn import functional as F

PLAIN_UP_TO = 128
"""Keys up to which plain products are the quicker ones on a CPU: longer rows of scores leave its nearest caches."""


def attend(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q kᵀ / √d + mask) v of [B, H, Q, d] over [B, H, T, d]; the mask [B or 1, H or 1, Q, T] is added.

    Without gradients always torch's own, to the bits of diffusers' layers. In training on a CPU torch's kernels compute
    the gradients of keys and values where nobody asks for them too (a frozen block's text): plain products take half of
    the flash kernel's time there. Elsewhere they take 0.75 to 0.9 of what torch's fallback takes, which the engine
    has on a CPU (``training/runtime.py``), and 0.8 to 1.3 of the flash kernel's (forward and backward, processor time,
    64 to 96 keys, heads of 8 and 16).
    """
    if queries.device.type != "cpu" or not torch.is_grad_enabled() or keys.shape[-2] > PLAIN_UP_TO:
        mask = mask if mask is None else mask.to(queries.dtype)
        return F.scaled_dot_product_attention(queries, keys, values, mask)
    scores = torch.matmul(queries * queries.shape[-1] ** -0.5, keys.transpose(-1, -2))
    if mask is not None:
        scores = scores + mask
    return torch.matmul(scores.softmax(dim=-1), values)
