"""Random layouts for the tests of the regional layers, and the published formula written out plainly."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from atelier.models.regional.batches import RegionLayout, layout
from atelier.models.regional.fusers import RegionAttention
from atelier.models.regional.reading import Reader, read_regions
from atelier.models.regional.tokens import EncodedTexts

WIDTH = 6
SEPARATOR, END, LENGTH = 3, 2, 12


def word_ids(text: str) -> list[int]:
    """An id a word, ``;`` one of its own."""
    return [SEPARATOR if word == ";" else 10 + sum(map(ord, word)) % 50 for word in text.replace(";", " ;").split()]


def encode(texts: Any) -> EncodedTexts:
    """A word a token, ``;`` the separator; states that differ from token to token and place to place."""
    ids = np.full((len(texts), LENGTH), END)
    ids[:, 0] = 1
    for row, text in zip(ids, texts, strict=True):
        words = word_ids(text)[: LENGTH - 2]
        row[1 : 1 + len(words)] = words
    table = np.random.default_rng(0).standard_normal((64, WIDTH)).astype(np.float32)
    return EncodedTexts(ids, table[ids] + np.arange(LENGTH, dtype=np.float32)[:, None] / LENGTH)


READER = Reader(encode, lambda text: len(word_ids(text)) <= LENGTH - 2, SEPARATOR, END)
"""``encode`` with its length."""


def random_boxes(count: int, seed: int = 0) -> np.ndarray:
    """[N, 4] normalised xyxy, of at least a tenth of the picture a side."""
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 0.7, (count, 2))
    return np.concatenate([low, low + rng.uniform(0.1, 0.3, (count, 2))], axis=1)


def random_layout(count: int, height: int = 8, width: int = 8, seed: int = 0) -> RegionLayout:
    """A layout of boxes with texts of one or two words."""
    boxes = random_boxes(count, seed)
    labels = [f"thing{number} {'red' if number % 2 else ''}" for number in range(count)]
    ((found, tokens),) = read_regions([(boxes, labels)], height, width, READER)
    return layout(found, tokens, with_unions=True)


def batch(given: dict[str, np.ndarray]) -> dict[str, Tensor]:
    """``collate``'s answer as tensors."""
    return {name: torch.from_numpy(array) for name, array in given.items()}


def plain_attention(layer: RegionAttention, x: Tensor, context: Tensor) -> Tensor:
    """x [L, C] over context [K, D] without a mask."""
    heads = layer.heads
    q, k, v = layer.to_q(x), layer.to_k(context), layer.to_v(context)
    q, k, v = (part.unflatten(-1, (heads, -1)).transpose(0, 1) for part in (q, k, v))
    weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
    made: Tensor = layer.to_out[0]((weights @ v).transpose(0, 1).flatten(1))
    return made


def randomise(module: torch.nn.Module, seed: int = 0) -> None:
    """Every parameter drawn anew: the last layers too, which start at zero."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
