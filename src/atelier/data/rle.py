"""COCO's compressed run-length masks, as SA-1B's json has them in ``segmentation.counts``."""

from typing import cast

import numpy as np


def encode(mask: np.ndarray) -> dict[str, object]:
    """A mask in COCO's compressed form.

    Args:
        mask: bool [H, W].

    Returns:
        ``{"size": [H, W], "counts": text}``; runs go down the columns and begin with zeros.
    """
    flat = np.concatenate([[False], mask.T.reshape(-1), [False]])
    edges = np.flatnonzero(flat[1:-1] != flat[:-2])  # where a run begins; the first run is of zeros
    runs = np.diff(np.concatenate([[0], edges, [mask.size]])).tolist()
    return {"size": [int(size) for size in mask.shape], "counts": _compress(runs)}


def decode(segmentation: dict[str, object]) -> np.ndarray:
    """The bool [H, W] mask of ``encode``'s result.

    Raises:
        ValueError: the runs do not add up to H·W.
    """
    height, width = cast(list[int], segmentation["size"])
    runs = _expand(str(segmentation["counts"]))
    if sum(runs) != height * width or min(runs, default=0) < 0:
        raise ValueError(f"run lengths sum to {sum(runs)}, the mask has {height * width} pixels")
    values = np.zeros(len(runs), bool)
    values[1::2] = True
    return np.repeat(values, runs).reshape(width, height).T


def _compress(runs: list[int]) -> str:
    """Each run as the difference to the one before the last, in little-endian 5-bit groups from "0" up."""
    text = []
    for position, run in enumerate(runs):
        value = run - runs[position - 2] if position > 2 else run
        while True:
            group, value = value & 0x1F, value >> 5
            last = value == (-1 if group & 0x10 else 0)
            text.append(chr((group if last else group | 0x20) + 48))
            if last:
                break
    return "".join(text)


def _expand(text: str) -> list[int]:
    runs: list[int] = []
    value, shift = 0, 0
    for letter in text:
        group = ord(letter) - 48
        value |= (group & 0x1F) << shift
        shift += 5
        if not group & 0x20:
            if group & 0x10:
                value -= 1 << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value, shift = 0, 0
    return runs
