"""A picture and its label joined: boxes of the picture without its border, and which of them are trained on."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from atelier.data.coco import usable
from atelier.data.coco_boxes import kept
from atelier.data.geometry import image_size
from atelier.data.letterbox import has_white_border
from atelier.data.picture_folder import inner_of, states_size
from atelier.data.raw_example import RawExample
from atelier.data.rich_label import RichLabel
from atelier.data.settings import Settings

MIN_VISIBLE = 0.3
"""The share of a box that the crop must leave: of less, the description would be of what is not there."""


class RichExamples:
    """What sources of rich-context data have in common, see ``RawSource``."""

    brings_latents = False

    def select(self, example: RawExample, settings: Settings) -> RawExample:
        """The boxes of which the crop leaves ``MIN_VISIBLE`` and at least ``settings.min_area``; of too many the
        largest, in the label's order."""
        assert example.boxes_px is not None
        size = (example.original_size[1], example.original_size[0])
        boxes, rows = kept(example.boxes_px, size, settings.res, settings.min_area, settings.max_boxes, MIN_VISIBLE)
        order = np.argsort(rows)
        rows = rows[order]
        return replace(
            example,
            boxes=boxes[order],
            boxes_px=example.boxes_px[rows],
            scores=np.ones(len(rows), np.float32),
            phrases=tuple(example.phrases[row] for row in rows),
            dropped=example.dropped + len(example.boxes_px) - len(rows),
            facts={**example.facts, "categories": tuple(example.facts["categories"][row] for row in rows)},
        )

    def record(self, example: RawExample, res: int) -> dict[str, Any]:
        """With the objects' categories, and the boxes in pixels of the original besides."""
        return {
            "key": example.key,
            "caption": example.caption,
            "captions": list(example.captions),
            "phrases": list(example.phrases),
            "categories": list(example.facts["categories"]),
            "boxes": example.boxes.tolist(),
            "boxes_px": [] if example.boxes_px is None else example.boxes_px.tolist(),
            "original_size": list(example.original_size),
        }


def joined(
    key: str, data: bytes, label: RichLabel, facts: Mapping[str, Any], captions_of: Callable[[], tuple[str, ...]]
) -> RawExample:
    """A picture with its label.

    Args:
        data: the picture's file.
        facts: what img2dataset wrote beside it.
        captions_of: captions for a label without one.

    Raises:
        ValueError: they are of no use.
    """
    captions = usable([label.caption]) or captions_of()
    if not captions:
        raise ValueError("no caption")
    whole, unsized = image_size(data), not states_size(facts)
    if unsized and has_white_border(data):
        raise ValueError("a white border, and nothing says where the picture lies in it: give its <image>.json too")
    inner, size = inner_of(facts, whole)
    boxes = label.boxes * frame_scale(whole, label.frame)
    if inner is not None:
        boxes = boxes - np.array([inner[0], inner[1], inner[0], inner[1]], np.float64)
    return RawExample(
        key,
        data,
        size,
        captions[0],
        np.empty((0, 4), np.float32),
        np.ones(len(boxes), np.float32),
        label.descriptions,
        dropped=label.dropped,
        captions=captions,
        boxes_px=boxes,
        inner=inner,
        facts={"categories": label.categories},
        counts={"pictures_unsized": int(unsized)},
    )


def frame_scale(size: tuple[int, int], frame: tuple[int, int] | None) -> float:
    """Pixels of a picture of ``size`` (H, W) for each of the ``frame`` that was labelled; None is the picture itself.

    A picture is labelled when its long side was brought to the frame's, whatever border then made it square.

    Raises:
        ValueError: the frame is of another shape, and no square.
    """
    if frame is None:
        return 1.0
    scale = max(size) / max(frame)
    if frame[0] != frame[1] and max(abs(own * scale - side) for own, side in zip(frame, size, strict=True)) > 1 + scale:
        shapes = f"{frame[0]}×{frame[1]}, it is {size[0]}×{size[1]}"
        raise ValueError(f"its label is of a picture of another shape: {shapes}")
    return scale
