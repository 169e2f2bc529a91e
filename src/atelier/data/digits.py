"""Real handwriting as a layout source: UCI digits (scikit-learn's bundled copy) pasted onto canvases.

A canvas has a short side of 64 px by default; what a model sees is its centre square. All boxes here are
normalised xyxy of that centre square, and lie on its pixels. On a larger canvas digits keep their size in pixels: a
base model that saw 64 px draws more digits on a larger canvas, not larger ones.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TRAIN_DIGITS = 1437  # the first 80 % of UCI's own order
GRID = 64


@dataclass(frozen=True, eq=False)
class Glyphs:
    """Handwritten digits.

    Attributes:
        images: uint8 [N, 8, 8], ink 0..16.
        labels: int64 [N], 0..9.
    """

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    @functools.cached_property
    def by_label(self) -> tuple[np.ndarray, ...]:
        """Indices of each digit's glyphs."""
        return tuple(np.flatnonzero(self.labels == label) for label in range(10))

    @functools.cached_property
    def _scaled(self) -> dict[tuple[int, int], np.ndarray]:
        return {}

    def ink(self, index: int, side: int) -> np.ndarray:
        """Glyph ``index`` scaled up bicubically: float32 [side, side], 0 (paper) to 1 (full ink)."""
        scaled = self._scaled.get((index, side))
        if scaled is None:
            glyph = Image.fromarray(self.images[index].astype(np.float32) / 16.0)
            scaled = np.asarray(glyph.resize((side, side), Image.Resampling.BICUBIC), np.float32).clip(0, 1)
            self._scaled[index, side] = scaled
        return scaled


class DigitSplit(NamedTuple):
    """Three disjoint sets: glyphs to draw with, glyphs to train the judge on, glyphs to test the judge on."""

    canvas: Glyphs
    judge_train: Glyphs
    judge_test: Glyphs


class Placement(NamedTuple):
    """One digit on a canvas: its square ``box`` (xyxy in [0,1] of the centre square) and its ``label``."""

    box: tuple[float, float, float, float]
    label: int


@functools.cache
def split(per_class: int = 10) -> DigitSplit:
    """UCI digits, split: the ``per_class`` most legible of each class to draw with, the rest for the judge.

    Legible means near the mean image of its class. Few and legible, because a tiny model that sees all 1,437
    hands at once learns blobs. ``judge_test`` is the data set's tail, which no other set touches.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images, labels = bunch.images.astype(np.uint8), bunch.target.astype(np.int64)
    train_images, train_labels = images[:TRAIN_DIGITS], labels[:TRAIN_DIGITS]
    chosen = np.zeros(TRAIN_DIGITS, bool)
    for label in range(10):
        members = np.flatnonzero(train_labels == label)
        pixels = train_images[members].astype(np.float64)
        distance = ((pixels - pixels.mean(0)) ** 2).sum((1, 2))
        chosen[members[np.argsort(distance, kind="stable")[:per_class]]] = True
    return DigitSplit(
        canvas=Glyphs(train_images[chosen], train_labels[chosen]),
        judge_train=Glyphs(train_images[~chosen], train_labels[~chosen]),
        judge_test=Glyphs(images[TRAIN_DIGITS:], labels[TRAIN_DIGITS:]),
    )


def layout_random(
    rng: np.random.Generator,
    n_min: int = 1,
    n_max: int = 4,
    side: tuple[float, float] = (0.30, 0.50),
    size: int = GRID,
) -> list[Placement]:
    """A random layout: ``n_min`` to ``n_max`` square boxes that do not overlap, labels uniform.

    Each box takes a uniform draw among all places that are free; where none is, the layout starts again, and
    with every restart the largest side shrinks a little, so that four boxes always fit in the end.

    Args:
        side: least and greatest side, over ``GRID`` pixels.
        size: pixels of the centre square, ``GRID`` or more.
    """
    count = int(rng.integers(n_min, n_max + 1))
    smallest, largest = (round(bound * GRID) for bound in side)
    while True:
        squares: list[tuple[int, int, int]] = []
        for _ in range(count):
            own = int(rng.integers(smallest, largest + 1))
            free = np.ones((size - own + 1, size - own + 1), bool)  # [top, left] where a box may start
            for left, top, other in squares:
                free[max(top - own + 1, 0) : top + other, max(left - own + 1, 0) : left + other] = False
            places = np.flatnonzero(free)
            if not len(places):
                break
            top, left = divmod(int(places[rng.integers(len(places))]), free.shape[1])
            squares.append((left, top, own))
        if len(squares) == count:
            break
        largest = max(smallest, largest - 1)
    return [
        Placement((x / size, y / size, (x + own) / size, (y + own) / size), int(rng.integers(10)))
        for x, y, own in squares
    ]


def pixel_box(box: Sequence[float], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """A box of the centre square as whole pixels (left, top, right, bottom) of a canvas of ``size`` = (H, W)."""
    height, width = size
    short = min(size)
    offset_x, offset_y = (width - short) // 2, (height - short) // 2
    x0, y0, x1, y1 = (round(value * short) for value in box)
    return offset_x + x0, offset_y + y0, offset_x + x1, offset_y + y1


def background(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """A dark gradient, float32 [H, W, 3]: red rises to the right, blue downwards, green is their mean.

    Both ends are drawn anew for every canvas, the directions are not: a plain canvas would tell a small
    frozen base nothing about where it is.
    """
    height, width = size
    (left, right), (top, bottom) = ((rng.uniform(20, 45), rng.uniform(60, 90)) for _ in range(2))
    canvas = np.empty((height, width, 3), np.float32)
    canvas[..., 0] = np.linspace(left, right, width, dtype=np.float32)[None, :]
    canvas[..., 2] = np.linspace(top, bottom, height, dtype=np.float32)[:, None]
    canvas[..., 1] = (canvas[..., 0] + canvas[..., 2]) / 2
    return canvas


def draw(
    rng: np.random.Generator, layout: Sequence[Placement], glyphs: Glyphs, size: tuple[int, int] = (64, 64)
) -> np.ndarray:
    """Draws a layout: near-white strokes over a dark gradient, each digit a random glyph of its class.

    Args:
        layout: boxes of the centre square.
        size: (H, W) of the canvas.

    Returns:
        uint8 [H, W, 3].
    """
    canvas = background(rng, size)
    for box, label in layout:
        left, top, right, bottom = pixel_box(box, size)
        candidates = glyphs.by_label[label]
        ink = glyphs.ink(int(candidates[rng.integers(len(candidates))]), right - left)[..., None]
        patch = canvas[top:bottom, left:right]
        canvas[top:bottom, left:right] = patch + (rng.uniform(225, 255) - patch) * ink
    return canvas.round().astype(np.uint8)


def phrase(label: int) -> str:
    """``7`` → ``"a seven"``, ``8`` → ``"an eight"``."""
    word = WORDS[label]
    return f"an {word}" if word == "eight" else f"a {word}"  # "one" begins with the sound of "w"


def caption(layout: Sequence[Placement]) -> str:
    """``"a seven, a three and a one"``, in the layout's order."""
    phrases = [phrase(label) for _, label in layout]
    return " and ".join([", ".join(phrases[:-1]), phrases[-1]]) if len(phrases) > 1 else phrases[0]
