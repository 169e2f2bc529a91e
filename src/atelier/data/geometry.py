"""Resize of the short side and centre crop: pixels, SDXL's size conditions, boxes.

Offsets are ``(long - res) // 2`` for pixels and conditions alike (torchvision's crop rounds instead and may lie
one pixel off). Source: GLIGEN-XL's ``get_top_left_y1_x1``.
"""

import io

import numpy as np
from numpy.typing import DTypeLike
from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP")
"""Formats that are opened; Pillow knows dozens, some of which start other programs."""

MAX_PIXELS = 64_000_000
"""Of an image as stored and as resized: 192 MB decoded. SA-1B's have 3 to 6 million."""


def resized(original_size: tuple[int, int], res: int) -> tuple[int, int]:
    """(H, W) after the short side is brought to ``res``; the long side is rounded down."""
    height, width = original_size
    short = min(height, width)
    return (res, int(width * res / short)) if height <= width else (int(height * res / short), res)


def top_left(original_size: tuple[int, int], res: int) -> tuple[int, int]:
    """(top, left) of the centre crop in the resized image, in pixels."""
    height, width = resized(original_size, res)
    return (height - res) // 2, (width - res) // 2


def time_ids(original_size: tuple[int, int], res: int) -> tuple[int, int, int, int, int, int]:
    """SDXL's six conditions (H, W, top, left, res, res), exact integers (fp16 rounds sizes above 2048)."""
    return (*original_size, *top_left(original_size, res), res, res)


def image_size(jpeg: bytes) -> tuple[int, int]:
    """(H, W) from an image's header, without decoding it.

    Raises:
        ValueError: not an image of ``FORMATS``, or an image bomb.
    """
    with _opened(jpeg) as image:
        return image.height, image.width


def centre_square(image: Image.Image, res: int) -> Image.Image:
    """Brings the short side to ``res`` (bilinear, antialiased) and crops the centre."""
    size = (image.height, image.width)
    height, width = resized(size, res)
    if (height, width) != size:
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    top, left = top_left(size, res)
    return image.crop((left, top, left + res, top + res))


def decode_image(jpeg: bytes, res: int) -> np.ndarray:
    """Decodes and cuts ``centre_square``.

    Returns:
        uint8 [res, res, 3], RGB.

    Raises:
        ValueError: not an image, a damaged one, or an image bomb.
    """
    return np.asarray(centre_square(decode_whole(jpeg, res), res))


def decode_whole(jpeg: bytes, res: int) -> Image.Image:
    """Decodes an image as it is, RGB.

    Args:
        res: what others will bring its short side to; the long one must stay within bounds then.

    Raises:
        ValueError: not an image, a damaged one, or an image bomb.
    """
    with _opened(jpeg) as opened:
        bounded((opened.height, opened.width), res)
        return _rgb(opened)


def bounded(size: tuple[int, int], res: int) -> tuple[int, int]:
    """``resized``, of a size that can be held.

    Raises:
        ValueError: it cannot.
    """
    height, width = resized(size, res)
    if height * width > MAX_PIXELS:  # one pixel high, and as long as a JPEG may be
        raise ValueError(f"image bomb: {size[0]}×{size[1]} pixels resized to {height}×{width}")
    return height, width


def _rgb(opened: Image.Image) -> Image.Image:
    try:
        return opened.convert("RGB")
    except MemoryError:
        raise
    except Exception as error:  # damaged bytes raise nearly anything
        raise ValueError(f"not a readable image: {_short(error)}") from error


def _opened(data: bytes) -> Image.Image:
    """An image whose header was read and found harmless."""
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except MemoryError:
        raise
    except Image.DecompressionBombError as error:
        raise ValueError(f"image bomb: {_short(error)}") from error
    except Exception as error:  # damaged bytes raise nearly anything
        raise ValueError(f"not a readable image: {_short(error)}") from error
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"image bomb: {image.height}×{image.width} pixels, at most {MAX_PIXELS:,}")
    return image


def cxcywh_to_xyxy(boxes: np.ndarray, dtype: DTypeLike = np.float32) -> np.ndarray:
    """[n, 4] centre and size to corners, computed in ``dtype``."""
    boxes = boxes.astype(dtype).reshape(-1, 4)
    half = boxes[:, 2:] / 2
    return np.concatenate([boxes[:, :2] - half, boxes[:, :2] + half], axis=1)


def _short(error: BaseException) -> str:
    """The first line, without the address of a buffer object, which differs from run to run."""
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    return text.split(" <_io", 1)[0]
