"""The chain from tags to embeddings: any tagger, images without tags, boxes without a caption."""

import numpy as np
import pytest
from PIL import Image

from atelier.annotate.annotator import Annotation, Annotator
from atelier.annotate.captioner import Captioner
from atelier.annotate.detector import GroundingDetector
from atelier.annotate.phrases import PhraseEncoder
from atelier.annotate.places import Place
from tests.annotate import tiny
from tests.annotate.parts import BrightnessTagger, CornerDetector, LengthEncoder, SizeCaptioner

WHITE, GREY, BLACK = (Image.new("RGB", size, colour) for size, colour in [((40, 60), "white"), ((80, 48), (99, 99, 99)), ((64, 64), "black")])  # fmt: skip # noqa: E501


def annotated(annotator: Annotator, *images: Image.Image) -> list[Annotation]:
    return annotator.annotate([annotator.prepare(image) for image in images])


def test_each_image_gets_its_own() -> None:
    captioner = SizeCaptioner()
    white, black, grey = annotated(
        Annotator(BrightnessTagger(), CornerDetector(), captioner, LengthEncoder()), WHITE, BLACK, GREY
    )
    assert white.tags == ("bright thing", "seven")
    assert white.phrases == ("10 by 12", "10 by 15")
    assert white.labels == ("bright thing", "")
    assert grey.phrases == ("10 by 12", "20 by 12")
    assert white.embeddings is not None
    assert white.embeddings.tolist() == [[8.0] * 4] * 2
    assert (black.tags, black.phrases, len(black.boxes)) == ((), (), 0)
    assert black.embeddings is not None
    assert black.embeddings.shape == (0, 4)
    assert captioner.calls == [4]  # the crops of all images at once


def test_no_boxes_at_all() -> None:
    captioner = SizeCaptioner()
    (only,) = annotated(Annotator(BrightnessTagger(), CornerDetector(), captioner, LengthEncoder()), BLACK)
    assert not only.phrases
    assert not captioner.calls


def test_a_box_without_caption_takes_its_tag_or_goes() -> None:
    annotator = Annotator(BrightnessTagger(), CornerDetector(), SizeCaptioner([(10, 12), (10, 15)]), None)
    (only,) = annotated(annotator, WHITE)
    assert only.phrases == ("bright thing",)
    assert only.boxes.tolist() == [[0, 0, 10, 12]]
    assert only.scores.tolist() == [0.75]
    assert only.dropped == 2  # the detector's own, and the second box, which has neither
    assert only.embeddings is None


class OneTag:
    """Another tagger: the Protocol is all that the chain knows."""

    def prepare(self, image: Image.Image) -> None:
        return None

    def tags(self, prepared: list[None]) -> list[list[str]]:  # type: ignore[override]
        return [["number seven"] for _ in prepared]


@pytest.mark.parametrize("tagger", [OneTag(), BrightnessTagger()], ids=["one", "brightness"])
def test_real_models_behind_any_tagger(tagger: OneTag | BrightnessTagger) -> None:
    def place(role: str) -> Place:
        return Place(tiny.folders()[role], "", "")

    encoder = PhraseEncoder(place("phrase_encoder"))
    annotator = Annotator(
        tagger, GroundingDetector(place("detector"), 0.25, 0.2, 0.5, 2), Captioner(place("captioner"), 6, 4), encoder
    )
    rng = np.random.default_rng(1)
    noise = [Image.fromarray(rng.integers(1, 255, (60, 70, 3), dtype=np.uint8)) for _ in range(2)]
    found = annotated(annotator, noise[0], BLACK, noise[1])
    assert len(found[0].phrases)
    assert len(found[2].phrases)
    assert (len(found[1].phrases) == 0) == (found[1].tags == ())
    for one in found:
        assert one.embeddings is not None
        assert (one.embeddings == encoder.embed(one.phrases)).all()
        assert all(one.phrases)
