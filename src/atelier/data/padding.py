"""Pictures made square by white at their right or lower side: the frame of published layouts of COCO.

The whole picture stays to be seen, which a centre crop cuts. What is drawn in such a frame is measured without its
padding (``evaluation.regional_evaluation``).
"""

from typing import NamedTuple

import numpy as np
from PIL import Image

WHITE = (255, 255, 255)


class Padding(NamedTuple):
    """Pixels of a square that are padding, and at which side: "right" or "bottom"."""

    size: int
    side: str


def padding(size: tuple[int, int], res: int) -> Padding:
    """What a picture of ``size`` (H, W) leaves of a square of ``res``; a square's is 0 at the bottom."""
    height, width = size
    return Padding(int(res * abs(height - width) / max(size)), "right" if height > width else "bottom")


def padded_boxes(boxes_px: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Boxes [n, 4], xyxy in pixels of a picture of ``size`` (H, W), in [0, 1] of its square; clipped to the picture."""
    height, width = size
    return np.clip(boxes_px, 0, [width, height, width, height]) / max(size)


def padded_square(image: Image.Image, res: int, legacy: bool = False) -> Image.Image:
    """The square, ``res`` pixels a side.

    Args:
        legacy: resize as OpenCV's INTER_LINEAR does, with no smoothing of what becomes smaller.
    """
    side = max(image.size)
    square = Image.new("RGB", (side, side), WHITE)
    square.paste(image)
    if legacy:
        return Image.fromarray(_linear(np.asarray(square), res))
    return square.resize((res, res), Image.Resampling.BILINEAR)


def unpadded(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """A square without the padding that a picture of ``size`` (H, W) has in it."""
    wide, side = padding(size, image.width)
    return image.crop((0, 0, image.width - wide * (side == "right"), image.height - wide * (side == "bottom")))


_BITS = 11
"""OpenCV's weights are whole numbers of 1/2048."""


def _linear(square: np.ndarray, res: int) -> np.ndarray:
    """uint8 [n, n, 3] → [res, res, 3] by OpenCV's fixed-point bilinear rule."""
    first, second, weights = _taps(square.shape[0], res)
    other = (1 << _BITS) - weights
    pixels = square.astype(np.int64)
    rows = pixels[:, first] * other[:, None] + pixels[:, second] * weights[:, None]
    upper, lower = rows[first] >> 4, rows[second] >> 4
    summed = ((other[:, None, None] * upper) >> 16) + ((weights[:, None, None] * lower) >> 16)
    return ((summed + 2) >> 2).clip(0, 255).astype(np.uint8)


def _taps(side: int, res: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each output pixel the two input pixels between whose centres its own lies, and the second one's weight."""
    place = ((np.arange(res) + 0.5) * (side / res) - 0.5).astype(np.float32)
    first = np.floor(place).astype(np.int64)
    share = np.where((first < 0) | (first >= side - 1), 0, place - first)
    first = first.clip(0, side - 1)
    return first, (first + 1).clip(max=side - 1), np.rint(share * (1 << _BITS)).astype(np.int64)
