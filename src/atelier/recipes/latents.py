"""Pictures to latents, as the encoders of all latent recipes need them."""

import functools
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from atelier.storage.digest import sha256_file, sha256_json


class LatentEncoder:
    """A base folder's autoencoder.

    The latent is the posterior's mean: Stable Diffusion's autoencoders have a standard deviation of about 1e-4 of it,
    and a drawn sample would freeze one draw for the whole training.
    """

    PIXELS_PER_PASS = 2**17
    """On a CPU the autoencoder is fastest on as many pixels as its activations fit the caches with."""

    def __init__(self, base: Path) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._folder = base / "vae"

    @functools.cached_property
    def vae(self) -> AutoencoderKL:
        """The autoencoder; opened when it is first used, which ready-made latents never do."""
        return AutoencoderKL.from_pretrained(self._folder).eval().requires_grad_(False).to(self.device)

    def shape(self, res: int) -> tuple[int, int, int]:
        """[C, h, w] of the latent of a square of ``res`` pixels."""
        config = AutoencoderKL.load_config(self._folder)
        side = res // 2 ** (len(config["block_out_channels"]) - 1)
        return config["latent_channels"], side, side

    @torch.no_grad()
    def __call__(self, images: np.ndarray) -> Tensor:
        """uint8 [B, res, res, 3] → scaled latents [B, C, h, w]."""
        mean, _ = self.moments(images).chunk(2, dim=1)
        return mean * self.vae.config["scaling_factor"]

    @torch.no_grad()
    def moments(self, images: np.ndarray) -> Tensor:
        """uint8 [B, res, res, 3] → the posterior's mean and log-variance, not scaled, [B, 2C, h, w]."""
        return torch.cat([self._moments(part) for part in torch.from_numpy(images).split(self._images(images))])

    def _images(self, images: np.ndarray) -> int:
        """Images in one pass of the autoencoder."""
        if self.device.type != "cpu":
            return len(images)
        return max(1, self.PIXELS_PER_PASS // (images.shape[1] * images.shape[2]))

    def _moments(self, images: Tensor) -> Tensor:
        x = images.to(self.device).permute(0, 3, 1, 2).float() / 127.5 - 1
        posterior: Tensor = self.vae.encode(x).latent_dist.parameters
        return posterior


def half(x: Tensor) -> np.ndarray:
    """A tensor as float16 array on the CPU."""
    return x.half().cpu().numpy()


def parts_digest(base: Path, parts: Iterable[str]) -> str:
    """The digest of every file in some of a base folder's parts: what an encoder's output depends on."""
    files = sorted(p for part in parts for p in (base / part).rglob("*") if p.is_file())
    return sha256_json({p.relative_to(base).as_posix(): sha256_file(p) for p in files})
