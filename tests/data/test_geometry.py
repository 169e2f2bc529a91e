import io

import numpy as np
import pytest
from PIL import Image

from atelier.data.geometry import decode_image, image_size, resized, time_ids, top_left
from atelier.data.sa1b_select import clean, select


def jpeg(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=95, subsampling=0)
    return buffer.getvalue()


def test_sizes_and_conditions() -> None:
    assert resized((1500, 2250), 512) == (512, 768)
    assert top_left((1500, 2250), 1024) == (0, 256)
    assert time_ids((2250, 1500), 512) == (2250, 1500, 128, 0, 512, 512)
    assert time_ids((1500, 2249), 512) == (1500, 2249, 0, 127, 512, 512)  # fp16 would say 2248


def test_crop_takes_the_middle() -> None:
    image = np.zeros((64, 80, 3), np.uint8)
    image[:, 8:72] = 200
    crop = decode_image(jpeg(image), 64)
    assert crop.shape == (64, 64, 3)
    assert crop[:, 8:-8].min() > 190
    assert image_size(jpeg(image)) == (64, 80)
    assert decode_image(jpeg(image), 32).shape == (32, 32, 3)
    grey = io.BytesIO()
    Image.fromarray(image[..., 0]).save(grey, "PNG")
    assert decode_image(grey.getvalue(), 64).shape == (64, 64, 3)


@pytest.mark.parametrize("cut", [0, 10, 500])
def test_no_image(cut: int) -> None:
    whole = jpeg(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    with pytest.raises(ValueError, match="not a readable image"):
        decode_image(whole[:cut], 64)
    with pytest.raises(ValueError, match="not a readable image"):
        image_size(b"text")


def test_boxes_are_clipped_or_dropped_and_counted() -> None:
    cxcywh = np.array(
        [[0.5, 0.5, 0.2, 0.2], [0.95, 0.5, 0.3, 0.2], [1.5, 0.5, 0.2, 0.2], [0.5, 0.5, 0, 0.1], [np.nan, 0, 1, 1]],
        np.float16,
    )
    cleaned = clean(cxcywh)
    assert cleaned.kept.tolist() == [0, 1]
    assert (cleaned.clipped, cleaned.dropped) == (1, 3)
    assert cleaned.xyxy[1, 2] == 1
    assert clean(np.empty((0, 4))).xyxy.shape == (0, 4)


def test_selection_is_strict() -> None:
    confidence = np.array([0.25, 0.2501, 0.9, 0.1], np.float16)
    assert select(confidence).tolist() == [2]
    many = np.linspace(0.3, 0.9, 40).astype(np.float16)
    assert select(many).tolist() == list(range(9, 40))  # above the 32nd highest: 31
    assert len(select(np.full(40, 0.5, np.float16))) == 0  # all tie with the 32nd: as published, none survives
    assert select(np.empty(0, np.float16)).tolist() == []
