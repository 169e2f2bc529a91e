"""The judge reads real digits it never saw; the layout metrics tell right pictures from wrong ones."""

from pathlib import Path

import numpy as np
import pytest
import torch

from atelier.data import digits
from atelier.evaluation import judge as judges
from atelier.evaluation import layout


@pytest.fixture(scope="module")
def judge() -> judges.Judge:
    torch.set_num_threads(1)
    trained, accuracy = judges.train_judge(seed=0, crops=9000, epochs=3)
    assert accuracy > 0.85  # cut digits that count as empty are the hard ones; whole digits are read at 95 %
    return trained


def pictures(count: int, seed: int) -> tuple[list[np.ndarray], list[list[tuple[float, ...]]], list[list[int]]]:
    rng = np.random.default_rng(seed)
    layouts = [digits.layout_random(rng) for _ in range(count)]
    images = [digits.draw(rng, placed, digits.split().canvas) for placed in layouts]
    return images, [[p.box for p in placed] for placed in layouts], [[p.label for p in placed] for placed in layouts]


def test_real_canvases_score_high(judge: judges.Judge) -> None:
    result = layout.summary(layout.score(judge, *pictures(40, 1)))
    assert result["layout_accuracy"] > 0.93
    assert result["layout_fill"] > 0.95
    assert result["ink_in_boxes"] > 0.99


def test_pictures_of_other_layouts_score_low(judge: judges.Judge) -> None:
    images, boxes, labels = pictures(40, 1)
    result = layout.summary(layout.score(judge, images[1:] + images[:1], boxes, labels), "_shifted")
    assert result["layout_accuracy_shifted"] < 0.3
    assert result["ink_in_boxes_shifted"] < 0.7


def test_empty_canvases_have_nothing_in_their_boxes(judge: judges.Judge) -> None:
    _, boxes, labels = pictures(40, 2)
    rng = np.random.default_rng(3)
    empty = [digits.draw(rng, [], digits.split().canvas) for _ in boxes]
    result = layout.summary(layout.score(judge, empty, boxes, labels))
    assert result["layout_fill"] < 0.05
    assert result["ink_in_boxes"] == 0


def test_a_saved_judge_reads_the_same(judge: judges.Judge, tmp_path: Path) -> None:
    judges.save(judge, tmp_path / "judge.safetensors")
    crops, _ = judges.examples(digits.split().judge_test, 50, 5)
    assert torch.equal(judges.read(judges.load(tmp_path / "judge.safetensors"), crops), judges.read(judge, crops))


def test_ink_share_counts_area_inside() -> None:
    image = np.full((64, 64, 3), 40, np.uint8)
    image[8:16, 8:16] = 250
    image[40:48, 40:48] = 250
    inside = (8 / 64, 8 / 64, 16 / 64, 16 / 64)
    assert layout.ink_share(image, [inside]) == pytest.approx(0.5)
    assert layout.ink_share(image, [(0.0, 0.0, 1.0, 1.0)]) == pytest.approx(1.0)


def test_the_judge_never_saw_what_canvases_are_drawn_with() -> None:
    split = digits.split()
    drawn = {image.tobytes() for image in split.canvas.images}
    assert drawn.isdisjoint(image.tobytes() for image in split.judge_train.images)
    assert drawn.isdisjoint(image.tobytes() for image in split.judge_test.images)


def test_ink_needs_no_judge() -> None:
    images, boxes, _ = pictures(40, 1)
    right = layout.ink_metrics(images, boxes)
    shifted = layout.ink_metrics(images[1:] + images[:1], boxes, "_ungrounded")
    assert right["ink_fill"] > 0.99
    assert right["ink_in_boxes"] > 0.99
    assert shifted["ink_fill_ungrounded"] < 0.7
    assert shifted["ink_in_boxes_ungrounded"] < 0.7
    blank = layout.ink_metrics([np.full((64, 64, 3), 120, np.uint8)], [[(0.1, 0.1, 0.5, 0.5)]])
    assert blank == {"ink_in_boxes": 0.0, "ink_fill": 0.0}
