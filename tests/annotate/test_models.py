"""Each annotator over tiny models of the real classes, loaded as the hub's are."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor, Blip2ForConditionalGeneration, CLIPTextModel, CLIPTokenizer

from atelier.annotate.boxes import iou
from atelier.annotate.captioner import Captioner, crop
from atelier.annotate.detector import GroundingDetector, padded
from atelier.annotate.phrases import PhraseEncoder
from atelier.annotate.places import Place
from atelier.annotate.ram_tagger import RAMTagger
from atelier.annotate.vocabulary_tagger import VocabularyTagger
from atelier.errors import ConfigError
from tests.annotate import tiny
from tests.recipes.twin import write_twin

WORDS = ["dog", "seven", "zero", "nine"]


def place(role: str) -> Place:
    return Place(tiny.folders()[role], "", "")


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [
        Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8))
        for height, width in ((64, 80), (100, 64), (64, 64))
    ]


def test_clip_tags(images: list[Image.Image]) -> None:
    all_of_them = VocabularyTagger(place("tagger"), WORDS, 0.0, 10)
    prepared = [all_of_them.prepare(image) for image in images]
    assert all(sorted(tags) == sorted(WORDS) for tags in all_of_them.tags(prepared))
    two = VocabularyTagger(place("tagger"), WORDS, 0.0, 2)
    assert two.tags(prepared) == [tags[:2] for tags in all_of_them.tags(prepared)]
    # probabilities over the words: no two of them can be above a half
    assert all(len(tags) <= 1 for tags in VocabularyTagger(place("tagger"), WORDS, 0.5001, 10).tags(prepared))
    assert VocabularyTagger(place("tagger"), WORDS, 1.0, 10).tags(prepared) == [[], [], []]


def test_clip_tags_are_its_own_scores(images: list[Image.Image]) -> None:
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    folder = tiny.folders()["tagger"]
    model = AutoModel.from_pretrained(folder).eval()
    texts = AutoTokenizer.from_pretrained(folder)(
        [f"a photo of a {word}" for word in WORDS], padding=True, truncation=True, max_length=16, return_tensors="pt"
    )
    pixels = AutoImageProcessor.from_pretrained(folder)(images=images, return_tensors="pt")
    with torch.no_grad():
        best = model(**texts, **pixels).logits_per_image.argsort(dim=-1, descending=True)
    tagger = VocabularyTagger(place("tagger"), WORDS, 0.0, 10)
    assert tagger.tags([tagger.prepare(image) for image in images]) == [
        [WORDS[i] for i in row] for row in best.tolist()
    ]


def test_siglip_tags(images: list[Image.Image], tmp_path: Path) -> None:
    tagger = VocabularyTagger(Place(str(tiny.siglip(tmp_path)), "", ""), WORDS, 0.0, 3)
    assert all(len(tags) == 3 for tags in tagger.tags([tagger.prepare(image) for image in images]))


def detector(batch: int = 2, box: float = 0.25, text: float = 0.2) -> GroundingDetector:
    return GroundingDetector(place("detector"), box, text, 0.5, batch)


def test_boxes_lie_inside_and_do_not_cover_each_other(images: list[Image.Image]) -> None:
    model, tags = detector(), [["number seven", "dog"], ["zero"], []]
    sizes = [(image.height, image.width) for image in images]
    found = model.detect([model.prepare(image) for image in images], tags, sizes)
    assert len(found[0].boxes)
    assert len(found[1].boxes)
    assert not len(found[2].boxes)
    for own, asked, (height, width) in zip(found, tags, sizes, strict=True):
        assert (own.boxes >= 0).all()
        assert (own.boxes <= [width, height, width, height]).all()
        assert (np.diff(own.scores) <= 0).all()
        assert (own.scores > 0.25).all()
        assert len(own.labels) == len(own.boxes) == len(own.scores) <= 12
        assert set(own.labels) <= {*asked, ""}
        for row, box in enumerate(own.boxes):
            assert (iou(box, own.boxes[row + 1 :]) <= 0.5).all()
    assert found[0].dropped + len(found[0].boxes) <= 12  # the model's queries
    none = detector(box=1.0)
    assert [len(one.boxes) for one in none.detect([none.prepare(images[0])], [["dog"]], sizes[:1])] == [0]


def test_detector_is_the_librarys_own(images: list[Image.Image]) -> None:
    """Same inputs as the processor's, though images are resized one by one; same boxes before suppression."""
    model = detector(batch=8)
    processor = AutoProcessor.from_pretrained(tiny.folders()["detector"])
    theirs = processor(images=images, text=["dog.", "zero. dog.", "dog."], padding=True, return_tensors="pt")
    values, mask = padded([model.prepare(image) for image in images])
    assert torch.equal(values, theirs["pixel_values"])
    assert torch.equal(mask, theirs["pixel_mask"])
    sizes = [(image.height, image.width) for image in images]
    with torch.no_grad():
        outputs = model._model(**theirs)
    results = processor.post_process_grounded_object_detection(
        outputs, theirs["input_ids"], threshold=0.25, text_threshold=0.2, target_sizes=sizes
    )
    found = model.detect([model.prepare(image) for image in images], [["dog"], ["zero", "dog"], ["dog"]], sizes)
    for own, result in zip(found, results, strict=True):
        assert own.dropped + len(own.boxes) == len(result["boxes"])
        assert own.scores[0] == pytest.approx(float(result["scores"].max()))


def test_too_many_tags_are_asked_in_turns(images: list[Image.Image]) -> None:
    model = detector()
    tags = [f"{first} {second}" for first in tiny.WORDS[:6] for second in tiny.WORDS[:6]]
    found = model.detect([model.prepare(images[0])], [tags], [(64, 80)])
    assert len(found[0].boxes)
    assert found[0].dropped + len(found[0].boxes) > 12  # more than one prompt's queries


def test_captions_are_of_each_crop(images: list[Image.Image]) -> None:
    crops = [crop(image, np.array(box)) for image in images for box in ([0, 0, 30, 30.0], [20.5, 3, 60.2, 40])]
    captioner = Captioner(place("captioner"), tokens=6, batch=4)
    captions = captioner.captions(crops)
    assert len(captions) == 6
    assert len(set(captions)) > 1
    model = Blip2ForConditionalGeneration.from_pretrained(tiny.folders()["captioner"]).eval()
    processor = AutoProcessor.from_pretrained(tiny.folders()["captioner"])
    for number in (0, 5):
        pixels = processor.image_processor(images=crops[number], return_tensors="pt")["pixel_values"]
        written = model.generate(pixel_values=pixels, max_new_tokens=6)
        assert captions[number] == processor.batch_decode(written, skip_special_tokens=True)[0].strip()


def test_crops_hold_at_least_a_pixel(images: list[Image.Image]) -> None:
    assert crop(images[0], np.array([10.2, 3.7, 12.9, 5.1])).size == (3, 3)
    assert crop(images[0], np.array([79.5, 63.9, 80, 64])).size == (1, 1)
    assert crop(images[0], np.array([80.0, 64.0, 80, 64])).size == (1, 1)


@pytest.mark.parametrize("kind", ["clip", "diffusers"])
def test_phrases_are_clips_pooler_output(kind: str, tmp_path: Path) -> None:
    folder = Path(tiny.folders()["phrase_encoder"]) if kind == "clip" else write_twin(tmp_path / "twin", twin="sd_twin")
    text, tokens = (folder, folder) if kind == "clip" else (folder / "text_encoder", folder / "tokenizer")
    phrases = ["a seven", "a very long number " * 20, "a seven", ""]
    found = PhraseEncoder(Place(str(folder), "", "")).embed(phrases)
    tokenizer, model = CLIPTokenizer.from_pretrained(tokens), CLIPTextModel.from_pretrained(text).eval()
    ids = tokenizer(
        phrases, padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
    ).input_ids
    with torch.no_grad():
        expected = model(ids).pooler_output
    assert found.dtype == np.float16
    assert found.shape == expected.shape
    assert np.abs(found - expected.numpy()).max() < 2e-3
    assert (found[0] == found[2]).all()
    assert PhraseEncoder(Place(str(folder), "", "")).embed([]).shape == (0, expected.shape[1])


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    folder = tiny.clip(tmp_path / "clip")
    weights = folder / "model.safetensors"
    torch.save({"a": torch.zeros(1)}, folder / "pytorch_model.bin")
    weights.unlink()
    with pytest.raises(ConfigError, match="cannot be loaded as CLIPTextModel"):
        PhraseEncoder(Place(str(folder), "", ""))


def test_missing_weights_are_not_drawn_at_random(tmp_path: Path) -> None:
    folder = tiny.clip(tmp_path / "clip")
    weights = load_file(folder / "model.safetensors")
    del weights["text_model.final_layer_norm.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ConfigError, match=r"1 weights of a CLIPTextModel are missing, e\.g\. .*final_layer_norm"):
        PhraseEncoder(Place(str(folder), "", ""))


FAKE_RAM = """
import torch
class Model(torch.nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.scale = scale
    def generate_tag(self, image):
        assert image.shape[1:] == (3, 384, 384)
        return ["dog | traffic light" if one.mean() > 0 else "" for one in image], None
def ram(pretrained, image_size, vit):
    assert (image_size, vit) == (384, "swin_l")
    return Model(torch.load(pretrained, map_location="cpu")["model"]["scale"])
"""


def test_ram_is_called_as_its_package_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its package cannot be had here; this stands for its two functions, to show the way there and back."""
    package = tmp_path / "site" / "ram"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "models.py").write_text(FAKE_RAM)
    weights = tmp_path / "ram.pth"
    torch.save({"model": {"scale": torch.ones(1)}}, weights)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    try:
        tagger = RAMTagger(Place(str(weights), "", "", "ram"))
        white, black = (Image.new("RGB", (50, 30), colour) for colour in ("white", "black"))
        assert tagger.tags([tagger.prepare(white), tagger.prepare(black)]) == [["dog", "traffic light"], []]
        torch.save({"model": Path()}, weights)  # something that weights_only does not let in
        with pytest.raises(ConfigError, match="RAM cannot be loaded"):
            RAMTagger(Place(str(weights), "", "", "ram"))
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] == "ram"]:
            del sys.modules[name]


def test_ram_without_its_package() -> None:
    with pytest.raises(ConfigError, match="the package ram cannot be imported"):
        RAMTagger(Place("ram.pth", "", "", "ram"))
