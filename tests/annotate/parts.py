"""Small annotators without models: quick, and each answer tells what it was made of."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from atelier.annotate.detector import NOTHING, Detections


class BrightnessTagger:
    """Tags an image by its mean brightness; a black one has no tag."""

    def prepare(self, image: Image.Image) -> float:
        return float(np.asarray(image, np.float64).mean())

    def tags(self, prepared: Sequence[float]) -> list[list[str]]:
        return [[] if value == 0 else ["bright thing" if value > 128 else "dark thing", "seven"] for value in prepared]


class CornerDetector:
    """A box at the left top corner and one in the middle, for each image that has tags."""

    def prepare(self, image: Image.Image) -> tuple[int, int]:
        return image.height, image.width

    def detect(
        self, prepared: Sequence[tuple[int, int]], tags: Sequence[Sequence[str]], sizes: Sequence[tuple[int, int]]
    ) -> list[Detections]:
        assert list(prepared) == list(sizes)
        return [
            Detections(
                np.array([[0.0, 0.0, 10.0, 12.0], [width / 4, height / 4, width / 2, height / 2]]),
                np.array([0.75, 0.5], np.float32),
                (own[0], ""),
                dropped=1,
            )
            if own
            else NOTHING
            for own, (height, width) in zip(tags, sizes, strict=True)
        ]


class SizeCaptioner:
    """Says how large each crop is; nothing of those in ``silent`` (sizes W, H)."""

    def __init__(self, silent: Sequence[tuple[int, int]] = ()) -> None:
        self.silent, self.calls = tuple(silent), list[int]()

    def captions(self, crops: Sequence[Image.Image]) -> list[str]:
        self.calls.append(len(crops))
        return ["" if one.size in self.silent else f"{one.width} by {one.height}" for one in crops]


class LengthEncoder:
    """A phrase's length, four times."""

    width = 4

    def embed(self, phrases: Sequence[str]) -> np.ndarray:
        return np.array([[len(phrase)] * 4 for phrase in phrases], np.float16).reshape(-1, 4)
