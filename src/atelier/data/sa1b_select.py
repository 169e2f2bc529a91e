"""Which of an image's detected boxes are used: IGLIGEN's rule, after boxes outside the image are clipped or dropped."""

from typing import NamedTuple

import numpy as np

from atelier.data.geometry import cxcywh_to_xyxy

MIN_CONFIDENCE = 0.25
MAX_BOXES = 32
_ROUNDING = 2e-3  # fp16 centres and sizes put a box that touches the border this far outside


class CleanBoxes(NamedTuple):
    """Boxes inside the crop.

    Attributes:
        xyxy: float32 [n, 4] in [0, 1].
        kept: int64 [n], their rows in the input.
        clipped: how many reached over the border by more than rounding.
        dropped: how many were wholly outside, empty or not finite.
    """

    xyxy: np.ndarray
    kept: np.ndarray
    clipped: int
    dropped: int


def clean(cxcywh: np.ndarray, parity: bool = False) -> CleanBoxes:
    """Corners of [n, 4] boxes (cxcywh of the crop, any float type), clipped to the crop.

    Args:
        parity: as upstream's loader: corners computed and rounded in fp16, nothing dropped; boxes of no area and those
            that are not finite stay in.
    """
    if parity:
        exact = np.clip(cxcywh_to_xyxy(cxcywh, np.float16), 0, 1).astype(np.float32)
        return CleanBoxes(exact, np.arange(len(exact)), 0, 0)
    corners = cxcywh_to_xyxy(cxcywh)
    finite = np.isfinite(corners).all(axis=1)
    inside = np.clip(np.nan_to_num(corners), 0, 1)
    good = finite & (inside[:, 2] > inside[:, 0]) & (inside[:, 3] > inside[:, 1])
    over = good & (np.abs(inside - corners) > _ROUNDING).any(axis=1)
    return CleanBoxes(inside[good], np.flatnonzero(good), int(over.sum()), int((~good).sum()))


def select(confidence: np.ndarray, minimum: float = MIN_CONFIDENCE, limit: int = MAX_BOXES) -> np.ndarray:
    """Rows with confidence above ``minimum``; of more than ``limit`` boxes only those above the ``limit``-th highest.

    The comparison is strict, as published, so at most ``limit - 1`` survive then.

    Args:
        confidence: [n], compared in its own precision (fp16 as published).

    Returns:
        int64 row numbers in their order.
    """
    threshold = confidence.dtype.type(minimum)
    if len(confidence) > limit:
        threshold = max(threshold, np.sort(confidence)[-limit])
    return np.flatnonzero(confidence > threshold)
