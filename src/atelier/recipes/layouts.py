"""Layouts to sample: held-out ones of the digit twins, and those of the papers' READMEs."""

from dataclasses import dataclass

import numpy as np

from atelier.data import digits

HELD_OUT = 0x6E1D
"""Seeds' stream of held-out layouts; the canvases of training are drawn from others."""


@dataclass(frozen=True)
class Layout:
    """One thing to draw.

    Attributes:
        prompt: the caption.
        boxes: normalised xyxy.
        phrases: one a box.
        seed: of the noise.
        labels: the class in each box, where a judge knows classes; else empty.
    """

    prompt: str
    boxes: list[list[float]]
    phrases: list[str]
    seed: int
    labels: tuple[int, ...] = ()


def digit_layouts(count: int, seed: int, size: int = digits.GRID) -> list[Layout]:
    """Random layouts of one to four digits on ``size`` pixels, by the rules of the training canvases but never among
    them."""
    layouts = []
    for number in range(count):
        placements = digits.layout_random(np.random.default_rng([HELD_OUT, seed, number]), size=size)
        layouts.append(
            Layout(
                prompt=digits.caption(placements),
                boxes=[list(box) for box, _ in placements],
                phrases=[digits.phrase(label) for _, label in placements],
                seed=seed * 1_000_003 + number,
                labels=tuple(label for _, label in placements),
            )
        )
    return layouts


def published_layouts() -> list[Layout]:
    """The examples of the papers' READMEs (GLIGEN on COCO, IGLIGEN-XL)."""
    return [
        Layout("An image of grassland with a dog.", [[0.1, 0.6, 0.3, 0.8]], ["a dog"], 0),
        Layout(
            "A realistic image of landscape scene depicting a green car parking on the left of a blue truck, "
            "with a red air balloon and a bird in the sky",
            [
                [0.041015625, 0.548828125, 0.453125, 0.859375],
                [0.525390625, 0.552734375, 0.93359375, 0.865234375],
                [0.12890625, 0.015625, 0.412109375, 0.279296875],
                [0.578125, 0.08203125, 0.857421875, 0.27734375],
            ],
            ["a green car", "a blue truck", "a red air balloon", "a bird"],
            1,
        ),
    ]
