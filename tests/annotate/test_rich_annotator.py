"""Rich labels of pictures: who describes what, what is outlined, whose caption it is; annotators without models."""

from collections.abc import Sequence

import numpy as np
import pytest
from PIL import Image

from atelier.annotate.rich_annotator import RichAnnotation, RichAnnotator
from tests.annotate.parts import BrightnessTagger, CornerDetector, SizeCaptioner

WHITE, GREY, BLACK = (Image.new("RGB", size, colour) for size, colour in [((40, 60), "white"), ((81, 48), (99, 99, 99)), ((64, 64), "black")])  # fmt: skip # noqa: E501


class BoxSegmenter:
    """Outlines the upper half of each box."""

    def __init__(self) -> None:
        self.calls = list[int]()

    def masks(self, picture: Image.Image, boxes: Sequence[tuple[int, int, int, int]]) -> tuple[np.ndarray, np.ndarray]:
        self.calls.append(len(boxes))
        masks = np.zeros((len(boxes), picture.height, picture.width), bool)
        for mask, (left, top, right, bottom) in zip(masks, boxes, strict=True):
            mask[top : (top + bottom) // 2, left:right] = True
        return masks, np.ones(len(boxes))


class WidthScorer:
    """A crop's width and its description's length."""

    def __call__(self, pictures: Sequence[Image.Image], captions: Sequence[str]) -> np.ndarray:
        return np.array([each.width + len(text) / 100 for each, text in zip(pictures, captions, strict=True)])


def annotated(annotator: RichAnnotator, captioned: Sequence[bool], *images: Image.Image) -> list[RichAnnotation]:
    return annotator.annotate([annotator.prepare(image) for image in images], captioned)


def test_each_picture_gets_its_own() -> None:
    describer, captioner, segmenter = SizeCaptioner(), SizeCaptioner(), BoxSegmenter()
    annotator = RichAnnotator(
        BrightnessTagger(), CornerDetector(), describer, captioner, segmenter, WidthScorer(), least_area=150
    )
    white, black, grey = annotated(annotator, [False, False, True], WHITE, BLACK, GREY)
    assert white.tags == ("bright thing", "seven")
    assert (white.caption, black.caption, grey.caption) == ("40 by 60", "64 by 64", "")
    assert captioner.calls == [2]
    # Of 120 pixels: called by its tag. The second has none, and 150.
    assert [one.description for one in white.objects] == ["bright thing", "10 by 15"]
    assert [one.written for one in white.objects] == [False, True]
    assert [one.category for one in white.objects] == ["bright thing", ""]
    assert [one.box for one in white.objects] == [(0, 0, 10, 12), (10, 15, 20, 30)]
    assert [one.score for one in white.objects] == [0.75, 0.5]
    assert (white.dropped, black.objects, black.dropped) == (1, (), 0)
    # A box that ends within a pixel has all of it: 20.25 to 40.5.
    assert grey.objects[1].box == (20, 12, 41, 24)
    assert grey.objects[1].description == "21 by 12"
    assert describer.calls == [2]  # the crops of all pictures at once
    assert [one.fit for one in white.objects] == [pytest.approx(10.12), pytest.approx(10.08)]
    assert grey.objects[1].fit == pytest.approx(21.08)
    assert segmenter.calls == [2, 2]  # nobody asks about a picture without boxes
    mask = grey.objects[1].mask
    assert mask is not None
    assert mask.shape == (48, 81)
    assert mask[12:18, 20:41].all()
    assert mask.sum() == 6 * 21


def test_a_box_without_description_and_tag_goes() -> None:
    annotator = RichAnnotator(
        BrightnessTagger(), CornerDetector(), SizeCaptioner([(10, 12), (10, 15)]), SizeCaptioner(), least_area=0
    )
    (only,) = annotated(annotator, [True], WHITE)
    (one,) = only.objects
    assert (one.description, one.written, one.mask, one.fit) == ("bright thing", False, None, None)
    assert only.dropped == 2  # the detector's own, and the second box


def test_only_black_pictures() -> None:
    describer, captioner, segmenter = SizeCaptioner(), SizeCaptioner(), BoxSegmenter()
    annotator = RichAnnotator(BrightnessTagger(), CornerDetector(), describer, captioner, segmenter, WidthScorer())
    (only,) = annotated(annotator, [True], BLACK)
    assert (only.objects, only.caption) == ((), "")
    assert not describer.calls
    assert not captioner.calls
    assert not segmenter.calls
