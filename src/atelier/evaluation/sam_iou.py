"""SAMIoU: does an object fill the box that it was asked for? SAM outlines what it sees in the box; the outline decides.

The image encoder, which is nearly all of SAM, sees a picture once, whatever number of boxes is asked about.
"""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from atelier.evaluation.crops import PixelBox
from atelier.models.pretrained import load_model

MODEL = "facebook/sam-vit-huge"
SURE = 0.5
"""SAM's own estimate of its mask must exceed this; else the object counts as absent."""
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BOXES = 16
"""Boxes that are asked about at once: each one's mask is 4 MB on its way to the picture's size."""


class SamIoU:
    """IoU of a box and of the tight box around SAM's mask in it; 0 where SAM is not sure or sees nothing.

    Args:
        name: a SAM's folder, or its id on the hub.
        legacy: the published code's box, which ends with the mask's last row and column instead of behind them; its
            figures are lower by some 1 %, of small objects more.

    Raises:
        ConfigError: it is none.
    """

    def __init__(self, name: str = MODEL, legacy: bool = False) -> None:
        from transformers import SamModel

        self._model, self._legacy = load_model(SamModel, name), legacy
        self._side = int(self._model.config.vision_config.image_size)

    @torch.inference_mode()
    def __call__(self, picture: Image.Image, boxes: Sequence[PixelBox]) -> np.ndarray:
        """float64 [n] of boxes in pixels."""
        if not boxes:
            return np.empty(0)
        masks, scores = self.masks(picture, boxes)
        return mask_ious(masks, scores, np.asarray(boxes, np.float64), self._legacy)

    @torch.inference_mode()
    def masks(self, picture: Image.Image, boxes: Sequence[PixelBox]) -> tuple[np.ndarray, np.ndarray]:
        """bool [n, H, W], and SAM's estimates of their IoU [n]."""
        pixel_values, (height, width) = self.pixel_values(picture)
        seen = self._model.get_image_embeddings(pixel_values)
        scale = np.array([width / picture.width, height / picture.height] * 2)
        prompts = torch.from_numpy(np.asarray(boxes, np.float64) * scale).to(pixel_values)
        masks, scores = [], []
        for some in prompts.split(BOXES):
            told = self._model(image_embeddings=seen, input_boxes=some[None], multimask_output=False)
            logits = torch.nn.functional.interpolate(
                told.pred_masks[0].float(), (self._side, self._side), mode="bilinear", align_corners=False
            )
            whole = torch.nn.functional.interpolate(
                logits[..., :height, :width], (picture.height, picture.width), mode="bilinear", align_corners=False
            )
            masks.append((whole[:, 0] > 0).cpu().numpy())
            scores.append(told.iou_scores[0, :, 0].double().cpu().numpy())
        return np.concatenate(masks), np.concatenate(scores)

    def pixel_values(self, picture: Image.Image) -> tuple[Tensor, tuple[int, int]]:
        """What the image encoder is given, [1, 3, side, side], and the (height, width) of it that is the picture."""
        scale = self._side / max(picture.size)
        width, height = (int(side * scale + 0.5) for side in picture.size)
        resized = picture.convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
        x = torch.from_numpy(np.asarray(resized, np.float32).copy()).permute(2, 0, 1).to(self._model.device) / 255
        x = (x - x.new_tensor(MEAN)[:, None, None]) / x.new_tensor(DEVIATION)[:, None, None]
        return torch.nn.functional.pad(x, (0, self._side - width, 0, self._side - height))[None], (height, width)


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
