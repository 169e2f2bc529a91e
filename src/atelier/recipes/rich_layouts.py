"""Held-out layouts of the rich-context twin: sentences for phrases, and boxes that overlap in a share of them."""

import numpy as np

from atelier.data import digits, digits_rich
from atelier.recipes.layouts import HELD_OUT, Layout


def rich_layouts(
    count: int, seed: int, size: int = digits.GRID, overlapping: float = digits_rich.OVERLAPPING
) -> list[Layout]:
    """Random layouts of one to four described digits on ``size`` pixels, by the rules of the training canvases but
    never among them.

    Args:
        overlapping: the share in which the first two boxes overlap.
    """
    layouts = []
    for number in range(count):
        rng = np.random.default_rng([HELD_OUT, seed, number, 2])
        placements = digits_rich.layout(rng, size, overlapping)
        layouts.append(
            Layout(
                prompt=digits.caption(placements),
                boxes=[list(box) for box, _ in placements],
                phrases=[digits_rich.describe(placement, size) for placement in placements],
                seed=seed * 1_000_003 + number,
                labels=tuple(label for _, label in placements),
            )
        )
    return layouts
