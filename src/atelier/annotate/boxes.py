"""Detected boxes: clipped to the image, then non-maximum suppression; plain numpy."""

import numpy as np

MIN_SIDE = 1.0
"""Pixels: of less there is nothing to crop."""


def clip(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """[n, 4] boxes (xyxy, pixels), cut to an image of (H, W)."""
    height, width = size
    return np.clip(boxes.astype(np.float64).reshape(-1, 4), 0.0, np.array([width, height, width, height], np.float64))


def real(boxes: np.ndarray) -> np.ndarray:
    """Which of [n, 4] boxes are finite and at least ``MIN_SIDE`` wide and high; bool [n]."""
    sides = boxes[:, 2:] - boxes[:, :2]
    return np.isfinite(boxes).all(axis=1) & (sides >= MIN_SIDE).all(axis=1)


def iou(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Intersection over union of a box [4] with each of [n, 4]; 0 where both are empty."""
    overlap = np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2])
    common = np.clip(overlap, 0.0, None).prod(axis=1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    union = (box[2:] - box[:2]).prod() + areas - common
    return np.divide(common, union, out=np.zeros(len(boxes)), where=union > 0)


def nms(boxes: np.ndarray, scores: np.ndarray, threshold: float) -> np.ndarray:
    """Class-agnostic non-maximum suppression.

    From the best box on, every worse one that overlaps a kept one by more than ``threshold`` is left out.

    Returns:
        Rows of the kept boxes, the best first; of equal scores the earlier row first.
    """
    waiting = np.argsort(-scores, kind="stable")
    kept = []
    while len(waiting):
        best, waiting = waiting[0], waiting[1:]
        kept.append(best)
        waiting = waiting[iou(boxes[best], boxes[waiting]) <= threshold]
    return np.array(kept, np.int64)
