"""CrossFlow as its published code runs it, on the same weights: the side that ours is measured against.

By the description of that code, not from it: the time-dependent norms hold their time as state, which a walk over every
module writes before each forward pass (with a warning and a comparison each); blocks are recomputed in the backward
pass, and called through the same wrapper when sampling; guidance takes two passes; each training step decodes the
pictures for an image tower of 256 tokens; the moving average is a loop over the parameters.
"""

import copy
import io
import warnings
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from atelier.models.crossflow.model import CrossFlow
from atelier.models.crossflow.norms import TimeDependentParameter
from atelier.recipes import crossflow_losses as losses


class StatefulParameter(nn.Module):
    """A time-dependent parameter that remembers its time."""

    def __init__(self, own: TimeDependentParameter) -> None:
        super().__init__()
        self.param0, self.param1 = own.param0, own.param1
        self.nodecay_weight, self.nodecay_bias = own.nodecay_weight, own.nodecay_bias
        self.log_snr: Tensor | None = None
        self.same = False

    def seed(self, log_snr: Tensor) -> None:
        warnings.warn("the time of this parameter is set", stacklevel=1)
        self.same = bool(torch.all(log_snr == log_snr[0]))
        self.log_snr = log_snr[:1] if self.same else log_snr

    def forward(self, _: Tensor) -> Tensor:
        assert self.log_snr is not None
        tau = self.log_snr[:, None, None] / 4
        share = torch.sigmoid((1 + self.nodecay_weight) * tau + self.nodecay_bias)
        return self.param1 + share * (self.param0 - self.param1)


class _Recomputed(nn.Module):
    """A block behind activation checkpointing, always."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, *given: Any) -> Any:
        return checkpoint(self.block, *given, use_reentrant=False)


class PlainFlow(nn.Module):
    """The flow network with stateful norms and recomputed blocks; shares the weights of the one it is made from."""

    def __init__(self, flow: Any) -> None:
        super().__init__()
        self.flow = copy.deepcopy(flow)
        for module in list(self.flow.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, TimeDependentParameter):
                    setattr(module, name, StatefulParameter(child))
        for stage in getattr(self.flow, "stages", [self.flow]):
            stage.blocks = nn.ModuleList(_Recomputed(block) for block in stage.blocks)
        self.latent_shape, self.loss_coeffs = flow.latent_shape, flow.loss_coeffs

    def forward(self, x: Tensor, t: Tensor, null: Tensor) -> list[Tensor]:
        log_snr = 4 - 8 * t
        for module in self.flow.modules():
            if isinstance(module, StatefulParameter):
                module.seed(log_snr)
        velocities: list[Tensor] = self.flow(x, t, null)
        return velocities


class PlainSampler:
    """Fifty-step style Euler with guidance in two passes."""

    def __init__(self, model: CrossFlow) -> None:
        self.flow = PlainFlow(model.flow).eval()

    @torch.no_grad()
    def __call__(self, x: Tensor, steps: int, guidance: float) -> Tensor:
        times = torch.linspace(0, 1 - 1e-5, steps)
        for time in times:
            t = time.expand(len(x))
            text = self.flow(x, t, torch.zeros(len(x), dtype=torch.bool))[-1]
            null = self.flow(x, t, torch.ones(len(x), dtype=torch.bool))[-1]
            x = x + (null + guidance * (text - null)) * (1 - 1e-5) / steps
        return x


class PlainTrainer:
    """A training step: pictures decoded, tower of pixels, AdamW, a moving average by a loop.

    Args:
        model: its image tower reads pixels.
    """

    def __init__(self, model: CrossFlow, lr: float, scaling_factor: float) -> None:
        self.model, self.flow, self.scaling_factor = model, PlainFlow(model.flow).train(), scaling_factor
        self.parts = nn.ModuleList([self.flow, model.context_encoder, model.open_clip, model.open_clip_output])
        self.optimizer = torch.optim.AdamW(self.parts.parameters(), lr=lr, betas=(0.9, 0.9), weight_decay=0.03)
        self.average = {name: p.detach().clone() for name, p in self.parts.named_parameters()}

    def __call__(self, samples: list[dict[str, Any]]) -> float:
        size = len(samples)
        moments = torch.from_numpy(np.stack([sample["upstream_moments"] for sample in samples])).float()
        text = torch.from_numpy(np.stack([sample["whole_text"] for sample in samples])).float()
        mask = torch.from_numpy(np.stack([sample["whole_mask"] for sample in samples]))
        pixels = np.stack([np.asarray(Image.open(io.BytesIO(sample["jpeg"])).convert("RGB")) for sample in samples])
        mean, log_var = moments.chunk(2, dim=1)
        x = self.scaling_factor * (mean + torch.exp(0.5 * log_var) * torch.randn_like(mean))
        posterior = self.model.context_encoder(text, mask)
        z = posterior.sample(torch.randn_like(posterior.mean))
        t = torch.randn(size).sigmoid()
        x1, null = losses.swapped_among_nulls(x, torch.rand(size) < 0.1)
        path = losses.interpolant(z.unflatten(1, x.shape[1:]), x1, t)
        flow = losses.flow_loss(self.flow, path, t, null, torch.float32)
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
        seen, scale = self.model.image_latents(images)
        seen, said = nn.functional.normalize(seen, dim=-1), nn.functional.normalize(z, dim=-1)
        everyone = losses.Everyone
        contrastive = losses.contrastive_loss(seen, said, everyone(seen, 0), everyone(said, 0), scale)
        loss = (flow.per_sample + contrastive + losses.KL_WEIGHT * losses.kl_loss(posterior)).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            for name, parameter in self.parts.named_parameters():
                self.average[name].mul_(0.9999).add_(parameter.detach(), alpha=1 - 0.9999)
        return float(loss)
