"""Arithmetic on text latents: between two prompts, and sums and differences of several."""

from collections.abc import Sequence

import torch
from torch import Tensor

from atelier.errors import ConfigError


def interpolate(first: Tensor, last: Tensor, count: int) -> Tensor:
    """``count`` latents on the line between two, ends included: [...] → [count, ...].

    Raises:
        ConfigError: fewer than two.
    """
    if count < 2:
        raise ConfigError(f"{count} latents are no line between two", "give at least 2")
    share = torch.arange(count, device=first.device, dtype=first.dtype) / (count - 1)
    share = share.view(-1, *[1] * first.dim())
    return first * (1 - share) + last * share


def combine(start: Tensor, added: Sequence[Tensor] = (), removed: Sequence[Tensor] = ()) -> Tensor:
    """start + added − removed, brought back to mean 0 and deviation 1 over the whole latent.

    Raises:
        ConfigError: the result is the same everywhere (a latent minus itself).
    """
    total = start + sum(added) - sum(removed)
    deviation = total.std()
    if not deviation > 1e-6:
        raise ConfigError("the sum of these prompts is nothing", "do not subtract the prompt that you start from")
    return (total - total.mean()) / deviation
