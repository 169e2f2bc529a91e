"""One image with everything that a source knows about it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True, eq=False)
class RawExample:
    """One image of a raw source.

    Attributes:
        key: unique in the source; no dot, e.g. ``"sa_<id>"``.
        image: the file's bytes (JPEG, PNG or WebP); b"" where the latent is there.
        original_size: (H, W) in pixels; of ``inner`` where that is given.
        caption: text; the first where there are several.
        boxes: float32 [n, 4], xyxy in [0, 1] of the centre crop.
        scores: [n], the detector's confidence; 1 for what people drew.
        phrases: n texts.
        clipped, dropped: boxes that reached over the crop's border, and boxes that were of no use; of COCO and
            rich-context data also those for which there was no room.
        captions: all of them, for a source that has several a picture; else empty.
        boxes_px: float64 [n, 4], xyxy in pixels of the original image, for a source that states them so.
        phrase_embeddings: float16 [n, D], for a source that brings them.
        latent: float16 [C, h, w] of the centre crop, scaled, for a source that brings latents instead of images.
        inner: left, top, right, bottom in pixels of ``image`` where that has a border: all else is about it.
        facts: what else the source states about it, e.g. scores, see ``filters``.
        counts: what is to be counted of it beside its boxes, by name.
    """

    key: str
    image: bytes
    original_size: tuple[int, int]
    caption: str
    boxes: np.ndarray
    scores: np.ndarray
    phrases: tuple[str, ...]
    clipped: int = 0
    dropped: int = 0
    captions: tuple[str, ...] = ()
    boxes_px: np.ndarray | None = None
    phrase_embeddings: np.ndarray | None = None
    latent: np.ndarray | None = None
    inner: tuple[int, int, int, int] | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
