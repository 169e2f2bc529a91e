"""Pictures made square by white at one side, and the boxes in them."""

import numpy as np
import torch
from PIL import Image

from atelier.data.padding import Padding, padded_boxes, padded_square, padding, unpadded


def picture(height: int, width: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 200, (height, width, 3)).astype(np.uint8)
    return Image.fromarray(pixels)


def test_the_longer_side_decides() -> None:
    assert padding((60, 90), 64) == Padding(21, "bottom")
    assert padding((80, 60), 64) == Padding(16, "right")
    assert padding((50, 50), 64) == Padding(0, "bottom")


def test_boxes_are_shares_of_the_square_and_end_with_the_picture() -> None:
    boxes = padded_boxes(np.array([[0, 0, 45, 30], [60, -5, 99, 70]], np.float64), (60, 90))
    assert boxes.tolist() == [[0, 0, 0.5, 30 / 90], [60 / 90, 0, 1, 60 / 90]]


def test_white_is_at_one_side_and_goes_again() -> None:
    for size, way in (((60, 90), slice(43, None)), ((90, 60), slice(43, None))):
        image = picture(*size)
        for legacy in (False, True):
            square = padded_square(image, 64, legacy)
            pixels = np.asarray(square)
            white = pixels[way] if size[0] < size[1] else pixels[:, way]
            kept = pixels[:42] if size[0] < size[1] else pixels[:, :42]
            assert pixels.shape == (64, 64, 3)
            assert (white == 255).all()
            assert kept.max() < 220
            assert unpadded(square, size).size == ((64, 43) if size[0] < size[1] else (43, 64))


def test_of_the_same_size_nothing_is_resampled() -> None:
    image = picture(64, 48)
    for legacy in (False, True):
        square = np.asarray(padded_square(image, 64, legacy))
        assert (square[:, :48] == np.asarray(image)).all()


def test_legacy_is_bilinear_without_smoothing() -> None:
    image = picture(40, 40)
    for res in (25, 97):
        found = np.asarray(padded_square(image, res, legacy=True), np.float64)
        x = torch.from_numpy(np.asarray(image, np.float64).copy()).permute(2, 0, 1)[None]
        wanted = torch.nn.functional.interpolate(x, (res, res), mode="bilinear", align_corners=False)[0]
        assert np.abs(found - wanted.permute(1, 2, 0).numpy()).max() < 1.01
