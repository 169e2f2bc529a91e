"""Boxes: clipped to the image, and suppression against a brute-force reference."""

import numpy as np
import pytest

from atelier.annotate.boxes import clip, iou, nms, real


def overlap(first: list[float], second: list[float]) -> float:
    """Intersection over union, one pair at a time."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    common = max(width, 0.0) * max(height, 0.0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    union = sum(areas) - common
    return common / union if union > 0 else 0.0


def brute_force(boxes: list[list[float]], scores: list[float], threshold: float) -> list[int]:
    """A box stays when no kept box that goes before it overlaps it by more than the threshold."""
    order = sorted(range(len(boxes)), key=lambda row: (-scores[row], row))
    kept: list[int] = []
    for row in order:
        if all(overlap(boxes[row], boxes[other]) <= threshold for other in kept):
            kept.append(row)
    return kept


@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("seed", range(8))
def test_nms_is_the_reference(seed: int, threshold: float) -> None:
    rng = np.random.default_rng(seed)
    corners = rng.integers(0, 40, (60, 4)).astype(np.float64)
    boxes = np.concatenate([np.minimum(corners[:, :2], corners[:, 2:]), np.maximum(corners[:, :2], corners[:, 2:])], 1)
    boxes[10:20] = boxes[:10]  # the very same boxes
    scores = rng.integers(0, 12, 60).astype(np.float32) / 12  # with ties
    kept = nms(boxes, scores, threshold).tolist()
    assert kept == brute_force(boxes.tolist(), scores.tolist(), threshold)
    for box in boxes[:5]:
        assert iou(box, boxes) == pytest.approx([overlap(box.tolist(), other) for other in boxes.tolist()])


def test_an_overlap_of_just_the_threshold_stays() -> None:
    boxes = np.array([[0.0, 0, 2, 1], [0, 0, 1, 1], [5, 5, 6, 6]])
    scores = np.array([0.5, 0.9, 0.7], np.float32)
    assert nms(boxes, scores, 0.5).tolist() == [1, 2, 0]
    assert nms(boxes, scores, 0.49).tolist() == [1, 2]
    assert nms(np.empty((0, 4)), np.empty(0), 0.5).tolist() == []


def test_boxes_end_at_the_image() -> None:
    """An image of 30 by 50 (H, W)."""
    boxes = np.array(
        [[-3, -4, 10, 12], [40, 20, 60, 70], [60, 40, 70, 50], [-9, 2, -1, 9], [np.nan, 0, 9, 9], [9, 9, 5, 5],
         [1, 1, 1.5, 9]]
    )  # fmt: skip
    clipped = clip(boxes, (30, 50))
    assert clipped[:2].tolist() == [[0, 0, 10, 12], [40, 20, 50, 30]]
    assert real(clipped).tolist() == [True, True, False, False, False, False, False]
    assert boxes[0, 0] == -3  # what was given is not changed
