"""CropCLIP, CropPick and SAMIoU of a picture: the same as transformers' own way, box for box, and the rule by hand."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPModel, CLIPTokenizer, SamModel, SamProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil

from atelier.errors import ConfigError, DataError
from atelier.evaluation.crop_score import CropScore
from atelier.evaluation.crops import centred, crop, pixels
from atelier.evaluation.sam_iou import SamIoU, iou, mask_box, mask_ious
from tests.annotate import tiny
from tests.evaluation import boxed_models
from tests.evaluation.boxed_models import SIDE


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def sam(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return boxed_models.sam(tmp_path_factory.mktemp("sam"))


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3)).astype(np.uint8))


def test_a_box_is_its_whole_pixels() -> None:
    image = picture(96, 128)
    for column in range(96):  # as a share and back, some are 69.999999
        (box,) = pixels([[0, column / 96, 1, 1]], image.size)
        assert crop(image, box).height == 96 - column
    (box,) = pixels([[0.05, 0.5, 0.999, 1.5]], image.size)
    assert box == (pytest.approx(6.4), 48, pytest.approx(127.872), 96)
    assert np.array_equal(np.asarray(crop(image, box)), np.asarray(image)[48:96, 6:127])
    for thin in ([0.5, 0.5, 0.5001, 0.5001], [0.9999, 0.9999, 1, 1]):
        assert crop(image, pixels([thin], image.size)[0]).size == (1, 1)


@pytest.mark.parametrize("box", [[1, 0, 1.5, 1], [0.5, 0.5, 0.5, 0.9], [0.6, 0, 0.4, 1], [-1, -1, 0, 0]])
def test_a_box_that_holds_nothing_is_refused(box: list[float]) -> None:
    with pytest.raises(DataError, match="holds nothing of its picture"):
        pixels([box], (64, 64))


def test_crops_are_cut_as_clips_own_processor_cuts_them() -> None:
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    for number, size in enumerate(((50, 41), (41, 50), (7, 90), (64, 64), (33, 20), (1, 3))):
        image = picture(*size, seed=number)
        theirs = processor(image, do_normalize=False, return_tensors="np").pixel_values[0]
        assert np.abs(centred(image, 32) - theirs).max() < 1e-6


def test_a_score_is_clips_logit(clip: Path) -> None:
    model, tokenizer = CLIPModel.from_pretrained(clip).eval(), CLIPTokenizer.from_pretrained(clip)
    processor = CLIPImageProcessorPil.from_pretrained(clip)
    crops = [picture(40 + 7 * n, 90 - 9 * n, n) for n in range(5)]
    texts = ["a seven", "a two and an eight", "nine", "a seven", "a one"]
    with torch.no_grad():
        logits = model(
            pixel_values=processor(crops, return_tensors="pt").pixel_values,
            **tokenizer(texts, padding=True, return_tensors="pt"),
        ).logits_per_image
    for batch in (1, 2, 64):
        found = CropScore(str(clip), batch=batch)(crops, texts)
        assert np.allclose(found, logits.diagonal().numpy(), atol=1e-4)
    assert len(set(found.round(4).tolist())) == 5
    assert CropScore(str(clip))([], []).shape == (0,)


def test_a_model_without_a_tokenizer_takes_anothers(clip: Path, tmp_path: Path) -> None:
    CLIPModel.from_pretrained(clip).save_pretrained(tmp_path)  # as PickScore is published
    crops = [picture(40, 40)]
    assert CropScore(str(tmp_path), str(clip))(crops, ["a two"]) == CropScore(str(clip))(crops, ["a two"])
    with pytest.raises(ConfigError, match="cannot be loaded as"):
        CropScore(str(tmp_path / "none"))


def test_masks_are_those_of_transformers_own_way(sam: Path) -> None:
    model = SamModel.from_pretrained(sam).eval()
    processor = SamProcessor(
        SamImageProcessorPil(size={"longest_edge": SIDE}, pad_size={"height": SIDE, "width": SIDE})
    )
    ours = SamIoU(str(sam))
    boxes = [(1.0 * n, 2.0 + n, 20.0 + n, 12.0 + n) for n in range(20)]  # more than are asked about at once
    for size in ((40, 60), (70, 50), (64, 64)):
        image = picture(*size)
        given = processor(image, input_boxes=[[list(box) for box in boxes]], return_tensors="pt")
        with torch.no_grad():
            told = model(pixel_values=given.pixel_values, input_boxes=given.input_boxes.float(), multimask_output=False)
        (theirs,) = processor.image_processor.post_process_masks(
            told.pred_masks, given.original_sizes, given.reshaped_input_sizes
        )
        masks, scores = ours.masks(image, boxes)
        assert masks.shape == (20, *size)
        assert np.array_equal(masks, theirs[:, 0].numpy())
        assert 0 < masks.mean() < 1
        assert np.allclose(scores, 0.9)
        by_hand = [iou(mask_box(mask) or (0, 0, 0, 0), box) for mask, box in zip(masks, boxes, strict=True)]
        assert ours(image, boxes).tolist() == by_hand
        assert max(by_hand) > 0


def test_a_picture_is_encoded_once(sam: Path) -> None:
    metric, seen = SamIoU(str(sam)), list[int]()
    metric._model.vision_encoder.register_forward_hook(lambda *_: seen.append(1))
    metric(picture(64, 64), [(0.0, 0.0, 5.0 + n, 9.0) for n in range(40)])
    assert seen == [1]
    assert metric(picture(64, 64), []).shape == (0,)
    assert seen == [1]


def test_an_unsure_sam_sees_nothing(tmp_path: Path) -> None:
    boxed_models.sam(tmp_path, estimate=0.5)
    image, boxes = picture(64, 64), [(0.0, 0.0, 30.0, 30.0)]
    assert SamIoU(str(tmp_path)).masks(image, boxes)[0].any()
    assert SamIoU(str(tmp_path))(image, boxes).tolist() == [0]


def test_the_rule_by_hand() -> None:
    masks = np.zeros((4, 96, 128), bool)
    masks[:3, 10:60, 20:80] = True
    boxes = np.array([[20, 10, 80, 60]] * 4, np.float64)
    scores = np.array([0.9, 0.51, 0.5, 0.9])
    assert mask_ious(masks, scores, boxes).tolist() == [1, 1, 0, 0]
    # The published code's box ends with the last pixel: 59 × 49 of 60 × 50.
    assert mask_box(masks[0]) == (20, 10, 80, 60)
    assert mask_box(masks[0], legacy=True) == (20, 10, 79, 59)
    assert mask_ious(masks, scores, boxes, legacy=True).tolist() == [59 * 49 / 3000] * 2 + [0, 0]
    assert iou((0, 0, 2, 2), (1, 1, 3, 3)) == 1 / 7
    assert iou((0, 0, 2, 2), (2, 2, 3, 3)) == iou((1, 1, 1, 1), (1, 1, 1, 1)) == 0
