"""SAMIoU: does an object fill the box that it was asked for? SAM's outline of what it sees in the box decides."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from atelier.evaluation.crops import PixelBox
from atelier.models.sam import MODEL, BoxSegmenter

SURE = 0.5
"""SAM's own estimate of its mask must exceed this; else the object counts as absent."""


class SamIoU(BoxSegmenter):
    """IoU of a box and of the tight box around SAM's mask in it; 0 where SAM is not sure or sees nothing.

    Args:
        name: a SAM's folder, or its id on the hub.
        legacy: the published code's box, which ends with the mask's last row and column instead of behind them; its
            figures are lower by some 1 %, of small objects more.

    Raises:
        ConfigError: it is none.
    """

    def __init__(self, name: str = MODEL, legacy: bool = False) -> None:
        super().__init__(name)
        self._legacy = legacy

    @torch.inference_mode()
    def __call__(self, picture: Image.Image, boxes: Sequence[PixelBox]) -> np.ndarray:
        """float64 [n] of boxes in pixels."""
        if not boxes:
            return np.empty(0)
        masks, scores = self.masks(picture, boxes)
        return mask_ious(masks, scores, np.asarray(boxes, np.float64), self._legacy)


def mask_box(mask: np.ndarray, legacy: bool = False) -> PixelBox | None:
    """The tight box around a mask bool [H, W]; None: it is empty. ``legacy`` as ``SamIoU``'s."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return None
    end = 0 if legacy else 1
    return float(columns[0]), float(rows[0]), float(columns[-1] + end), float(rows[-1] + end)


def iou(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over union of two boxes; 0 of two without area."""
    width = max(min(a[2], b[2]) - max(a[0], b[0]), 0.0)
    height = max(min(a[3], b[3]) - max(a[1], b[1]), 0.0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return float(width * height / union) if union > 0 else 0.0


def mask_ious(masks: np.ndarray, scores: np.ndarray, boxes: np.ndarray, legacy: bool = False) -> np.ndarray:
    """The rule: float64 [n] of masks bool [n, H, W], SAM's estimates [n] and the boxes asked for [n, 4] in pixels."""
    found = []
    for mask, score, box in zip(masks, scores.tolist(), boxes.tolist(), strict=True):
        tight = mask_box(mask, legacy) if score > SURE else None
        found.append(0.0 if tight is None else iou(tight, box))
    return np.array(found, np.float64)
