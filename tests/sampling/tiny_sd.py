"""A tiny Stable Diffusion 1.x with GLIGEN's layers and open gates, made from nothing."""

from pathlib import Path

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel

from atelier.models.grounded_unet import adapter_parameters, attach
from atelier.recipes.twins import make, text, vae
from atelier.sampling.gligen_sd import StableDiffusionGLIGENPipeline

BOX = [0.1, 0.2, 0.5, 0.6]


def make_unet(in_channels: int = 4, width: int = 32) -> UNet2DConditionModel:
    """A UNet of SD's shape at two levels; its fusers do something."""
    torch.manual_seed(3)
    unet = UNet2DConditionModel(
        sample_size=16,
        in_channels=in_channels,
        out_channels=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(16, 32),
        layers_per_block=1,
        attention_head_dim=2,
        norm_num_groups=8,
        cross_attention_dim=width,
    )
    attach(unet)
    for name, parameter in adapter_parameters(unet).items():
        if "alpha" in name:
            parameter.data.fill_(0.9)
    return unet.eval()


def make_scheduler() -> DDIMScheduler:
    """SD's own."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def make_pipeline(in_channels: int = 4) -> StableDiffusionGLIGENPipeline:
    """The whole pipeline, silent; its autoencoder has f = 4."""
    tokenizer = text.make_tokenizer(make.WORDS, make.TOKENS)
    encoder, _ = text.make_encoders(tokenizer, 32, seed=0)
    pipeline = StableDiffusionGLIGENPipeline(
        vae.make_vae(64).eval(), encoder.eval(), tokenizer, make_unet(in_channels), make_scheduler()
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def write(folder: Path) -> Path:
    """The pipeline as a diffusers folder."""
    make_pipeline().save_pretrained(folder)
    return folder
