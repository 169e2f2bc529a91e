"""Pictures to rich labels: tags → boxes → an outline and a description of each object, and a caption of the whole."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from PIL import Image

from atelier.annotate.annotator import CropCaptioner, Detector, Locator, PreparedImage
from atelier.annotate.captioner import touched
from atelier.annotate.detector import Detections
from atelier.annotate.tagger import Tagger

PixelBox = tuple[int, int, int, int]


class Segmenter(Protocol):
    """Outlines what is in boxes; see ``models.sam.BoxSegmenter``."""

    def masks(self, picture: Image.Image, boxes: Sequence[PixelBox]) -> tuple[np.ndarray, np.ndarray]: ...


class Scorer(Protocol):
    """How well texts fit crops; see ``evaluation.crop_score.CropScore``."""

    def __call__(self, pictures: Sequence[Image.Image], captions: Sequence[str]) -> np.ndarray: ...


@dataclass(frozen=True, eq=False)
class DescribedObject:
    """One object.

    Attributes:
        box: xyxy in whole pixels of the picture.
        score: the detector's.
        category: the tag that it was found by, "" where that cannot be told.
        description: the model's, else the tag.
        written: whether it is the model's.
        mask: bool [H, W]; None: nobody was asked for it.
        fit: how well crop and description fit; None: likewise.
    """

    box: PixelBox
    score: float
    category: str
    description: str = ""
    written: bool = False
    mask: np.ndarray | None = None
    fit: float | None = None

    @property
    def area(self) -> int:
        """Of its box, in pixels."""
        left, top, right, bottom = self.box
        return (right - left) * (bottom - top)


@dataclass(frozen=True, eq=False)
class RichAnnotation:
    """What was found in one picture.

    Attributes:
        tags: of the picture.
        caption: of the picture; "" where it has one of its own, or none was written.
        objects: the surest first.
        dropped: boxes that were found and are not among them.
    """

    tags: tuple[str, ...]
    caption: str
    objects: tuple[DescribedObject, ...]
    dropped: int


class RichAnnotator(Locator):
    """The models in their order; each but the segmenter sees all pictures, or all crops, of a batch at once.

    Args:
        tagger, detector: see ``Locator``.
        describer: of crops.
        captioner: of whole pictures.
        segmenter, scorer: None leaves masks and fits out.
        least_area: pixels of a box from which it is described; a smaller one is called by its tag.
    """

    def __init__(
        self,
        tagger: Tagger,
        detector: Detector,
        describer: CropCaptioner,
        captioner: CropCaptioner,
        segmenter: Segmenter | None = None,
        scorer: Scorer | None = None,
        least_area: int = 32 * 32,
    ) -> None:
        super().__init__(tagger, detector)
        self._describer, self._captioner = describer, captioner
        self._segmenter, self._scorer, self._least_area = segmenter, scorer, least_area

    def annotate(self, prepared: Sequence[PreparedImage], captioned: Sequence[bool]) -> list[RichAnnotation]:
        """An annotation for each picture. A box without a description is called by its tag; without either it is
        dropped.

        Args:
            captioned: of each picture, whether it has a caption already.
        """
        images = [item.image for item in prepared]
        tags, found = self.locate(prepared)
        objects = self._described(images, [_objects(own, image) for own, image in zip(found, images, strict=True)])
        objects = self._scored(images, objects)
        without = [image for image, has in zip(images, captioned, strict=True) if not has]
        written = iter(self._captioner.captions(without) if without else ())
        return [
            RichAnnotation(
                tuple(named),
                "" if has else next(written),
                tuple(self._outlined(image, own)),
                detected.dropped + len(detected.boxes) - len(own),
            )
            for image, named, has, own, detected in zip(images, tags, captioned, objects, found, strict=True)
        ]

    def _described(
        self, images: Sequence[Image.Image], objects: Sequence[list[DescribedObject]]
    ) -> list[list[DescribedObject]]:
        """With a description each; without those of which there is nothing to say."""
        crops = [
            image.crop(one.box)
            for image, own in zip(images, objects, strict=True)
            for one in own
            if one.area >= self._least_area
        ]
        texts = iter(self._describer.captions(crops) if crops else ())
        described = [
            [_said(one, next(texts) if one.area >= self._least_area else "") for one in own] for own in objects
        ]
        return [[one for one in own if one.description] for own in described]

    def _scored(
        self, images: Sequence[Image.Image], objects: list[list[DescribedObject]]
    ) -> list[list[DescribedObject]]:
        if self._scorer is None:
            return objects
        crops = [image.crop(one.box) for image, own in zip(images, objects, strict=True) for one in own]
        fits: Iterator[float] = iter(
            self._scorer(crops, [one.description for own in objects for one in own]).tolist() if crops else ()
        )
        return [[replace(one, fit=next(fits)) for one in own] for own in objects]

    def _outlined(self, image: Image.Image, objects: list[DescribedObject]) -> list[DescribedObject]:
        if self._segmenter is None or not objects:
            return objects
        masks, _ = self._segmenter.masks(image, [one.box for one in objects])
        return [replace(one, mask=mask) for one, mask in zip(objects, masks, strict=True)]


def _objects(found: Detections, image: Image.Image) -> list[DescribedObject]:
    return [
        DescribedObject(touched(box, image.size), float(score), label)
        for box, score, label in zip(found.boxes, found.scores, found.labels, strict=True)
    ]


def _said(one: DescribedObject, text: str) -> DescribedObject:
    return replace(one, description=text or one.category, written=bool(text))
