"""Pictures and captions to what CrossFlow's training reads: the autoencoder's moments and the text without padding."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from atelier.data.raw_example import RawExample
from atelier.recipes.latents import LatentEncoder, half, parts_digest
from atelier.sampling.crossflow_text import encode, open_language_model

if TYPE_CHECKING:
    from atelier.recipes.crossflow import Config


class Encoder:
    """``atelier.data.encoder.Encoder``.

    Moments, not latents: each step draws its own from them. Padding, which for T5 is most of the bytes, is not stored
    unless the released rule wants it.
    """

    def __init__(self, base: Path, config: "Config") -> None:
        self.latents = LatentEncoder(base)
        self.tokenizer, self.language_model = open_language_model(base)
        self.language_model.to(self.latents.device)
        self.config = config
        self.tokens = config.model().text.get("tokens", 77)
        self.digest = parts_digest(base, ("vae", "text_encoder", "tokenizer"))

    @torch.no_grad()
    def encode(self, images: np.ndarray, examples: list[RawExample]) -> list[dict[str, np.ndarray]]:
        """images uint8 [B, res, res, 3] → B samples of ``moments`` [2C, h, w], ``text`` [n, d] float16, and
        ``tokens`` [1] int32 (n); with ``image`` uint8 [res, res, 3] where the contrastive loss sees pixels."""
        moments = half(self.latents.moments(images))
        prompts = encode(self.tokenizer, self.language_model, [example.caption for example in examples], self.tokens)
        states, counts = half(prompts.states), prompts.mask.sum(1).int().tolist()
        samples = []
        for row, count in enumerate(counts):
            kept = self.tokens if self.config.keeps("padding") else count
            sample = {"moments": moments[row], "text": states[row, :kept], "tokens": np.array([count], np.int32)}
            if self.config.image_tower == "pixels":
                sample["image"] = images[row]
            samples.append(sample)
        return samples
