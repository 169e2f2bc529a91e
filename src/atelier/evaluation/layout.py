"""Layout metrics: is what was asked for in its box, is the box filled, does anything lie outside?

The laptop twins' counterpart of GLIGEN's "YOLO score": a classifier reads the crop in every asked-for box.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from atelier.evaluation.judge import EMPTY, Judge, crop, read

INK = 0.30
"""How far above the background's own level (0..1) a pixel counts as ink."""

FILLED = 0.2
"""Share of a box's area that its ink must cover. Of 1,000 handwritten digits the thinnest covers 23 % of its box and
half of them 35 %; of random boxes on the same canvases half are below 19 %."""


@dataclass(frozen=True)
class LayoutScore:
    """What a judge saw in one picture.

    Attributes:
        read: the class in each box (10: empty).
        right: per box, whether it is the class asked for.
        filled: per box, whether it is not empty.
        ink_in_boxes: share of the picture's ink inside the boxes; 0 where there is no ink at all.
    """

    read: tuple[int, ...]
    right: tuple[bool, ...]
    filled: tuple[bool, ...]
    ink_in_boxes: float


def ink(image: np.ndarray) -> np.ndarray:
    """Ink map, float32 [H, W]: brightness over the background's level, 0 where it is not clearly above.

    The background is a smooth gradient; its level is estimated as the picture's median, which digits (at most a
    third of the area) do not move far.
    """
    grey = image.astype(np.float32).mean(-1) / 255
    above = grey - np.median(grey)
    return np.where(above > INK, above, 0.0)


def ink_share(image: np.ndarray, boxes: Sequence[Sequence[float]]) -> float:
    """Share of an image's ink (uint8 [H, W, 3]) that lies inside the boxes (normalised xyxy)."""
    strokes = ink(image)
    height, width = strokes.shape
    inside = np.zeros(strokes.shape, bool)
    for x0, y0, x1, y1 in boxes:
        # A stroke's antialiased edge may spill one pixel over.
        top, left = max(round(y0 * height) - 1, 0), max(round(x0 * width) - 1, 0)
        inside[top : round(y1 * height) + 1, left : round(x1 * width) + 1] = True
    total = strokes.sum()
    return float(strokes[inside].sum() / total) if total > 0 else 0.0


def ink_fill(image: np.ndarray, boxes: Sequence[Sequence[float]]) -> float:
    """Share of the boxes (normalised xyxy) of an image (uint8 [H, W, 3]) that hold ink on ``FILLED`` of their area."""
    strokes = ink(image) > 0
    height, width = strokes.shape
    filled = [
        strokes[round(y0 * height) : round(y1 * height), round(x0 * width) : round(x1 * width)].mean() >= FILLED
        for x0, y0, x1, y1 in boxes
    ]
    return float(np.mean(filled))


def ink_metrics(
    images: Sequence[np.ndarray], boxes: Sequence[Sequence[Sequence[float]]], suffix: str = ""
) -> dict[str, float]:
    """``ink_in_boxes`` and ``ink_fill`` over all pictures: what can be said of box following without a judge."""
    pairs = list(zip(images, boxes, strict=True))
    return {
        f"ink_in_boxes{suffix}": sum(ink_share(image, asked) for image, asked in pairs) / len(pairs),
        f"ink_fill{suffix}": sum(ink_fill(image, asked) for image, asked in pairs) / len(pairs),
    }


def score(
    judge: Judge,
    images: Sequence[np.ndarray],
    boxes: Sequence[Sequence[Sequence[float]]],
    labels: Sequence[Sequence[int]],
) -> list[LayoutScore]:
    """Scores pictures against the layouts that they were asked for.

    Args:
        images: uint8 [H, W, 3] each.
        boxes: per picture, normalised xyxy.
        labels: per picture, the class asked for in each box.
    """
    crops = [crop(image, box) for image, asked in zip(images, boxes, strict=True) for box in asked]
    classes = read(judge, torch.from_numpy(np.stack(crops))[:, None]).tolist()
    scores = []
    for image, asked, wanted in zip(images, boxes, labels, strict=True):
        seen, classes = classes[: len(asked)], classes[len(asked) :]
        scores.append(
            LayoutScore(
                read=tuple(seen),
                right=tuple(a == b for a, b in zip(seen, wanted, strict=True)),
                filled=tuple(a != EMPTY for a in seen),
                ink_in_boxes=ink_share(image, asked),
            )
        )
    return scores


def summary(scores: Sequence[LayoutScore], suffix: str = "") -> dict[str, float]:
    """``layout_accuracy`` and ``layout_fill`` over all boxes, ``ink_in_boxes`` over all pictures."""
    right = [value for score in scores for value in score.right]
    filled = [value for score in scores for value in score.filled]
    return {
        f"layout_accuracy{suffix}": sum(right) / len(right),
        f"layout_fill{suffix}": sum(filled) / len(filled),
        f"ink_in_boxes{suffix}": sum(score.ink_in_boxes for score in scores) / len(scores),
    }
