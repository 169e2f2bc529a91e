"""Writes digit canvases in the very form in which the data of rich-context layout-to-image are made.

As CC3M's: ``cc3m-images/00000/000000001.jpg``, a picture within a white square border as img2dataset gives it, beside
it ``000000001.json`` with the size that it had, and ``labels/label_000000001.json`` as the labelling writes it: a
caption, and of every object a box, a mask and a description of its own.

Unlike the other twins' canvases, boxes overlap here in a share of the pictures: what a layout of described objects is
about. They overlap at their margins, so that every digit stays legible.
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from atelier.data import digits
from atelier.data.digits_canvas import INK, LONGEST, SHORT_SIDE, jpeg
from atelier.data.rich_label import make_label, make_object
from atelier.progress import Progress
from atelier.storage.atomic import os_errors
from atelier.storage.digest import canonical_json

OVERLAPPING = 0.6
"""The share of canvases on which two boxes overlap."""
SHARED = (0.15, 0.35)
"""Least and greatest share of the smaller box that lies in the larger one."""
CROSSING = 0.05
"""The share of the lighter digit's ink that may lie on the other's, of the mean hand of each class."""
BIG = 26
"""Pixels of a box's side from which a digit is called big: the upper half of the sides."""
IMAGES_PER_FOLDER = 10_000
WHITE = 255


def layout(
    rng: np.random.Generator, size: int = digits.GRID, overlapping: float = OVERLAPPING
) -> list[digits.Placement]:
    """A layout of one to four digits; in a share of them the first two boxes overlap, no others do.

    Args:
        size: pixels of the centre square, ``GRID`` or more.
        overlapping: that share.
    """
    if rng.random() >= overlapping:
        return digits.layout_random(rng, size=size)
    smallest, largest = round(0.30 * digits.GRID), round(0.50 * digits.GRID)
    labels = rng.integers(10, size=int(rng.integers(2, 5))).tolist()
    while True:
        squares = _squares(rng, rng.integers(smallest, largest + 1, len(labels)).tolist(), size)
        if squares and _crossing(squares[:2], labels[:2], size) <= CROSSING:
            break
        largest = max(smallest, largest - (not squares))
    return [
        digits.Placement((x / size, y / size, (x + side) / size, (y + side) / size), label)
        for (x, y, side), label in zip(squares, labels, strict=True)
    ]


def _squares(rng: np.random.Generator, sides: Sequence[int], size: int) -> list[tuple[int, int, int]]:
    """Left, top and side of squares, each at a uniform draw among the places that it may have; [] where one has none.

    The second overlaps the first as ``SHARED`` asks, the others overlap nothing.
    """
    squares: list[tuple[int, int, int]] = []
    for own in sides:
        starts = np.arange(size - own + 1)
        shared = [
            np.outer(_common(starts, own, top, other), _common(starts, own, left, other)) / min(own, other) ** 2
            for left, top, other in squares
        ]
        if len(squares) == 1:
            allowed = (shared[0] >= SHARED[0]) & (shared[0] <= SHARED[1])
        else:
            allowed = np.sum(shared, axis=0) == 0 if shared else np.ones((len(starts), len(starts)), bool)
        places = np.flatnonzero(allowed)
        if not len(places):
            return []
        top, left = divmod(int(places[rng.integers(len(places))]), len(starts))
        squares.append((left, top, own))
    return squares


def _crossing(squares: Sequence[tuple[int, int, int]], labels: Sequence[int], size: int) -> float:
    """The share of the lighter one's ink that two digits have in one place."""
    inks = []
    for (left, top, side), label in zip(squares, labels, strict=True):
        ink = np.zeros((size, size), np.float32)
        ink[top : top + side, left : left + side] = _mean_ink(label, side)
        inks.append(ink)
    return float((inks[0] * inks[1]).sum() / min(ink.sum() for ink in inks))


@functools.cache
def _mean_ink(label: int, side: int) -> np.ndarray:
    glyphs = digits.split().canvas
    return np.mean([glyphs.ink(index, side) for index in glyphs.by_label[label].tolist()], axis=0)


def _common(starts: np.ndarray, own: int, other_start: int, other: int) -> np.ndarray:
    """The length that intervals of ``own`` share with one."""
    return np.clip(np.minimum(starts + own, other_start + other) - np.maximum(starts, other_start), 0, None)


def describe(placement: digits.Placement, size: int = digits.GRID) -> str:
    """``"a big seven"`` or ``"a tiny three"``: how large the digit was drawn, and which.

    The twins' text encoders read 16 tokens, and know no words but the digits': "big" is three letters to them, "tiny"
    four. So two descriptions and the sign between them, which is what the place where two boxes overlap is told, fit.

    Args:
        size: pixels of the centre square.
    """
    left, _, right, _ = placement.box
    return f"a {'big' if round((right - left) * size) >= BIG else 'tiny'} {digits.WORDS[placement.label]}"


def write_rich(folder: Path, images: int, seed: int, size: int = SHORT_SIDE, first_id: int = 1) -> None:
    """Makes ``images`` canvases with their labels; the same arguments give the same bytes.

    Args:
        folder: where ``cc3m-images/`` and ``labels/`` go.
        seed: everything random comes from (seed, image id).
        size: pixels of the canvases' short side.

    Raises:
        StorageError: the disk is full or not writable.
    """
    glyphs, progress = digits.split().canvas, Progress("drawing canvases", images, "images")
    labels = folder / "labels"
    with os_errors(labels):
        labels.mkdir(parents=True, exist_ok=True)
    for number in range(first_id, first_id + images):
        rng = np.random.default_rng([seed, number, 2])
        placements = layout(rng, size)
        long = int(rng.integers(size, int(LONGEST * size) + 1))
        height, width = (size, long) if rng.random() < 0.5 else (long, size)
        pixels = digits.draw(rng, placements, glyphs, (height, width))
        shard, name = f"{number // IMAGES_PER_FOLDER:05d}", f"{number:09d}"
        label = _label(number, pixels, placements)
        pictures = folder / "cc3m-images" / shard
        known = {"caption": label["caption"], "key": name, "original_width": width, "original_height": height}
        with os_errors(folder):
            pictures.mkdir(parents=True, exist_ok=True)
            (pictures / f"{name}.jpg").write_bytes(jpeg(_bordered(pixels, WHITE)))
            (pictures / f"{name}.json").write_bytes(canonical_json(known))
            (labels / f"label_{name}.json").write_bytes(canonical_json(label))
        progress.advance()


def _bordered(pixels: np.ndarray, value: int) -> np.ndarray:
    """An array [H, W, …] in the middle of a square of ``value``."""
    height, width = pixels.shape[:2]
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    square = np.full((side, side, *pixels.shape[2:]), value, pixels.dtype)
    square[top : top + height, left : left + width] = pixels
    return square


def _label(number: int, pixels: np.ndarray, placements: Sequence[digits.Placement]) -> dict[str, Any]:
    """What the labelling would write of the bordered picture; a mask is the ink in its box."""
    height, width = pixels.shape[:2]
    side = max(height, width)
    down, across = (side - height) // 2, (side - width) // 2
    ink = pixels.min(axis=2) > INK
    objects = []
    for placement in placements:
        left, top, right, bottom = digits.pixel_box(placement.box, (height, width))
        mask = np.zeros(ink.shape, bool)
        mask[top:bottom, left:right] = ink[top:bottom, left:right]
        box = (left + across, top + down, right + across, bottom + down)
        word, description = digits.WORDS[placement.label], describe(placement, min(height, width))
        objects.append(make_object(box, word, placement.label + 1, description, mask=_bordered(mask, False)))
    return make_label(f"{number:09d}.jpg", number, digits.caption(placements), objects, "digits")
