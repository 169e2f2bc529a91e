"""Canvases of two handwritten digits, one above the other, and the caption that says so: CrossFlow's laptop data.

The caption alone decides what is drawn and where, so a classifier that reads both places measures whether a picture
follows its text.
"""

from dataclasses import dataclass

import numpy as np

from atelier.data import digits

Box = tuple[float, float, float, float]
SIDE = 0.5
"""The side of a digit's square, of the canvas."""


@dataclass(frozen=True, eq=False)
class PairCanvas:
    """One picture uint8 [size, size, 3], its caption, and its placements, the upper one first."""

    pixels: np.ndarray
    caption: str
    placements: tuple[digits.Placement, digits.Placement]


def caption(upper: int, lower: int) -> str:
    """``3, 7`` → ``"a three above a seven"``."""
    return f"{digits.phrase(upper)} above {digits.phrase(lower)}"


def boxes(shift: tuple[float, float] = (0.0, 0.0)) -> tuple[Box, Box]:
    """The upper and the lower digit's square, moved sideways by up to half a side, normalised xyxy."""
    left, right = (0.25 + s for s in shift)
    return (left, 0.0, left + SIDE, SIDE), (right, 1 - SIDE, right + SIDE, 1.0)


def draw(rng: np.random.Generator, size: int, glyphs: digits.Glyphs, jitter: float = 0.0) -> PairCanvas:
    """A canvas of a random pair.

    Args:
        jitter: digits are moved sideways by up to this share of the canvas.
    """
    labels = rng.integers(0, 10, 2)
    moved = rng.uniform(-jitter, jitter, 2)
    placements = tuple(
        digits.Placement(tuple(round(value * size) / size for value in box), int(label))  # type: ignore[arg-type]
        for box, label in zip(boxes((float(moved[0]), float(moved[1]))), labels, strict=True)
    )
    pixels = digits.draw(rng, placements, glyphs, (size, size))
    return PairCanvas(pixels, caption(int(labels[0]), int(labels[1])), placements)  # type: ignore[arg-type]
