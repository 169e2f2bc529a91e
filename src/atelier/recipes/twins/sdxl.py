"""An SDXL in miniature: the same kinds of parts, sized so that two cores train it in minutes.

Two text encoders side by side, pooled text and time ids through SDXL's ``text_time`` embedding, attention at the two
lower levels, an autoencoder with f = 4.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from transformers import CLIPTokenizer

from atelier.recipes.sdxl_text import SDXLText
from atelier.recipes.twins import text
from atelier.recipes.twins.shape import Embeddings, TwinShape, make_scheduler

__all__ = ["SHAPE", "TEXT_WIDTH", "make_scheduler", "make_unet"]

TEXT_WIDTH = 64
"""Channels of each of the two text encoders."""


def make_unet(latent_size: int) -> UNet2DConditionModel:
    """A fresh UNet of SDXL's shape."""
    return UNet2DConditionModel(
        sample_size=latent_size,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(32, 64, 96),
        layers_per_block=1,
        transformer_layers_per_block=1,
        attention_head_dim=(2, 4, 6),  # diffusers' historic name: the number of heads
        norm_num_groups=8,
        cross_attention_dim=2 * TEXT_WIDTH,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=16,
        projection_class_embeddings_input_dim=6 * 16 + TEXT_WIDTH,
    )


def _make_text(tokenizer: CLIPTokenizer, seed: int) -> Sequence[text.TextEncoder]:
    return text.make_encoders(tokenizer, TEXT_WIDTH, seed, projected=(False, True))


def _open_text(folder: Path) -> Callable[[Sequence[str]], Embeddings]:
    encoders = SDXLText.load(folder)

    def embed(captions: Sequence[str]) -> Embeddings:
        prompt, pooled = encoders.prompts(captions)
        return {"prompt": prompt, "pooled": pooled}

    return embed


def _unet_arguments(embeddings: Embeddings, size: int) -> dict[str, Any]:
    pooled = embeddings["pooled"]
    ids = torch.tensor([size, size, 0, 0, size, size], dtype=torch.float32).expand(len(pooled), -1)
    return {
        "encoder_hidden_states": embeddings["prompt"],
        "added_cond_kwargs": {"text_embeds": pooled, "time_ids": ids},
    }


SHAPE = TwinShape(
    make_unet=make_unet,
    make_scheduler=make_scheduler,
    make_text=_make_text,
    open_text=_open_text,
    unet_arguments=_unet_arguments,
    empty_is_zeros=True,
    index={
        "_class_name": "StableDiffusionXLPipeline",
        "force_zeros_for_empty_prompt": True,
        "add_watermarker": False,
        "text_encoder": ["transformers", "CLIPTextModel"],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
    },
)
