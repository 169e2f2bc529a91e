"""A look at a picture tells whether it plainly lies within a white border."""

import io

import numpy as np
import pytest
from PIL import Image

from atelier.data.letterbox import has_white_border


def photograph(height: int, width: int) -> np.ndarray:
    coarse = np.random.default_rng(0).integers(0, 220, (5, 5, 3)).astype(np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height)))


def within(height: int, width: int, side: int = 512, value: int = 255) -> np.ndarray:
    square = np.full((side, side, 3), value, np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = photograph(height, width)
    return square


def file_of(pixels: np.ndarray, kind: str = "JPEG") -> bytes:
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, kind)
    return data.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("size", [(512, 341), (341, 512), (512, 480), (387, 512), (512, 60)])
def test_a_longer_picture_within_white(size: tuple[int, int], kind: str) -> None:
    assert has_white_border(file_of(within(*size), kind))


def test_what_has_no_border() -> None:
    disc = np.full((512, 512, 3), 255, np.uint8)
    rows, columns = np.mgrid[:512, :512]
    disc[(rows - 256) ** 2 + ((columns - 256) * 2) ** 2 < 256**2] = 40  # reaches the top and the bottom
    one_side = within(512, 512)
    one_side[:, :100] = 255
    for name, pixels in {
        "a square picture": photograph(512, 512),
        "a longer one": photograph(341, 512),
        "white all around": within(400, 300),
        "all white": np.full((512, 512, 3), 255, np.uint8),
        "a thing on white": disc,
        "white on one side": one_side,
        "a black border": within(512, 341, value=0),
    }.items():
        assert not has_white_border(file_of(pixels)), name
    assert not has_white_border(b"no picture")
    assert not has_white_border(file_of(within(512, 341), "PNG")[:500]), "cut off"
