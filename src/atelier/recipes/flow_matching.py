"""What the recipes of straight flows share: points of the path, noise levels and how they are drawn, loss weights.

Rectified flow (arXiv 2209.03003) goes from data at σ = 0 to noise at σ = 1; CrossFlow goes the same straight way from a
text's latent to an image's.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from atelier.errors import ConfigError
from atelier.training.protocol import Draws

Scheme = Literal["uniform", "sigmoid", "logit_normal", "mode"]
Weighting = Literal["none", "sigma_sqrt", "cosmap"]
MODE_SCALE = 1.29
"""Of ``mode``; diffusers' default."""


class Interpolant(NamedTuple):
    """A point of the straight path and the velocity along it, [B, C, H, W] each."""

    x: Tensor
    velocity: Tensor


def interpolant(start: Tensor, end: Tensor, t: Tensor, remainder: float = 0.0) -> Interpolant:
    """x = (1 − (1 − remainder) t) start + t end at times t [B]; velocity = end − (1 − remainder) start.

    Noising is this with latents as ``start``, noise as ``end``, σ as ``t``: a rectified flow's target is ε − x₀.
    """
    t = t.view(-1, *[1] * (start.dim() - 1))
    return Interpolant((1 - (1 - remainder) * t) * start + t * end, end - (1 - remainder) * start)


def sigma_table(count: int = 1000, shift: float = 1.0) -> Tensor:
    """The noise levels of diffusers' FlowMatchEulerDiscreteScheduler for training, 1 down to 1/count: float32 [count].

    Both FLUX.1 have ``shift`` 1: dev's scheduler shifts dynamically, which leaves this table alone (its shift of 3 is
    never used), schnell's says 1.
    """
    sigmas = torch.arange(count, 0, -1, dtype=torch.float32) / count
    return shift * sigmas / (1 + (shift - 1) * sigmas)


def positions(scheme: Scheme, draw: Tensor, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """Where in a table of noise levels, in (0, 1), a draw falls: 0 the noisiest; like ``draw``.

    Args:
        scheme: ``uniform`` and ``mode`` (SD3, arXiv 2403.03206, eq. 20) take uniform draws, ``logit_normal`` and
            ``sigmoid`` standard normal ones. ``sigmoid`` is ai-toolkit's, ``logit_normal`` with mean 0 and std 1: it
            sorts 1000 such draws a step and picks one, which is one such draw.

    Raises:
        ConfigError: there is no such scheme.
    """
    if scheme == "uniform":
        return draw
    if scheme == "mode":
        return 1 - draw - MODE_SCALE * (torch.cos(torch.pi * draw / 2) ** 2 - 1 + draw)
    if scheme in ("logit_normal", "sigmoid"):
        return torch.sigmoid(draw if scheme == "sigmoid" else mean + std * draw)
    raise ConfigError(f"there is no timestep scheme {scheme!r}", "use uniform, sigmoid, logit_normal or mode")


def at(table: Tensor, position: Tensor) -> Tensor:
    """The table's noise levels at positions in [0, 1]: [B]."""
    return table[(position * len(table)).long().clamp(0, len(table) - 1)]


def drawn_sigmas(draws: Draws, scheme: Scheme, table: Tensor, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """A noise level a sample [B], float32.

    ``sigmoid`` takes no table: ai-toolkit's levels are continuous.
    """
    draw: Callable[[], Tensor] = draws.uniform if scheme in ("uniform", "mode") else draws.normal
    position = positions(scheme, draw(), mean, std)
    return 1 - position if scheme == "sigmoid" else at(table.to(position.device), position)


def sigmoid_timesteps(draw: Tensor, count: int = 1000) -> Tensor:
    """ai-toolkit's table of a step from standard normal draws [N]: timesteps in (0, count), the noisiest first."""
    return ((1 - torch.sigmoid(draw)) * count).sort(descending=True).values


def loss_weights(weighting: Weighting, sigmas: Tensor) -> Tensor:
    """The weight of each sample's loss [B], as diffusers has it for SD3 (arXiv 2403.03206).

    Args:
        weighting: ``none`` 1; ``sigma_sqrt`` σ⁻² (the name is diffusers'); ``cosmap`` 2 / (π (1 − 2σ + 2σ²)).

    Raises:
        ConfigError: there is no such weighting (diffusers takes any other name for none).
    """
    if weighting == "none":
        return torch.ones_like(sigmas)
    if weighting == "sigma_sqrt":
        return sigmas**-2.0
    if weighting == "cosmap":
        return 2 / (torch.pi * (1 - 2 * sigmas + 2 * sigmas**2))
    raise ConfigError(f"there is no loss weighting {weighting!r}", "use none, sigma_sqrt or cosmap")


def standardised(noise: Tensor) -> Tensor:
    """ai-toolkit's noise: each channel of each sample divided by its own standard deviation, [B, C, H, W].

    Only for parity: every channel then has exactly one spread, which the noise that a sampler starts from has not.
    """
    return noise / (noise.std((2, 3), keepdim=True) + 1e-6)
