"""Pictures within a border, as img2dataset gives them ("border"), and where in them the picture itself is."""

import io

import numpy as np

from atelier.data.geometry import decode_whole

Rectangle = tuple[int, int, int, int]
"""left, top, right, bottom in whole pixels."""

PLAIN, PLAIN_SHARE, EDGE = 24, 0.95, 4
"""A border is plain: this share of it is this near to its median, in grey levels; JPEG blurs the pixels at its inner
edge, and rounding may lay that a pixel further."""


def content(size: tuple[int, int], original_size: tuple[int, int]) -> Rectangle:
    """Where a picture of ``original_size`` (H, W) lies when it was brought to ``size`` (H, W) whole and centred."""
    height, width = size
    scale = min(height / original_size[0], width / original_size[1])
    own_height = min(max(round(original_size[0] * scale), 1), height)
    own_width = min(max(round(original_size[1] * scale), 1), width)
    left, top = (width - own_width) // 2, (height - own_height) // 2
    return left, top, left + own_width, top + own_height


def is_plain(pixels: np.ndarray, inner: Rectangle) -> bool:
    """Whether all that lies outside ``inner`` is of one colour: a border, and not a picture that was cropped square.

    Args:
        pixels: uint8 [H, W, 3].
    """
    left, top, right, bottom = inner
    outside = np.ones(pixels.shape[:2], bool)
    outside[max(top - EDGE, 0) : bottom + EDGE, max(left - EDGE, 0) : right + EDGE] = False
    border = pixels[outside].astype(np.int16)
    if not len(border):
        return True
    near = np.abs(border - np.median(border, axis=0)).max(axis=1) <= PLAIN
    return bool(near.mean() >= PLAIN_SHARE)


def stripped(image: bytes, inner: Rectangle) -> bytes:
    """The part ``inner`` of a picture, losslessly: a PNG that is not compressed, for it is read once and forgotten.

    Raises:
        ValueError: it cannot be read, or its border is none.
    """
    picture = decode_whole(image, 1)
    if not is_plain(np.asarray(picture), inner):
        raise ValueError("no border: it was cropped or stretched, and nothing tells how")
    buffer = io.BytesIO()
    picture.crop(inner).save(buffer, "PNG", compress_level=0)
    return buffer.getvalue()
