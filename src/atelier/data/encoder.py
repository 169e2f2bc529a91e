"""What a recipe supplies to preprocessing, and how a worker process makes its own copy of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np

from atelier.data.raw_example import RawExample
from atelier.data.work import Entry


class Encoder(Protocol):
    """Images and texts to the arrays that a recipe's training needs.

    ``encode`` is called from one thread. It uses the accelerator that it sees: of several, each worker process is
    shown one (``CUDA_VISIBLE_DEVICES``).
    """

    digest: str

    def encode(self, images: np.ndarray, examples: list[RawExample]) -> list[dict[str, np.ndarray]]:
        """Encodes a batch.

        Args:
            images: uint8 [B, res, res, 3].
            examples: their captions, phrases and boxes (already selected).

        Returns:
            B dicts of arrays by field name, dtypes fixed; e.g. latent, text states, phrase embeddings. A sample with
            NaN or infinity, or of another dtype or shape than the shard's first, is quarantined.
        """
        ...


@runtime_checkable
class TakesLatents(Encoder, Protocol):
    """An encoder for sources that bring latents instead of images: it adds what comes of the texts."""

    def latent_shape(self, res: int) -> tuple[int, ...]:
        """The shape [C, h, w] of the latent of a square of ``res`` pixels."""
        ...

    def encode_latents(self, latents: np.ndarray, examples: list[RawExample]) -> list[dict[str, np.ndarray]]:
        """As ``encode``, of float16 latents [B, C, h, w] that are taken as they are."""
        ...


@dataclass(frozen=True, eq=False)
class Encoded:
    """A sample as an encoder made it.

    Attributes:
        arrays: see ``Encoder.encode``.
        counts: what is to be counted of it, by name.
    """

    arrays: dict[str, np.ndarray]
    counts: Mapping[str, int] = field(default_factory=dict)


@runtime_checkable
class TakesSquares(Encoder, Protocol):
    """An encoder of several squares of each image, its text encoded once."""

    def encode_squares(self, squares: dict[int, np.ndarray], examples: list[RawExample]) -> list[Encoded]:
        """As ``encode``, of squares by their pixels: uint8 [B, res, res, 3] each."""
        ...


class EncoderSpec(Entry):
    """How to make an encoder, here or in another process."""

    def make(self) -> Encoder:
        """Calls the function."""
        encoder: Encoder = self.call()
        return encoder
