"""The velocity under classifier-free guidance by the null indicator."""

import math

import torch
from torch import Tensor

from atelier.errors import ConfigError
from atelier.models.crossflow.flow import FlowNetwork


class GuidedFlow:
    """v_null + guidance · (v_text − v_null), both halves computed as one batch.

    Args:
        flow: the network.
        guidance: 1 follows the text alone and costs half; 0 is the null velocity alone; above 1 exaggerates.
        dtype: what the network computes in.

    Raises:
        ConfigError: the guidance is infinite or no number.
    """

    def __init__(self, flow: FlowNetwork, guidance: float, dtype: torch.dtype = torch.float32) -> None:
        if not math.isfinite(guidance):
            raise ConfigError(f"a guidance of {guidance} is no number", "use 7, say")
        self.flow, self.guidance, self.dtype = flow, guidance, dtype

    def __call__(self, x: Tensor, time: float) -> Tensor:
        """x float32 [B, C, H, W] → velocity float32 [B, C, H, W]."""
        batch = x.shape[0]
        # One time for all, so that what depends on it alone is computed once.
        t = torch.full((1,), time, dtype=torch.float32, device=x.device)
        if self.guidance in (0.0, 1.0):
            null = torch.full((batch,), self.guidance == 0, device=x.device)
            return self.flow(x.to(self.dtype), t, null)[-1].float()
        both = x.to(self.dtype).repeat(2, 1, 1, 1)
        null = torch.arange(2 * batch, device=x.device) >= batch
        text, nothing = self.flow(both, t, null)[-1].float().chunk(2)
        return torch.lerp(nothing, text, self.guidance)
