"""An SDXL of an eighth of the width and half of the depth with its two text encoders, and samples for it.

UNet and text are scaled alike: widths by 8 (UNet 320 to 1280, CLIP-L 768, OpenCLIP-bigG 1280), tokens by 4 (latent
64 × 64, text 77), depths by about 2 (transformers of 2 and 10 blocks; CLIP-L's 12 and bigG's 32 layers so that the
proportion comes out). Encoding a sequence of text costs 1.79 % of a sample's training step (forward, and backward
through the frozen UNet to the adapter) in SDXL at 512 pixels, as torch counts the operations, and as much here.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

LATENT, TEXT_TOKENS, SLOTS = 32, 20, 32
PHRASES = 31
"""Boxes of a sample: as many as the published rule leaves of an image with more (facts/gligen.md §3.2)."""
RESOLUTION = 8 * LATENT
WIDTHS = (96, 160)
VOCABULARY = 1000


def write_base(folder: Path) -> None:
    """A diffusers folder with random weights: what the recipe's objective and ``TextEncoders`` open."""
    torch.manual_seed(0)
    UNet2DConditionModel(
        sample_size=LATENT,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(40, 80, 160),
        layers_per_block=2,
        transformer_layers_per_block=(1, 1, 5),
        attention_head_dim=(5, 10, 20),  # diffusers' historic name: the number of heads
        norm_num_groups=8,
        cross_attention_dim=sum(WIDTHS),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=32,
        projection_class_embeddings_input_dim=6 * 32 + WIDTHS[1],
    ).save_pretrained(folder / "unet")
    DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear").save_pretrained(
        folder / "scheduler"
    )
    AutoencoderKL(
        block_out_channels=(8,) * 4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=8,
    ).save_pretrained(folder / "vae")
    CLIPTextModel(_text(WIDTHS[0], layers=7, heads=12)).save_pretrained(folder / "text_encoder")
    CLIPTextModelWithProjection(_text(WIDTHS[1], layers=19, heads=20)).save_pretrained(folder / "text_encoder_2")


def _text(width: int, layers: int, heads: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=4 * width,
        projection_dim=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=TEXT_TOKENS,
        bos_token_id=VOCABULARY - 2,
        eos_token_id=VOCABULARY - 1,
        pad_token_id=0,
    )


@dataclass(frozen=True)
class TextEncoders:
    """The two encoders on ready token numbers [N, TEXT_TOKENS]."""

    first: CLIPTextModel
    second: CLIPTextModelWithProjection

    @classmethod
    def load(cls, base: Path) -> "TextEncoders":
        """Opens those of a base folder."""
        first = CLIPTextModel.from_pretrained(base / "text_encoder")
        second = CLIPTextModelWithProjection.from_pretrained(base / "text_encoder_2")
        return cls(first.eval().requires_grad_(False), second.eval().requires_grad_(False))

    @torch.no_grad()
    def prompts(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Prompt [N, T, D] and pooled [N, P]."""
        first = self.first(numbers, output_hidden_states=True)
        second = self.second(numbers, output_hidden_states=True)
        return torch.cat((first.hidden_states[-2], second.hidden_states[-2]), dim=-1), second.text_embeds

    @torch.no_grad()
    def phrases(self, numbers: Tensor) -> Tensor:
        """[N, D]."""
        return torch.cat((self.first(numbers).pooler_output, self.second(numbers).text_embeds), dim=-1)


class RawSamples:
    """Samples before their text is encoded, made from their index: latents, boxes and token numbers."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def sample(self, index: int) -> dict[str, Any]:
        """``latent`` fp16, ``boxes``, ``caption`` and ``phrases`` (token numbers), ``size`` (height, width)."""
        rng = np.random.default_rng(index)
        corners = np.sort(rng.random((PHRASES, 2, 2)), axis=1)
        numbers = rng.integers(1, VOCABULARY - 2, (1 + PHRASES, TEXT_TOKENS))
        numbers[:, 0], numbers[:, -1] = VOCABULARY - 2, VOCABULARY - 1
        return {
            "latent": rng.standard_normal((4, LATENT, LATENT)).astype(np.float16),
            "boxes": corners.reshape(PHRASES, 4).astype(np.float32),
            "caption": numbers[0],
            "phrases": numbers[1:],
            "size": (1500, 2250),
        }


class EncodedSamples:
    """The same samples as the shards hold them: text encoded once, ahead, fp16."""

    def __init__(self, raw: RawSamples, encoders: TextEncoders) -> None:
        self.shard_starts = np.array([0, len(raw)])
        self._samples = [_encoded(raw.sample(index), encoders) for index in range(len(raw))]

    def __len__(self) -> int:
        return len(self._samples)

    def sample(self, index: int) -> dict[str, Any]:
        """A shard sample."""
        return dict(self._samples[index])


def _encoded(raw: dict[str, Any], encoders: TextEncoders) -> dict[str, Any]:
    prompt, pooled = encoders.prompts(torch.from_numpy(raw["caption"])[None])
    phrases = encoders.phrases(torch.from_numpy(raw["phrases"]))
    height, width = raw["size"]
    return {
        "latent": raw["latent"],
        "prompt": prompt[0].half().numpy(),
        "pooled": pooled[0].half().numpy(),
        "phrases": phrases.half().numpy(),
        "json": {"boxes": raw["boxes"].tolist(), "time_ids": [height, width, 0, 0, RESOLUTION, RESOLUTION]},
    }
