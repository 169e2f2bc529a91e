"""Pictures within a border, as img2dataset gives them ("border"), and where in them the picture itself is."""

import io

import numpy as np
from PIL import Image

from atelier.data.geometry import FORMATS

Rectangle = tuple[int, int, int, int]
"""left, top, right, bottom in whole pixels."""

PLAIN, PLAIN_SHARE, EDGE = 24, 0.95, 4
"""A border is plain: this share of it is this near to its median, in grey levels; JPEG blurs the pixels at its inner
edge, and rounding may lay that a pixel further."""

SAMPLED = 4096
"""Pixels of each side's border that are looked at."""


LOOK, LOOK_WHITE, LOOK_BORDER = 64, 245, 0.98
"""A look for a border: at so many pixels a side, where a line of it is white that has this share of white pixels."""


def has_white_border(image: bytes) -> bool:
    """Whether a square picture plainly is a longer one with white at its two sides, or above and below it.

    White ends on both sides, after equally many lines, at lines that mostly are not white, as the edge of a photograph
    is. A thing on a white ground, and a picture that is white all around, have no border.

    Args:
        image: a file of ``geometry.FORMATS``. Of a JPEG an eighth is decoded, a millisecond; what cannot be decoded has
            none.
    """
    try:
        with Image.open(io.BytesIO(image), formats=FORMATS) as opened:
            if opened.width != opened.height:
                return False
            opened.draft("RGB", (LOOK, LOOK))
            small = opened.convert("RGB").resize((LOOK, LOOK), Image.Resampling.BOX)
    except MemoryError:
        raise
    except Exception:  # whoever decodes it whole will say so
        return False
    white: np.ndarray = np.asarray(small).min(axis=2) >= LOOK_WHITE
    return _bordered(white) != _bordered(white.T)


def _bordered(white: np.ndarray) -> bool:
    """Whether the first and last lines of bool [n, n] are border, and what is between them is no part of it."""
    shares = white.mean(axis=1)
    inner = np.flatnonzero(shares < LOOK_BORDER)
    if not len(inner):
        return False
    first, last = int(inner[0]), len(white) - 1 - int(inner[-1])
    if min(first, last) < 1 or abs(first - last) > 1 or first + last > len(white) - 4:
        return False
    # The line where white ends may be half of each.
    return bool(max(shares[first + 1], shares[len(white) - 2 - last]) < 0.5)


def content(size: tuple[int, int], original_size: tuple[int, int]) -> Rectangle:
    """Where a picture of ``original_size`` (H, W) lies when it was brought to ``size`` (H, W) whole and centred."""
    height, width = size
    scale = min(height / original_size[0], width / original_size[1])
    own_height = min(max(round(original_size[0] * scale), 1), height)
    own_width = min(max(round(original_size[1] * scale), 1), width)
    left, top = (width - own_width) // 2, (height - own_height) // 2
    return left, top, left + own_width, top + own_height


def cut(picture: Image.Image, inner: Rectangle) -> Image.Image:
    """The part ``inner`` of a picture.

    Raises:
        ValueError: what lies around it is no border but more of a picture: it was cropped or stretched.
    """
    if not is_plain(np.asarray(picture), inner):
        raise ValueError("no border: it was cropped or stretched, and nothing tells how")
    return picture.crop(inner)


def is_plain(pixels: np.ndarray, inner: Rectangle) -> bool:
    """Whether all that lies outside ``inner`` is of one colour.

    Args:
        pixels: uint8 [H, W, 3].
    """
    left, top, right, bottom = inner
    height, width = pixels.shape[:2]
    left, top = max(left - EDGE, 0), max(top - EDGE, 0)
    sides = (
        pixels[:top],
        pixels[min(bottom + EDGE, height) :],
        pixels[:, :left],
        pixels[:, min(right + EDGE, width) :],
    )
    # A sample tells: of a picture's border some 400,000 pixels would take as long as the picture's decoding.
    border = np.concatenate([side.reshape(-1, 3)[:: max(len(side) * side.shape[1] // SAMPLED, 1)] for side in sides])
    if not len(border):
        return True
    values = border.astype(np.int16)
    near = np.abs(values - np.median(values, axis=0)).max(axis=1) <= PLAIN
    return bool(near.mean() >= PLAIN_SHARE)
