"""Grounded UNets with random weights at published and tiny sizes, and the synthetic batches that they are fed."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from atelier.models.grounded_unet import adapter_parameters, attach, freeze_base
from atelier.recipes.denoising import NoiseSchedule, weighted_mse
from atelier.recipes.twins.sdxl import make_unet
from atelier.training.protocol import Draws

_SD14 = {
    "sample_size": 64, "in_channels": 4, "out_channels": 4, "cross_attention_dim": 768, "attention_head_dim": 8,
    "block_out_channels": (320, 640, 1280, 1280), "layers_per_block": 2,
}  # fmt: skip
_SDXL = {
    "sample_size": 128, "in_channels": 4, "out_channels": 4, "cross_attention_dim": 2048,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (320, 640, 1280), "layers_per_block": 2, "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20), "use_linear_projection": True, "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
}  # fmt: skip
_CLIP_L = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
}  # fmt: skip
_CLIP_BIG_G = {
    "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20,
}  # fmt: skip
_CLIP_TINY = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
}  # fmt: skip


@dataclass(frozen=True)
class Size:
    """One model at one resolution.

    Attributes:
        config: of the stock UNet.
        text: configurations of its text encoders, whose widths add up to the UNet's cross_attention_dim.
        vae_channels: of the autoencoder's levels; the latent is 2^(levels − 1) times smaller.
        resolution: pixels.
        batches: the ladder's common batch, then the larger ones of its last rungs.
        bar: img/s on one H200 that are 40 % MFU.
    """

    config: dict[str, Any]
    text: tuple[dict[str, Any], ...]
    vae_channels: tuple[int, ...]
    resolution: int
    boxes: int
    tokens: int
    batches: tuple[int, ...]
    bar: float | None

    @property
    def latent(self) -> int:
        """Side of the latent."""
        return int(self.resolution // 2 ** (len(self.vae_channels) - 1))


_VAE = (128, 256, 512, 512)
SIZES = {
    "sd14-512": Size(_SD14, (_CLIP_L,), _VAE, 512, 30, 77, (4, 32, 64, 128), 150.0),
    "sdxl-512": Size(_SDXL, (_CLIP_L, _CLIP_BIG_G), _VAE, 512, 32, 77, (8, 16, 32, 64), 62.0),
    "sdxl-1024": Size(_SDXL, (_CLIP_L, _CLIP_BIG_G), _VAE, 1024, 32, 77, (2, 4, 8, 16), 15.0),
}
"""What the bars are stated for."""


def tiny(part: str) -> Size:
    """The part's stand-in on a CPU: the laptop twin's sizes, the same kinds of layers."""
    if part.startswith("sdxl"):
        config = {name: value for name, value in make_unet(16).config.items() if not name.startswith("_")}
        return Size(config, (_CLIP_TINY, _CLIP_TINY), (16, 32, 32), 64, 4, 16, (2, 4), None)
    config = {
        "sample_size": 16, "in_channels": 4, "out_channels": 4, "cross_attention_dim": 64, "attention_head_dim": 4,
        "block_out_channels": (32, 64), "layers_per_block": 1, "norm_num_groups": 8,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }  # fmt: skip
    return Size(config, (_CLIP_TINY,), (16, 32, 32), 64, 4, 16, (2, 4), None)


def build_unet(size: Size, device: torch.device, seed: int = 0) -> UNet2DConditionModel:
    """The grounded UNet with a frozen base; gates ajar, so that no branch is multiplied by zero."""
    torch.manual_seed(seed)
    with torch.device(device):
        unet = attach(UNet2DConditionModel.from_config(size.config))
    freeze_base(unet)
    with torch.no_grad():
        for name, parameter in adapter_parameters(unet).items():
            if ".alpha_" in name:
                parameter.fill_(0.3)
    return unet.train()


def build_encoders(size: Size, device: torch.device, dtype: torch.dtype) -> Callable[[Tensor, Tensor], Any]:
    """(pictures [B, 3, R, R], token numbers [B, T]) → latents and prompt, computed as without shards."""
    with torch.device(device):
        texts = [
            CLIPTextModel(CLIPTextConfig(**config, max_position_embeddings=size.tokens)).to(dtype).eval()
            for config in size.text
        ]
        vae = AutoencoderKL(
            block_out_channels=size.vae_channels,
            down_block_types=("DownEncoderBlock2D",) * len(size.vae_channels),
            up_block_types=("UpDecoderBlock2D",) * len(size.vae_channels),
            layers_per_block=2, latent_channels=4, norm_num_groups=min(32, size.vae_channels[0]),
        ).to(dtype).eval()  # fmt: skip

    @torch.no_grad()
    def encode(pictures: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        latents = vae.encode(pictures.to(dtype)).latent_dist.mean
        return latents, torch.cat([text(numbers).last_hidden_state for text in texts], dim=-1)

    return encode


def host_batch(size: Size, rows: int, seed: int = 0, pinned: bool = False) -> dict[str, Tensor]:
    """What the loader hands over for ``rows`` samples: latents, embeddings, boxes; pictures and tokens beside them.

    The latents are smooth random fields, so that there is something to learn about them.
    """
    generator = torch.Generator().manual_seed(seed)
    width, side = size.config["cross_attention_dim"], size.latent
    coarse = torch.randn(rows, 4, max(side // 8, 1), max(side // 8, 1), generator=generator)
    boxes = torch.rand(rows, size.boxes, 4, generator=generator).sort(-1).values
    batch = {
        "latents": nn.functional.interpolate(coarse, (side, side), mode="bilinear"),
        "prompt": torch.randn(rows, size.tokens, width, generator=generator),
        "boxes": boxes,
        "masks": torch.ones(rows, size.boxes),
        "phrases": torch.randn(rows, size.boxes, width, generator=generator),
        "pictures": torch.rand(rows, 3, size.resolution, size.resolution, generator=generator) * 2 - 1,
        "numbers": torch.randint(0, 1000, (rows, size.tokens), generator=generator),
    }
    if size.config.get("addition_embed_type") == "text_time":
        pooled = size.config["projection_class_embeddings_input_dim"] - 6 * size.config["addition_time_embed_dim"]
        batch["pooled"] = torch.randn(rows, pooled, generator=generator)
        batch["time_ids"] = torch.tensor([[size.resolution, size.resolution, 0, 0, size.resolution, size.resolution]])
        batch["time_ids"] = batch["time_ids"].repeat(rows, 1).float()
    return {name: value.pin_memory() for name, value in batch.items()} if pinned else batch


def noise_schedule() -> NoiseSchedule:
    """Stable Diffusion's betas, predicting the noise."""
    return NoiseSchedule.of(DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"))


def loss(unet: nn.Module, schedule: NoiseSchedule, batch: dict[str, Tensor], draws: Draws) -> Tensor:
    """The denoising loss of a batch on the device; noise and timesteps drawn as the engine's recipes draw them."""
    dtype = next(unet.parameters()).dtype
    x = batch["latents"].float()
    noised, target = schedule.noised(x, draws.normal(x.shape[1:]), timesteps := schedule.timesteps(draws))
    conditions = {}
    if "pooled" in batch:
        conditions["added_cond_kwargs"] = {"text_embeds": batch["pooled"].to(dtype), "time_ids": batch["time_ids"]}
    prediction = unet(
        noised.to(dtype),
        timesteps,
        batch["prompt"].to(dtype),
        cross_attention_kwargs={
            "gligen": {
                "boxes": batch["boxes"], "masks": batch["masks"],
                "positive_embeddings": batch["phrases"].to(dtype),
            }
        },
        **conditions,
    ).sample  # fmt: skip
    return weighted_mse(prediction, target).mean()
