"""The colour of an object by CLIP (arXiv 2310.11513: ViT-L/14): which of ten sentences its crop is nearest to."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from atelier.evaluation.clip_score import ClipScore
from atelier.evaluation.geneval.objects import Found
from atelier.evaluation.geneval.tasks import COLOURS

MODEL = "openai/clip-vit-large-patch14"
SENTENCES = ("a photo of a {colour} {label}", "a photo of a {colour}-colored {label}", "a photo of a {colour} object")
GREY = 127


class ClipColours:
    """``objects.ColourReader``.

    Args:
        clip: a CLIP.
    """

    def __init__(self, clip: ClipScore) -> None:
        self._clip = clip
        self._known: dict[str, torch.Tensor] = {}

    def read(self, picture: Image.Image, objects: Sequence[Found]) -> list[str]:
        """The colour of each object's crop; where there is a mask, what is not the object is grey."""
        if not objects:
            return []
        seen = self._clip.pictures([crop(picture, one) for one in objects])
        named = torch.stack([self._sentences(one.label) for one in objects])  # [n, colours, d]
        return [COLOURS[row] for row in (named @ seen[:, :, None])[..., 0].argmax(1).tolist()]

    def _sentences(self, label: str) -> torch.Tensor:
        """A direction for each colour [colours, d]: the mean of its sentences."""
        if label not in self._known:
            texts = [sentence.format(colour=colour, label=label) for colour in COLOURS for sentence in SENTENCES]
            mean = self._clip.texts(texts).unflatten(0, (len(COLOURS), -1)).mean(1)
            self._known[label] = torch.nn.functional.normalize(mean, dim=-1)
        return self._known[label]


def crop(picture: Image.Image, found: Found) -> Image.Image:
    """The object's box, at least one pixel large."""
    pixels = np.asarray(picture.convert("RGB"))
    if found.mask is not None:
        pixels = np.where(found.mask[..., None], pixels, np.uint8(GREY))
    height, width = pixels.shape[:2]
    left, top = (min(max(int(value), 0), most - 1) for value, most in zip(found.box[:2], (width, height), strict=True))
    right, bottom = max(int(np.ceil(found.box[2])), left + 1), max(int(np.ceil(found.box[3])), top + 1)
    return Image.fromarray(pixels[top:bottom, left:right])
