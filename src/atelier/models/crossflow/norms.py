"""Norms of CrossFlow: one over the text with the sample deviation, and DiMR's, whose scale depends on the time.

The time is an argument of every call. Nothing is written into a module, so one model serves several threads and a
compiled graph needs no guard on state.
"""

import torch
from torch import Tensor, nn


class SampleLayerNorm(nn.Module):
    """g · (x − mean) / (s + ε) + b, where s is the deviation with N − 1 in the denominator.

    Unlike ``nn.LayerNorm``, ε is added to the deviation and not to the variance.
    """

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.ones(dim))
        self.b = nn.Parameter(torch.zeros(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """x [..., d] → [..., d], computed in float32."""
        deviation, mean = torch.std_mean(x.float(), dim=-1, keepdim=True, correction=1)
        normed = (x.float() - mean) / (deviation + self.eps)
        return (self.g.float() * normed + self.b.float()).to(x.dtype)


class TimeDependentParameter(nn.Module):
    """A vector that goes from ``param1`` to ``param0`` along a sigmoid of the log signal-to-noise ratio.

    value(τ) = param1 + σ((1 + nodecay_weight) τ + nodecay_bias) · (param0 − param1)

    Args:
        dim: length of the vector.
        start: the value of both ends at the start.
    """

    def __init__(self, dim: int, start: float) -> None:
        super().__init__()
        self.param0 = nn.Parameter(torch.full((dim,), float(start)))
        self.param1 = nn.Parameter(torch.full((dim,), float(start)))
        self.nodecay_weight = nn.Parameter(torch.zeros(dim))
        self.nodecay_bias = nn.Parameter(torch.zeros(dim))

    def forward(self, tau: Tensor) -> Tensor:
        """tau float32 [T], a quarter of log SNR, T = B or 1 → [T, 1, d] float32."""
        share = torch.sigmoid((1 + self.nodecay_weight.float()) * tau[:, None, None] + self.nodecay_bias.float())
        return torch.lerp(self.param1.float(), self.param0.float(), share)


class TimeDependentRMSNorm(nn.Module):
    """scale(τ) · x / (‖x‖ / √d + ε)."""

    def __init__(self, dim: int, eps: float = 1e-8) -> None:
        super().__init__()
        self.scale = TimeDependentParameter(dim, start=1)
        self.eps = eps

    def forward(self, x: Tensor, tau: Tensor) -> Tensor:
        """x [B, N, d] → [B, N, d], computed in float32."""
        wide = x.float()
        root_mean_square = wide.square().mean(-1, keepdim=True).sqrt()
        return (self.scale(tau) * (wide / (root_mean_square + self.eps))).to(x.dtype)


class TimeDependentLayerNorm(nn.Module):
    """``nn.LayerNorm`` with time-dependent weight and bias."""

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = TimeDependentParameter(dim, start=1)
        self.bias = TimeDependentParameter(dim, start=0)
        self.eps = eps

    def forward(self, x: Tensor, tau: Tensor) -> Tensor:
        """x [B, N, d] → [B, N, d], computed in float32."""
        normed = nn.functional.layer_norm(x.float(), x.shape[-1:], eps=self.eps)
        return (self.weight(tau) * normed + self.bias(tau)).to(x.dtype)
