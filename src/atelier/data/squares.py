"""The centre squares that are cut of a picture, by name; CrossFlow's two among them."""

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from atelier.data.geometry import bounded, centre_square, decode_whole
from atelier.data.letterbox import Rectangle, cut


def decode_squares(
    jpeg: bytes, resolutions: Sequence[int], crop: str = "bilinear", inner: Rectangle | None = None
) -> dict[int, np.ndarray]:
    """Decodes a picture once and cuts its squares.

    Args:
        resolutions: pixels of their sides.
        crop: one of ``CROPS``.
        inner: where in the picture, which has a border, the picture itself is.

    Returns:
        uint8 [res, res, 3] by resolution, RGB.

    Raises:
        ValueError: not an image, a damaged one, an image bomb, or one with no border around ``inner``.
    """
    image = decode_whole(jpeg, max(resolutions))
    if inner is not None:
        image = cut(image, inner)
        bounded((image.height, image.width), max(resolutions))
    return {res: np.asarray(CROPS[crop](image, res)) for res in resolutions}


def training_square(image: Image.Image, size: int) -> Image.Image:
    """ADM's crop: halved by boxes while twice too large, then bicubic to the size, then the centre."""
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    return _centre(image, size)


def coco_square(image: Image.Image, size: int) -> Image.Image:
    """The centre square, then Lanczos to the size."""
    return _centre(image, min(image.size)).resize((size, size), Image.Resampling.LANCZOS)


def _centre(image: Image.Image, size: int) -> Image.Image:
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


CROPS: dict[str, Callable[[Image.Image, int], Image.Image]] = {
    "bilinear": centre_square,
    "adm": training_square,
    "coco": coco_square,
}
