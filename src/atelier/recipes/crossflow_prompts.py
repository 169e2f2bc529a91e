"""Prompts to look at during a training, and the digit twins' captions."""

import numpy as np

from atelier.data.digit_pairs import caption

HELD_OUT = 0xC505


def digit_pairs(count: int, seed: int = 1) -> list[tuple[int, int]]:
    """Pairs of digits (upper, lower), each as likely as any other."""
    rng = np.random.default_rng([HELD_OUT, seed])
    return [(int(upper), int(lower)) for upper, lower in rng.integers(0, 10, (count, 2))]


def digit_prompts(count: int) -> list[str]:
    """Captions of such pairs."""
    return [caption(upper, lower) for upper, lower in digit_pairs(count)]


def published_prompts() -> list[str]:
    """Prompts of several kinds: one thing, a scene, a style, a count, a relation."""
    return [
        "A dog flying in the sky",
        "A castle on a cliff above the sea at sunset",
        "A watercolour of a fox asleep in the snow",
        "Three red apples on a wooden table",
        "A bicycle leaning against a blue door",
        "A portrait of an old sailor, studio light",
        "A small robot that waters a garden",
        "A bowl of noodle soup seen from above",
    ]
