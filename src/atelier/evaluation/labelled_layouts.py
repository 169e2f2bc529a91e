"""Layouts of labelled pictures: what a model is asked for when it is evaluated on rich-context data."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from atelier.data.padding import padded_boxes
from atelier.data.quarantine import Filtered, Quarantined
from atelier.data.raw_example import RawExample
from atelier.data.rich_source import RichSource
from atelier.data.settings import Settings
from atelier.errors import ConfigError
from atelier.evaluation.labelled_folder import labelled_sources
from atelier.sampling.requests import Request

FRAMES = ("crop", "pad", "whole")
"""What boxes are shares of: the centre square, the square with padding at one side, the picture as it is."""
_SIDE = 1024
"""Of the square that a crop's boxes are reckoned in."""


@dataclass
class Layouts:
    """What a folder's pictures give.

    Attributes:
        requests: one a picture that has boxes, in the order of names, ready for ``atelier sample``.
        sizes: (W, H) of each one's picture.
        without_boxes: pictures of whose boxes the frame leaves none.
        unusable: why others gave nothing, by their names.
    """

    requests: list[Request]
    sizes: list[tuple[int, int]]
    without_boxes: int
    unusable: dict[str, str]


def labelled_layouts(
    images: Path, labels: Path, frame: str = "crop", validation: Path | None = None, count: int = 0, max_boxes: int = 30
) -> Layouts:
    """Reads labelled pictures as the raw form ``rich-context`` does.

    Args:
        images, labels: folders; whatever lies below them in any depth. They may be the same.
        frame: one of ``FRAMES``.
        validation: a list of the images to take; None: all but those of the folders' own ``validation*.json``.
        count: at most so many pictures, the first; 0: all.
        max_boxes: of a picture; of more, the largest.

    Raises:
        ConfigError: an unknown frame. DataError: no pictures, or no labels. StorageError: they cannot be read.
    """
    if frame not in FRAMES:
        raise ConfigError(f"there is no frame {frame!r}", f"use one of {', '.join(FRAMES)}")
    placed = {"crop": _cropped, "pad": _padded, "whole": _whole}[frame]
    found = Layouts([], [], 0, {})
    for source in labelled_sources(images, labels, validation, 4 * count):
        for unit in source.units:
            for example in source.fetch(unit)():
                if isinstance(example, Quarantined):
                    found.unusable[example.key] = example.reason
                elif not isinstance(example, Filtered):
                    boxes, phrases = placed(source, example, max_boxes)
                    found.without_boxes += not len(boxes)
                    if len(boxes):
                        found.requests.append(Request(example.caption, boxes.tolist(), list(phrases)))
                        found.sizes.append((example.original_size[1], example.original_size[0]))
                if count and len(found.requests) == count:
                    return found
    return found


Placed = Callable[[RichSource, RawExample, int], tuple[np.ndarray, tuple[str, ...]]]


def _cropped(source: RichSource, example: RawExample, max_boxes: int) -> tuple[np.ndarray, tuple[str, ...]]:
    settings = Settings(res=_SIDE, samples_per_shard=1, batch=1, max_boxes=max_boxes, min_area=0)
    chosen = source.select(example, settings)
    return chosen.boxes.astype(np.float64), chosen.phrases


def _padded(source: RichSource, example: RawExample, max_boxes: int) -> tuple[np.ndarray, tuple[str, ...]]:
    assert example.boxes_px is not None
    return _largest(padded_boxes(example.boxes_px, example.original_size), example.phrases, max_boxes)


def _whole(source: RichSource, example: RawExample, max_boxes: int) -> tuple[np.ndarray, tuple[str, ...]]:
    assert example.boxes_px is not None
    height, width = example.original_size
    shares = np.clip(example.boxes_px / np.array([width, height, width, height], np.float64), 0, 1)
    return _largest(shares, example.phrases, max_boxes)


def _largest(boxes: np.ndarray, phrases: tuple[str, ...], limit: int) -> tuple[np.ndarray, tuple[str, ...]]:
    """The largest boxes in their own order; those that lie outside of the picture are none."""
    extent = boxes[:, 2:] - boxes[:, :2]
    areas = np.where((extent > 0).all(axis=1), extent.prod(axis=1), 0)
    rows = np.sort(np.argsort(-areas, kind="stable")[: min(limit, int((areas > 0).sum()))])
    return boxes[rows], tuple(phrases[row] for row in rows.tolist())
