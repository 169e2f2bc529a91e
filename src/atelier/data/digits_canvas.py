"""The canvases of the twins' raw data: digits on pictures of several shapes, whatever form they are published in."""

import io
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image

from atelier.data import digits

SHORT_SIDE, LONGEST = 64, 1.25  # of the long side over the short one
INK = 110  # brighter than any background (at most 90), darker than a stroke


class Canvas(NamedTuple):
    """One image: uint8 [H, W, 3] pixels and the layout that they show; what a detector might say of its boxes."""

    image_id: int
    pixels: np.ndarray
    layout: list[digits.Placement]
    confidence: np.ndarray


def canvases(ids: Iterable[int], seed: int, glyphs: digits.Glyphs, size: int = SHORT_SIDE) -> Iterator[Canvas]:
    """The canvas of each id; everything random in it comes from (seed, id).

    Args:
        size: pixels of the short side.
    """
    for image_id in ids:
        rng = np.random.default_rng([seed, image_id])
        layout = digits.layout_random(rng, size=size)
        long = int(rng.integers(size, int(LONGEST * size) + 1))
        shape = (size, long) if rng.random() < 0.5 else (long, size)
        pixels = digits.draw(rng, layout, glyphs, shape)
        yield Canvas(image_id, pixels, layout, rng.uniform(0.5, 0.95, len(layout)).astype(np.float16))


def jpeg(pixels: np.ndarray) -> bytes:
    """A nearly lossless JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95, subsampling=0)
    return buffer.getvalue()
