"""The twins' autoencoder: diffusers' AutoencoderKL at a size that two cores train in under a minute."""

from collections.abc import Callable

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional as F

from atelier.progress import Progress


def make_vae(sample_size: int) -> AutoencoderKL:
    """A fresh AutoencoderKL: f = 4, 4 latent channels, about 0.17 M parameters."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 16, 32),
        layers_per_block=1,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=sample_size,
    )


def train_vae(vae: AutoencoderKL, images: Callable[[int], Tensor], steps: int, batch: int, seed: int) -> float:
    """Trains the autoencoder, then sets its scaling factor so that latents have unit variance.

    Args:
        images: batch size → float images [B, 3, H, W] in [-1, 1].

    Returns:
        the reconstruction's PSNR in dB on fresh images.
    """
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=3e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=steps, pct_start=0.1)
    progress = Progress("autoencoder", steps, "steps")
    vae.train()
    for _ in range(steps):
        x = images(batch)
        posterior = vae.encode(x).latent_dist
        y = vae.decode(posterior.sample(generator=generator)).sample
        loss = F.mse_loss(y, x) + 0.1 * F.l1_loss(y, x) + 1e-5 * posterior.kl().mean() / x[0].numel() * 100
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        progress.advance(loss=loss.item())
    vae.eval()
    with torch.no_grad():
        x = images(512)
        latents = vae.encode(x).latent_dist.mean
        vae.register_to_config(scaling_factor=1.0 / float(latents.std()))
        error = F.mse_loss(vae.decode(latents).sample.clamp(-1, 1), x)
    return float(10 * torch.log10(4.0 / error))
