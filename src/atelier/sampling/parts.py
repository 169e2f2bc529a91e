"""A sampling run's own view of the UNet and the VAE.

diffusers' sampling loops call ``self.unet`` and ``self.vae``. Given these in their place, the stock loop samples a
grounded picture: which step is grounded, and how strongly, is counted here and not switched on the UNet, which
other runs may share. Anything else that is asked of them is answered by the module that they wrap.
"""

from typing import Any

import torch
from diffusers.configuration_utils import FrozenDict
from torch import Tensor, nn

from atelier.models.gligen import ScaledTokens
from atelier.models.view import View
from atelier.sampling.schedule import grounding_scales


class RunUNet(View):
    """Counts a run's steps and hands grounding tokens, extra channels and the right precision to the UNet.

    Args:
        unet: a UNet that carries our fusers.
        scheduler: the run's own; its timesteps say how many steps there are.
        tokens: grounding tokens of the whole batch, as guidance lays it out; None: nothing is grounded.
        grounded: [B, 1, 1] of 1 and 0, where some samples of the batch have no boxes: for those the fusers are the
            identity, so that a picture does not depend on its neighbours.
        beta, decay: as in ``grounding_scales``.
        extra: [B, C, H, W] channels behind the noisy latents of an inpainting UNet.
    """

    def __init__(
        self,
        unet: nn.Module,
        scheduler: Any,
        tokens: Tensor | None = None,
        grounded: Tensor | None = None,
        beta: float = 0.0,
        decay: float = 0.0,
        extra: Tensor | None = None,
    ) -> None:
        super().__init__(unet)
        config: Any = unet.config
        # The loop draws as many latent channels as the configuration says; the extra ones are no latents.
        self.config = FrozenDict(
            {**config, "in_channels": config["in_channels"] - (0 if extra is None else extra.shape[1])}
        )
        self._scheduler, self._tokens, self._grounded, self._extra = scheduler, tokens, grounded, extra
        self._beta, self._decay = beta, decay
        self._scales: list[float] = []
        self._step = 0
        # Asked for once: diffusers walks through all modules for it.
        self._dtype: torch.dtype = unet.dtype  # type: ignore[assignment]

    def _grounding(self, device: torch.device) -> dict[str, Any] | None:
        """The UNet's ``gligen`` argument at this step, or None where the fusers are to be skipped."""
        if not self._scales:
            self._scales = grounding_scales(len(self._scheduler.timesteps), self._beta, self._decay)
        scale = self._scales[self._step] if self._step < len(self._scales) else 0.0
        if self._tokens is None or scale == 0:
            return None
        self._tokens = self._tokens.to(device)
        if self._grounded is not None:
            return {"objs": ScaledTokens(self._tokens, scale * self._grounded.to(self._tokens))}
        return {"objs": self._tokens if scale == 1 else ScaledTokens(self._tokens, scale)}

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        *,
        timestep_cond: Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        added_cond_kwargs: dict[str, Any] | None = None,
        **others: Any,
    ) -> Any:
        """As ``UNet2DConditionModel.forward``; with ``return_dict=False``, what the loops ask for."""
        grounding = self._grounding(sample.device)
        self._step += 1
        dtype = self._dtype
        own = {**(cross_attention_kwargs or {})} | ({"gligen": grounding} if grounding else {})
        given = sample if self._extra is None else torch.cat((sample, self._extra.to(sample)), dim=1)
        output = self.inner(
            given.to(dtype),
            timestep,
            _cast(encoder_hidden_states, dtype),
            timestep_cond=_cast(timestep_cond, dtype),
            cross_attention_kwargs=own or None,
            added_cond_kwargs=_cast(added_cond_kwargs, dtype),
            **others,
        )
        return tuple(_cast(part, sample.dtype) for part in output) if isinstance(output, tuple) else output


class RunVAE(View):
    """Decodes latents of any precision in the VAE's own."""

    def decode(self, latents: Tensor, *args: Any, **kwargs: Any) -> Any:
        """As ``AutoencoderKL.decode``."""
        return self.inner.decode(latents.to(self.inner.dtype), *args, **kwargs)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    """Floating tensors in ``dtype``, inside dictionaries and lists too."""
    if isinstance(value, Tensor):
        # Size ids stay as they are: half precision would round sizes above 2048; their embedding is cast by the UNet.
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, dict):
        return {name: part if name == "time_ids" else _cast(part, dtype) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_cast(part, dtype) for part in value)
    return value
