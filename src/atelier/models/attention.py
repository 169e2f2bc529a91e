"""Attention in training: torch's fused kernels, or plain matrix products where those are quicker."""

import torch
from torch import Tensor
from torch.nn import functional as F

PLAIN_UP_TO = 128
"""Keys up to which plain products are the quicker ones on a CPU: longer rows of scores leave its nearest caches."""


def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """softmax(q kᵀ / √d) v of [B, H, Q, d] over [B, H, T, d].

    Without gradients always torch's own, to the bits of diffusers' layers. In training on a CPU torch's kernels compute
    the gradients of keys and values where nobody asks for them too (a frozen block's text): plain products take half of
    the flash kernel's time there. Elsewhere they take 0.75 to 0.9 of what torch's fallback takes, which the engine
    has on a CPU (``training/runtime.py``), and 0.8 to 1.3 of the flash kernel's (forward and backward, processor time,
    64 to 96 keys, heads of 8 and 16).
    """
    if queries.device.type != "cpu" or not torch.is_grad_enabled() or keys.shape[-2] > PLAIN_UP_TO:
        return F.scaled_dot_product_attention(queries, keys, values)
    scores = torch.matmul(queries * queries.shape[-1] ** -0.5, keys.transpose(-1, -2))
    return torch.matmul(scores.softmax(dim=-1), values)
