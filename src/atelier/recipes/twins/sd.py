"""A Stable Diffusion 1.x in miniature: the same kinds of parts, sized so that two cores train it in minutes.

One text encoder whose last states the UNet reads, 1×1 convolutions around the attention, no conditions but text and
time, an autoencoder with f = 4. Attention is at the two lower of three levels (SD 1.x: at the three upper of four):
at the twin's upper level it would be half of the time.
"""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from diffusers import UNet2DConditionModel
from transformers import CLIPTokenizer

from atelier.recipes.sd_text import SDText
from atelier.recipes.twins import text
from atelier.recipes.twins.shape import Embeddings, TwinShape, make_scheduler

TEXT_WIDTH = 128
"""Channels of the text encoder."""


def make_unet(latent_size: int) -> UNet2DConditionModel:
    """A fresh UNet of SD 1.x's shape."""
    return UNet2DConditionModel(
        sample_size=latent_size,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(32, 64, 96),
        layers_per_block=1,
        attention_head_dim=(2, 4, 6),  # diffusers' historic name: the number of heads
        norm_num_groups=8,
        cross_attention_dim=TEXT_WIDTH,
    )


def _make_text(tokenizer: CLIPTokenizer, seed: int) -> Sequence[text.TextEncoder]:
    return text.make_encoders(tokenizer, TEXT_WIDTH, seed, projected=(False,))


def _open_text(folder: Path) -> Callable[[Sequence[str]], Embeddings]:
    encoder = SDText.load(folder)
    return lambda captions: {"prompt": encoder.prompts(captions)}


def _unet_arguments(embeddings: Embeddings, size: int) -> dict[str, Any]:
    return {"encoder_hidden_states": embeddings["prompt"]}


SHAPE = TwinShape(
    make_unet=make_unet,
    # SD's pipeline would set the offset itself, with a warning; with trailing timesteps it moves nothing.
    make_scheduler=functools.partial(make_scheduler, steps_offset=1),
    make_text=_make_text,
    open_text=_open_text,
    unet_arguments=_unet_arguments,
    empty_is_zeros=False,
    index={
        "_class_name": "StableDiffusionPipeline",
        "requires_safety_checker": False,
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "safety_checker": [None, None],
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
    },
)
