"""Held-out prompts: to look at during a training, and the digit twins' to be judged."""

import numpy as np

from atelier.data import digits
from atelier.data.digit_pairs import boxes, caption
from atelier.recipes.layouts import HELD_OUT, Layout

_PUBLISHED = (
    "A dog flying in the sky",
    "A castle on a cliff above the sea at sunset",
    "A watercolour of a fox asleep in the snow",
    "Three red apples on a wooden table",
    "A bicycle leaning against a blue door",
    "A portrait of an old sailor, studio light",
    "A small robot that waters a garden",
    "A bowl of noodle soup seen from above",
)


def digit_layouts(count: int, seed: int) -> list[Layout]:
    """Pairs of digits, each as likely as any other, with the two squares in which a judge reads them."""
    rng = np.random.default_rng([HELD_OUT, seed])
    upper_and_lower = [list(box) for box in boxes()]
    return [
        Layout(
            prompt=caption(int(upper), int(lower)),
            boxes=upper_and_lower,
            phrases=[digits.phrase(int(upper)), digits.phrase(int(lower))],
            seed=seed * 1_000_003 + number,
            labels=(int(upper), int(lower)),
        )
        for number, (upper, lower) in enumerate(rng.integers(0, 10, (count, 2)))
    ]


def published_layouts() -> list[Layout]:
    """One thing, a scene, a style, a count, a relation: prompts without boxes."""
    return [Layout(prompt, [], [], number) for number, prompt in enumerate(_PUBLISHED)]
