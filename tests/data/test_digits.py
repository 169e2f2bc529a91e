import json
from pathlib import Path

import numpy as np

from atelier.data import digits, rle
from atelier.storage.digest import sha256_file
from tests.data import raw


def test_split_is_disjoint_and_balanced() -> None:
    parts = digits.split()
    assert [len(part) for part in parts] == [100, 1337, 360]
    assert np.bincount(parts.canvas.labels).tolist() == [10] * 10
    from sklearn.datasets import load_digits

    everything = np.concatenate([part.images for part in parts]).reshape(-1, 64)
    original = load_digits().images.astype(np.uint8).reshape(-1, 64)
    assert sorted(map(bytes, everything)) == sorted(map(bytes, original))


def test_layouts_fill_the_range_without_overlap() -> None:
    rng = np.random.default_rng(0)
    counts = np.zeros(5, int)
    for _ in range(300):
        layout = digits.layout_random(rng)
        counts[len(layout)] += 1
        taken = np.zeros((64, 64), int)
        for box, _ in layout:
            x0, y0, x1, y1 = (value * 64 for value in box)
            assert x1 - x0 == y1 - y0
            assert 19 <= x1 - x0 <= 32
            assert 0 <= min(x0, y0) <= max(x1, y1) <= 64
            taken[int(y0) : int(y1), int(x0) : int(x1)] += 1
        assert taken.max() == 1
    assert counts[0] == 0
    assert counts[1:].min() > 40


def test_ink_lies_in_the_boxes_and_nowhere_else() -> None:
    rng = np.random.default_rng(1)
    for size in ((64, 64), (64, 80), (77, 64)):
        layout = digits.layout_random(rng)
        canvas = digits.draw(rng, layout, digits.split().canvas, size)
        assert canvas.shape == (*size, 3)
        bright = canvas.min(axis=2) > 110
        for box, _ in layout:
            left, top, right, bottom = digits.pixel_box(box, size)
            assert bright[top:bottom, left:right].sum() > 20
            bright[top:bottom, left:right] = False
        assert not bright.any()


def test_words() -> None:
    layout = [digits.Placement((0, 0, 1, 1), label) for label in (7, 8, 1)]
    assert digits.caption(layout) == "a seven, an eight and a one"
    assert digits.caption(layout[:2]) == "a seven and an eight"
    assert digits.caption(layout[:1]) == "a seven"


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    files = ("sa_000000.tar", "sa_000001.tar", "captions.parquet", "boxes/sa_000000.npy", "boxes/sa_000001.npy")
    first, again, other = (
        [sha256_file(raw.make(tmp_path / name, 20, 2, seed) / file) for file in files]
        for name, seed in (("a", 3), ("b", 3), ("c", 4))
    )
    assert first == again
    assert not set(first) & set(other)


def test_json_is_sa1bs(tmp_path: Path) -> None:
    content = raw.members(raw.make(tmp_path, 6) / "sa_000000.tar")
    assert list(content)[:2] == ["sa_1.jpg", "sa_1.json"]
    record = json.loads(content["sa_1.json"])
    assert set(record["image"]) == {"image_id", "width", "height", "file_name"}
    for annotation in record["annotations"]:
        mask = rle.decode(annotation["segmentation"])
        assert mask.shape == (record["image"]["height"], record["image"]["width"])
        assert mask.sum() == annotation["area"] > 0
        x, y, width, height = (int(value) for value in annotation["bbox"])
        assert mask[y : y + height, x : x + width].sum() == mask.sum()


def test_run_lengths_round_trip() -> None:
    rng = np.random.default_rng(0)
    for density in (0.0, 0.02, 0.5, 0.98, 1.0):
        mask = rng.random((41, 57)) < density
        assert (rle.decode(rle.encode(mask)) == mask).all()
    # As pycocotools writes a 3×3 mask with one pixel in the middle: runs 4, 1, 4.
    middle = np.zeros((3, 3), bool)
    middle[1, 1] = True
    assert rle.encode(middle) == {"size": [3, 3], "counts": "414"}
