"""The crop of a picture in each of its boxes, as CLIP sees it."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from atelier.errors import DataError

ROUNDING = 1e-4
"""Of a pixel: 70 of 96 pixels, as a share and back, may be 69.999999."""

PixelBox = tuple[float, float, float, float]


def pixels(boxes: Sequence[Sequence[float]], size: tuple[int, int]) -> list[PixelBox]:
    """Boxes (normalised xyxy) in pixels of a picture of ``size`` (W, H), clipped to it.

    Raises:
        DataError: a box that lies outside of the picture, or is none.
    """
    width, height = size
    found = []
    for box in boxes:
        x0, y0, x1, y1 = (
            min(max(value * side, 0.0), side) for value, side in zip(box, (width, height) * 2, strict=True)
        )
        if not (x0 < x1 and y0 < y1):
            raise DataError(f"the box {list(box)} holds nothing of its picture", "give x0, y0, x1, y1 in 0 to 1")
        found.append((x0, y0, x1, y1))
    return found


def crop(picture: Image.Image, box: PixelBox) -> Image.Image:
    """The whole pixels of a box: corners are cut to whole numbers, and a pixel at the least is left."""
    left, top, right, bottom = (int(value + ROUNDING) for value in box)
    left, top = min(left, picture.width - 1), min(top, picture.height - 1)
    return picture.crop((left, top, max(right, left + 1), max(bottom, top + 1)))


def centred(picture: Image.Image, side: int) -> np.ndarray:
    """CLIP's own square: the short side brought to ``side``, bicubically and smoothed, then the centre.

    Returns:
        float32 [3, side, side] in [0, 1].
    """
    short, long = sorted(picture.size)
    resized = (side, int(side * long / short)) if picture.width <= picture.height else (int(side * long / short), side)
    picture = picture.convert("RGB").resize(resized, Image.Resampling.BICUBIC)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    square = picture.crop((left, top, left + side, top + side))
    return np.asarray(square, np.float32).transpose(2, 0, 1) / 255
