"""COCO's boxes in the square that the model sees: short side resized, centre cropped, clipped."""

from typing import NamedTuple

import numpy as np

Box = tuple[float, float, float, float]


class CroppedBox(NamedTuple):
    """A box of the square: xyxy in its pixels, and normalised to [0, 1]."""

    box_px: Box
    normalised: Box


def transform(box_xyxy: Box, size_wh: tuple[int, int], image_size: int, min_area: float = 0.01) -> CroppedBox | None:
    """A pixel box of the original image in the square of ``image_size``, by the published rule of GLIGEN on COCO.

    ``scale = image_size / min(W, H)``; the crop's offset is ``(side * scale - image_size) // 2``; the corners are
    clipped to the square. Nothing is changed in place.

    Args:
        box_xyxy: corners in pixels of the original.
        size_wh: (W, H) of the original.
        min_area: least share of the square.

    Returns:
        None where less than ``min_area``, or nothing, is left of it, or a corner is not finite.
    """
    if not np.isfinite(box_xyxy).all():
        return None
    x0, y0, x1, y1 = (min(max(value, 0.0), float(image_size)) for value in _placed(box_xyxy, size_wh, image_size))
    if x1 <= x0 or y1 <= y0 or (x1 - x0) * (y1 - y0) / image_size**2 < min_area:
        return None
    corners = (x0, y0, x1, y1)
    return CroppedBox(corners, (x0 / image_size, y0 / image_size, x1 / image_size, y1 / image_size))


def visible(box_xyxy: Box, size_wh: tuple[int, int], image_size: int) -> float:
    """The share of a box's area that the square shows; 0 where the box is none. Arguments as ``transform``'s."""
    if not np.isfinite(box_xyxy).all():
        return 0.0
    x0, y0, x1, y1 = _placed(box_xyxy, size_wh, image_size)
    whole = (x1 - x0) * (y1 - y0)
    shown = max(min(x1, image_size) - max(x0, 0.0), 0.0) * max(min(y1, image_size) - max(y0, 0.0), 0.0)
    return shown / whole if x1 > x0 and y1 > y0 else 0.0


def _placed(box_xyxy: Box, size_wh: tuple[int, int], image_size: int) -> list[float]:
    """The corners in the square's pixels, whatever lies outside of it."""
    scale = image_size / min(size_wh)
    left, top = ((side * scale - image_size) // 2 for side in size_wh)
    return [value * scale - offset for value, offset in zip(box_xyxy, (left, top, left, top), strict=True)]


def kept(
    boxes_px: np.ndarray, size_wh: tuple[int, int], image_size: int, min_area: float, limit: int, least: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """What the square keeps of a picture's boxes: normalised xyxy float32 [k, 4], and their rows, the largest first.

    Args:
        boxes_px: [n, 4], xyxy in pixels of the picture.
        limit: most boxes.
        least: the share of a box that must be visible; the others as ``transform``'s.
    """
    cropped = [
        transform(tuple(box), size_wh, image_size, min_area)
        if visible(tuple(box), size_wh, image_size) >= least
        else None
        for box in boxes_px.tolist()
    ]
    good = np.array([place for place, box in enumerate(cropped) if box is not None], np.int64)
    boxes = np.array([box.normalised for box in cropped if box is not None], np.float64).reshape(-1, 4)
    chosen = largest(boxes, limit)
    return boxes[chosen].astype(np.float32), good[chosen]


def largest(boxes: np.ndarray, limit: int) -> np.ndarray:
    """Rows of the ``limit`` largest of [n, 4] boxes (xyxy), the largest first; of equal ones the earlier first."""
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return np.argsort(-area, kind="stable")[:limit]
