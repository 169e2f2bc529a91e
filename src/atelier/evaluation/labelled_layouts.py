"""Layouts of labelled pictures: what a model is asked for when it is evaluated on rich-context data."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from atelier.data.padding import padded_boxes
from atelier.data.quarantine import Filtered, Quarantined
from atelier.data.raw_example import RawExample
from atelier.data.raw_form import PICTURES, is_label, is_validation
from atelier.data.rich_source import RichSource, held_out
from atelier.data.settings import Settings
from atelier.errors import ConfigError
from atelier.sampling.requests import Request
from atelier.storage.atomic import os_errors
from atelier.storage.digest import sha256_file
from atelier.storage.manifest import FileEntry, Manifest, sorted_entries

FRAMES = ("crop", "pad", "whole")
"""What boxes are shares of: the centre square, the square with padding at one side, the picture as it is."""
_SIDE = 1024
"""Of the square that a crop's boxes are reckoned in."""


@dataclass(frozen=True)
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
    source = RichSource(_manifest(images, labels, validation))
    placed = {"crop": _cropped, "pad": _padded, "whole": _whole}[frame]
    requests: list[Request] = []
    sizes: list[tuple[int, int]] = []
    without, unusable = 0, dict[str, str]()
    for unit in source.units:
        for example in source.fetch(unit)():
            if count and len(requests) == count:
                break
            if isinstance(example, Quarantined):
                unusable[example.key] = example.reason
            elif not isinstance(example, Filtered):
                boxes, phrases = placed(source, example, max_boxes)
                without += not len(boxes)
                if len(boxes):
                    requests.append(Request(example.caption, boxes.tolist(), list(phrases)))
                    sizes.append((example.original_size[1], example.original_size[0]))
    return Layouts(requests, sizes, without, unusable)


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


def _manifest(images: Path, labels: Path, validation: Path | None) -> Manifest:
    """The folders' files as one source; with a list, its images alone."""
    wanted: set[str] | None = None
    if validation is not None:
        with os_errors(validation):
            wanted = held_out(validation.read_bytes(), str(validation))
    root = Path("/")
    entries = []
    for path in sorted({file.resolve() for folder in (images, labels) for file in _files(folder)}):
        is_picture = path.suffix.lower() in PICTURES
        if not is_picture and path.suffix != ".json":
            continue
        if wanted is not None and (
            is_validation(path.name) or ((is_picture or is_label(path.name)) and _image_of(path) not in wanted)
        ):
            continue
        entries.append(FileEntry(path.relative_to(root).as_posix(), path.stat().st_size, sha256_file(path)))
    return Manifest("rich-context-raw", str(root), sorted_entries(entries))


def _image_of(path: Path) -> str:
    return path.stem.removeprefix("label_") if is_label(path.name) else path.stem


def _files(folder: Path) -> list[Path]:
    with os_errors(folder):
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder} is no folder")
        return [path for path in folder.rglob("*") if path.is_file()]
