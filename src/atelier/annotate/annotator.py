"""Images to grounded annotations: tags → boxes → a caption for each box → its embedding."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from PIL import Image

from atelier.annotate.captioner import crop
from atelier.annotate.detector import Detections
from atelier.annotate.tagger import Tagger


class Detector(Protocol):
    """Finds what tags name; see ``detector.GroundingDetector``."""

    def prepare(self, image: Image.Image) -> Any: ...

    def detect(
        self, prepared: Sequence[Any], tags: Sequence[Sequence[str]], sizes: Sequence[tuple[int, int]]
    ) -> list[Detections]: ...


class CropCaptioner(Protocol):
    """Describes crops; see ``captioner.Captioner``."""

    def captions(self, crops: Sequence[Image.Image]) -> list[str]: ...


class TextEmbedder(Protocol):
    """Embeds phrases; see ``phrases.PhraseEncoder``."""

    width: int

    def embed(self, phrases: Sequence[str]) -> np.ndarray: ...


class PreparedImage(NamedTuple):
    """An image and what tagger and detector made ready of it."""

    image: Image.Image
    for_tagger: Any
    for_detector: Any


@dataclass(frozen=True, eq=False)
class Annotation:
    """What was found in one image; n boxes, the surest first.

    Attributes:
        tags: of the image.
        boxes: float64 [n, 4], xyxy in pixels of the image.
        scores: n of the detector's.
        labels: n tags that the boxes were found by, "" where that cannot be told.
        phrases: n captions.
        embeddings: float16 [n, D], None without a phrase encoder.
        dropped: boxes that were found and are not here.
    """

    tags: tuple[str, ...]
    boxes: np.ndarray
    scores: np.ndarray
    labels: tuple[str, ...]
    phrases: tuple[str, ...]
    embeddings: np.ndarray | None
    dropped: int


class Locator:
    """What is in images, and where: both models see all images of a batch at once."""

    def __init__(self, tagger: Tagger, detector: Detector) -> None:
        self._tagger, self._detector = tagger, detector

    def prepare(self, image: Image.Image) -> PreparedImage:
        """Everything that can be done for an RGB image beside the models; called from several threads."""
        return PreparedImage(image, self._tagger.prepare(image), self._detector.prepare(image))

    def locate(self, prepared: Sequence[PreparedImage]) -> tuple[list[list[str]], list[Detections]]:
        """The tags of each image, and the boxes."""
        tags = self._tagger.tags([item.for_tagger for item in prepared])
        sizes = [(item.image.height, item.image.width) for item in prepared]
        return tags, self._detector.detect([item.for_detector for item in prepared], tags, sizes)


class Annotator(Locator):
    """The models in their order; each sees all images of a batch, the captioner all their crops, at once."""

    def __init__(
        self, tagger: Tagger, detector: Detector, captioner: CropCaptioner, encoder: TextEmbedder | None
    ) -> None:
        super().__init__(tagger, detector)
        self._captioner, self._encoder = captioner, encoder

    def annotate(self, prepared: Sequence[PreparedImage]) -> list[Annotation]:
        """An annotation for each image. A box that gets no caption takes its tag for one; without either it is
        dropped."""
        tags, found = self.locate(prepared)
        crops = [crop(item.image, box) for item, own in zip(prepared, found, strict=True) for box in own.boxes]
        captions = iter(self._captioner.captions(crops) if crops else ())
        described = [
            _described(own, detections, [next(captions) for _ in detections.boxes])
            for own, detections in zip(tags, found, strict=True)
        ]
        return self._embedded(described)

    def _embedded(self, annotations: list[Annotation]) -> list[Annotation]:
        if self._encoder is None:
            return annotations
        rows = self._encoder.embed([phrase for one in annotations for phrase in one.phrases])
        ends = np.cumsum([len(one.phrases) for one in annotations])[:-1]
        return [
            Annotation(one.tags, one.boxes, one.scores, one.labels, one.phrases, own, one.dropped)
            for one, own in zip(annotations, np.split(rows, ends), strict=True)
        ]


def _described(tags: Sequence[str], found: Detections, captions: Sequence[str]) -> Annotation:
    phrases = [caption or label for caption, label in zip(captions, found.labels, strict=True)]
    kept = [row for row, phrase in enumerate(phrases) if phrase]
    return Annotation(
        tuple(tags),
        found.boxes[kept],
        found.scores[kept],
        tuple(found.labels[row] for row in kept),
        tuple(phrases[row] for row in kept),
        None,
        found.dropped + len(phrases) - len(kept),
    )
