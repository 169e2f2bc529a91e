"""Layouts of described objects whose boxes overlap: the rich-context twin's held-out ones, and some of photographs."""

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


def described_layouts() -> list[Layout]:
    """Examples for a model of photographs: a sentence a box, boxes within and across others, captions or none."""
    return [
        Layout(
            "a cosy living room in the evening",
            [[0.05, 0.30, 0.55, 0.95], [0.18, 0.48, 0.44, 0.70], [0.58, 0.10, 0.95, 0.55], [0.50, 0.62, 1.00, 1.00]],
            [
                "a worn brown leather armchair with a plaid blanket thrown over its back",
                "an orange tabby cat asleep on the seat, curled up with its tail over its nose",
                "a tall window with rain on the glass and a streetlight glowing behind it",
                "a round wooden table with a chess board and two cups of tea on it",
            ],
            0,
        ),
        Layout(
            "",
            [[0.00, 0.45, 1.00, 1.00], [0.10, 0.25, 0.50, 0.85], [0.40, 0.35, 0.85, 0.80], [0.60, 0.02, 0.95, 0.30]],
            [
                "a pebble beach with white foam where small waves run out",
                "a man in a yellow raincoat who leans against the wind and holds his hat",
                "a blue fishing boat pulled up on the stones, its paint flaking and a net hung over the side",
                "three seagulls gliding in a row before dark grey clouds",
            ],
            1,
        ),
        Layout(
            "a market stall seen from the front",
            [[0.02, 0.50, 0.48, 0.98], [0.30, 0.55, 0.72, 0.98], [0.60, 0.20, 0.95, 0.90], [0.00, 0.00, 1.00, 0.28]],
            [
                "a shallow crate heaped with shiny red apples, one of them bitten",
                "bunches of green grapes that hang over the edge of a woven basket",
                "an old woman in a flowered headscarf who smiles and weighs fruit in her hand",
                "a striped red and white awning with a string of small lamps along its edge",
            ],
            2,
        ),
    ]
