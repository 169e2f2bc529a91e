"""Pictures and captions to what CrossFlow's training reads: the autoencoder's moments and the text without padding.

Both are stored as bfloat16, in which training computes and T5 is published: its rounding (0.2 % of a value at most) is
far below the noise that each step adds to a latent, and no value leaves its range.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from atelier.data import bfloat16
from atelier.data.encoder import Encoded
from atelier.data.raw_example import RawExample
from atelier.recipes.latents import LatentEncoder, parts_digest
from atelier.sampling.crossflow_text import encode, open_language_model

if TYPE_CHECKING:
    from atelier.recipes.crossflow import Config


class Encoder:
    """``atelier.data.encoder.TakesSquares``: one or more resolutions of each picture, its text encoded once.

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

    def encode(self, images: np.ndarray, examples: list[RawExample]) -> list[dict[str, np.ndarray]]:
        """As ``encode_squares``, of one resolution: images uint8 [B, res, res, 3]."""
        return [encoded.arrays for encoded in self.encode_squares({images.shape[1]: images}, examples)]

    @torch.no_grad()
    def encode_squares(self, squares: dict[int, np.ndarray], examples: list[RawExample]) -> list[Encoded]:
        """Squares uint8 [B, res, res, 3] by resolution → B samples of ``moments_<res>`` bfloat16 [2C, h, w] each,
        ``text`` bfloat16 [n, d], and ``tokens`` int32 (n); with ``image`` uint8 [res, res, 3] where the contrastive
        loss sees pixels. Captions that are cut are counted: ``captions_cut``, and ``tokens_cut`` of them all."""
        moments = {f"moments_{res}": bfloat16.array(self.latents.moments(images)) for res, images in squares.items()}
        captions = [example.caption for example in examples]
        prompts = encode(self.tokenizer, self.language_model, captions, self.tokens, warn=False)
        states, counts = bfloat16.array(prompts.states), prompts.mask.sum(1).int().tolist()
        samples = []
        for row, (count, cut) in enumerate(zip(counts, prompts.cut, strict=True)):
            kept = self.tokens if self.config.keeps("padding") else count
            arrays = {name: each[row] for name, each in moments.items()}
            arrays |= {"text": states[row, :kept], "tokens": np.array(count, np.int32)}
            if self.config.image_tower == "pixels":
                arrays["image"] = squares[self.config.resolution][row]
            samples.append(Encoded(arrays, {"captions_cut": 1, "tokens_cut": cut} if cut else {}))
        return samples
