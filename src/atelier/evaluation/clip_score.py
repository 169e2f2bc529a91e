"""CLIP score: how near a picture and its prompt lie, by CLIP ViT-B/32."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from atelier.models.pretrained import load, load_model

MODEL = "openai/clip-vit-base-patch32"
MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class ClipScore:
    """max(cos, 0) of a picture's and its caption's embeddings, no prefix, weight 1.

    Pictures are resized as tensors, bilinearly and without smoothing first, as the published figures' were.

    Args:
        name: a CLIP's folder, or its id on the hub.
        tokenizer: that of its tokenizer; "": the same.
        revision: of the id.

    Raises:
        ConfigError: it is none.
    """

    def __init__(self, name: str = MODEL, tokenizer: str = "", revision: str = "") -> None:
        from transformers import AutoTokenizer, CLIPModel

        self._model = load_model(CLIPModel, name, revision)
        self._tokenizer = load(AutoTokenizer, tokenizer or name, "" if tokenizer else revision)
        self.side = int(self._model.config.vision_config.image_size)
        self._tokens = int(self._model.config.text_config.max_position_embeddings)

    @torch.inference_mode()
    def __call__(self, pictures: Sequence[Image.Image], captions: Sequence[str]) -> np.ndarray:
        """float64 [B], in [0, 1]."""
        cosines = (self.pictures(pictures) * self.texts(captions)).sum(-1)
        found: np.ndarray = cosines.clamp_min(0).double().cpu().numpy()
        return found

    @torch.inference_mode()
    def pictures(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Normalised embeddings [B, d] of pictures of any sizes."""
        where = self._model.device
        sides = (self.side, self.side)
        rows = []
        for picture in pictures:
            pixels = torch.from_numpy(np.asarray(picture.convert("RGB")).copy()).to(where).permute(2, 0, 1)[None]
            rows.append(torch.nn.functional.interpolate(pixels.float() / 255, sides, mode="bilinear"))
        x = torch.cat(rows)
        x = (x - x.new_tensor(MEAN)[:, None, None]) / x.new_tensor(DEVIATION)[:, None, None]
        pooled = self._model.vision_model(pixel_values=x).pooler_output
        return torch.nn.functional.normalize(self._model.visual_projection(pooled).float(), dim=-1)

    @torch.inference_mode()
    def texts(self, captions: Sequence[str]) -> Tensor:
        """Normalised embeddings [B, d]; longer captions are cut to what CLIP reads."""
        tokens = self._tokenizer(
            list(captions), padding="max_length", max_length=self._tokens, truncation=True, return_tensors="pt"
        ).to(self._model.device)
        pooled = self._model.text_model(**tokens).pooler_output
        return torch.nn.functional.normalize(self._model.text_projection(pooled).float(), dim=-1)
