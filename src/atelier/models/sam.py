"""SAM (arXiv 2304.02643) asked about boxes: one mask each.

The image encoder, which is nearly all of SAM, sees a picture once, whatever number of boxes is asked about.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from atelier.models.pretrained import load_model

MODEL = "facebook/sam-vit-huge"
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BOXES = 16
"""Boxes that are asked about at once: each one's mask is 4 MB on its way to the picture's size."""


class BoxSegmenter:
    """Outlines what it sees in a box.

    Args:
        name: a SAM's folder, or its id on the hub.
        revision: of the id.
        arguments: see ``pretrained.load_model``.

    Raises:
        ConfigError: it is none.
    """

    def __init__(self, name: str = MODEL, revision: str = "", **arguments: Any) -> None:
        from transformers import SamModel

        self._model = load_model(SamModel, name, revision, **arguments)
        self._side = int(self._model.config.vision_config.image_size)

    @torch.inference_mode()
    def masks(self, picture: Image.Image, boxes: Sequence[Sequence[float]]) -> tuple[np.ndarray, np.ndarray]:
        """bool [n, H, W] of boxes (xyxy) in pixels, and SAM's estimates of their IoU [n]."""
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
