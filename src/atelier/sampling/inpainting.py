"""Inpainting with boxes: what lies outside them stays as it is in a given picture.

Before every step the latents outside the boxes are replaced by the picture's own, noised to that step's level; after
the last one by the picture's own latents as they are. Unlike diffusers, widths go with x and heights with y, the
picture is cut to the size asked for and not to a square, and the noise is the start noise, so that a generator
decides everything.
"""

import functools
from typing import Any

import torch
from diffusers.utils.torch_utils import get_module_execution_device
from PIL import Image, ImageOps
from torch import Tensor

from atelier.errors import ConfigError
from atelier.sampling.layout_input import Boxes


def keep_mask(boxes: Boxes, height: int, width: int) -> Tensor:
    """[1, height, width]: 0 inside the boxes, 1 elsewhere. Every box gets at least one element.

    Args:
        boxes: normalised xyxy.
        height, width: of the latents.
    """
    mask = torch.ones(1, height, width)
    for x0, y0, x1, y1 in boxes:
        left, top = min(int(x0 * width), width - 1), min(int(y0 * height), height - 1)
        mask[:, top : max(int(y1 * height), top + 1), left : max(int(x1 * width), left + 1)] = 0
    return mask


def fit(image: Image.Image, height: int, width: int) -> Tensor:
    """The picture's centre at the asked-for aspect, scaled: [3, height, width] in [-1, 1]."""
    if not isinstance(image, Image.Image):
        raise ConfigError(
            f"gligen_inpaint_image is a {type(image).__name__}", "give a PIL image, or a list of one a prompt"
        )
    cut = ImageOps.fit(image.convert("RGB"), (width, height), Image.Resampling.LANCZOS)
    pixels = torch.frombuffer(bytearray(cut.tobytes()), dtype=torch.uint8).reshape(height, width, 3)
    return pixels.permute(2, 0, 1).float() / 127.5 - 1


def encode(vae: Any, image: Image.Image, height: int, width: int) -> Tensor:
    """The picture's scaled latents [1, C, h, w], float32; the posterior's mode, so nothing is drawn."""
    pixels = fit(image, height, width)[None].to(get_module_execution_device(vae), vae.dtype)
    shift = getattr(vae.config, "shift_factor", None) or 0.0
    return ((vae.encode(pixels).latent_dist.mode() - shift) * vae.config.scaling_factor).float()


class Inpainting:
    """One run's picture and mask, a row a picture that is made.

    Args:
        latents: [B, C, h, w] of the given pictures.
        mask: [B, 1, h, w]; 1 is kept.
    """

    def __init__(self, latents: Tensor, mask: Tensor) -> None:
        self.latents, self.mask = latents, mask
        self._noise: Tensor | None = None

    @property
    def channels(self) -> Tensor:
        """[B, C + 1, h, w]: what an inpainting UNet of GLIGEN reads behind the noisy latents, in its order."""
        return torch.cat((self.latents * self.mask, self.mask), dim=1)

    def start(self, latents: Tensor, scheduler: Any) -> Tensor:
        """The first latents (noise times ``init_noise_sigma``) with the picture outside the boxes."""
        self._noise = latents / scheduler.init_noise_sigma
        return self._blend(latents, scheduler, 0)

    def watch(self, scheduler: Any) -> None:
        """Makes a run's own scheduler blend after each of its steps."""
        plain, done = scheduler.step, 0

        @functools.wraps(plain)
        def step(
            output: Tensor, timestep: Any, sample: Tensor, *args: Any, return_dict: bool = True, **kwargs: Any
        ) -> Any:
            nonlocal done
            done += 1
            made = plain(output, timestep, sample, *args, return_dict=return_dict, **kwargs)
            if return_dict:
                made.prev_sample = self._blend(made.prev_sample, scheduler, done)
                return made
            return (self._blend(made[0], scheduler, done), *made[1:])

        vars(scheduler)["step"] = step

    def _blend(self, latents: Tensor, scheduler: Any, step: int) -> Tensor:
        """``latents`` inside the boxes, the picture at the noise of ``step`` outside."""
        original, mask = self.latents.to(latents), self.mask.to(latents)
        if step < len(scheduler.timesteps):
            assert self._noise is not None, "a run begins with start()"
            level = scheduler.timesteps[step : step + 1].to(latents.device)
            original = scheduler.add_noise(original, self._noise.to(latents), level)
        return original * mask + latents * (1 - mask)
