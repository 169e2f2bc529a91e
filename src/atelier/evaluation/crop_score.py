"""CropCLIP and CropPick: how near a crop and the description of what should be in it lie, by CLIP or by PickScore."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from atelier.evaluation.clip_score import DEVIATION, MEAN, ClipScore
from atelier.evaluation.crops import centred

PICK_SCORE = "yuvalkirstain/PickScore_v1"
PICK_TOKENIZER = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"


class CropScore(ClipScore):
    """exp(logit scale) · cos of a crop's and a description's embeddings: CLIP's ``logits_per_image``, up to 100.

    Crops are resized by Pillow, bicubically and smoothed, and cut to the centre square, as CLIP's own processor does
    (``ClipScore`` does not).

    Args:
        name: a CLIP's folder or id; PickScore is one.
        tokenizer: as ``ClipScore``'s. PickScore's folder has none: any CLIP's is the same.
        batch: crops at once.
        revision: of the id.
    """

    def __init__(self, name: str, tokenizer: str = "", batch: int = 64, revision: str = "") -> None:
        super().__init__(name, tokenizer, revision)
        self._batch = batch

    @torch.inference_mode()
    def __call__(self, pictures: Sequence[Image.Image], captions: Sequence[str]) -> np.ndarray:
        """float64 [B]."""
        rows = range(0, len(pictures), self._batch)
        cosines = [
            (self.pictures(pictures[at : at + self._batch]) * self.texts(captions[at : at + self._batch])).sum(-1)
            for at in rows
        ]
        scale = self._model.logit_scale.float().exp()
        found: np.ndarray = (scale * torch.cat(cosines)).double().cpu().numpy() if cosines else np.empty(0)
        return found

    @torch.inference_mode()
    def pictures(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Normalised embeddings [B, d] of crops of any sizes."""
        pooled = self._model.vision_model(pixel_values=self.pixel_values(pictures)).pooler_output
        return torch.nn.functional.normalize(self._model.visual_projection(pooled).float(), dim=-1)

    def pixel_values(self, pictures: Sequence[Image.Image]) -> Tensor:
        """What the image tower is given: [B, 3, side, side]."""
        x = torch.from_numpy(np.stack([centred(picture, self.side) for picture in pictures])).to(self._model.device)
        return (x - x.new_tensor(MEAN)[:, None, None]) / x.new_tensor(DEVIATION)[:, None, None]
