"""Rich-context data as a raw source: images, and a ``label_<image>.json`` each that describes every object at length.

What is read are CC3M and LAION as the labelling of rich-context layout-to-image leaves them (a picture may lie within a
border, and has a JSON beside it with its true size), and COCO labelled likewise at another resolution.
"""

import functools
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import orjson

from atelier.data.coco import usable
from atelier.data.coco_boxes import largest, transform, visible
from atelier.data.geometry import image_size
from atelier.data.letterbox import has_white_border
from atelier.data.picture_folder import PictureFolder, states_size
from atelier.data.quarantine import Filtered, Quarantined
from atelier.data.raw_example import RawExample
from atelier.data.raw_form import is_label, is_validation
from atelier.data.raw_source import verified
from atelier.data.rich_label import PREFIX, RichLabel, read_label
from atelier.data.settings import Settings
from atelier.data.tar_members import TarMembers
from atelier.errors import DataError
from atelier.storage.atomic import os_errors
from atelier.storage.manifest import Manifest

FIX = "give the tars that annotate wrote"
MIN_VISIBLE = 0.3
"""The share of a box that the crop must leave: of less, the description would be of what is not there."""


class RichSource(PictureFolder):
    """``RawSource`` of image files and their labels, joined by the image's name: ``a.jpg`` and ``label_a.json``.

    Args:
        manifest: of kind ``rich-context-raw``: images, ``label_*.json`` (files, or members of ``*.tar`` as the step
            ``annotate`` writes them), and where there are such ``<image>.json`` (the size before a border was added),
            ``*captions*.json`` of COCO's form (for labels without a caption), and ``validation*.json``: names of
            images, or pairs of an image and its label, that are held out.
        cache: where remote files are kept, see ``InputFolder``.

    Raises:
        DataError: no images, no labels, two different ones of one name, labels both as files and in tars, or several
            files of captions.
    """

    brings_latents = False

    def __init__(self, manifest: Manifest, cache: Path | None = None) -> None:
        super().__init__(manifest, cache)
        self._labels: dict[str, str] = {}
        self._tars = self._folder.names("*.tar")
        names = self._folder.names("*.json")
        self._validation = sorted(name for name in names if is_validation(name))
        for name in names:
            if is_label(name):
                self._know(self._labels, PurePosixPath(name).stem.removeprefix(PREFIX), name)
        if self._labels and self._tars:
            raise DataError(
                f"{manifest.uri}: labels of its images, and tars of labels ({self._tars[0]})", "give one or the other"
            )
        if not self._labels and not self._tars:
            raise DataError(f"{manifest.uri}: no label of its images", "give a label_<image>.json for each")

    @functools.cached_property
    def _packed(self) -> TarMembers:
        """The tars' labels; the tars are fetched once."""
        return TarMembers([verified(self._folder, name) for name in self._tars], "json", FIX)

    @functools.cached_property
    def held_out(self) -> frozenset[str]:
        """The images that are not to be trained on, by their names without folder and ending.

        Raises:
            DataError: a list of them that is none.
        """
        found: set[str] = set()
        for name in self._validation:
            path = self._folder.fetch(name)
            with os_errors(path):
                data = path.read_bytes()
            found |= held_out(data, f"{self.manifest.uri}/{name}")
        return frozenset(found)

    def _known(self) -> tuple[Mapping[str, str], ...]:
        return (*super()._known(), self._labels)

    def select(self, example: RawExample, settings: Settings) -> RawExample:
        """The boxes of which the crop leaves ``MIN_VISIBLE`` and at least ``settings.min_area``; of too many the
        largest, in the label's order."""
        assert example.boxes_px is not None
        size = (example.original_size[1], example.original_size[0])
        seen = [visible(tuple(box), size, settings.res) >= MIN_VISIBLE for box in example.boxes_px.tolist()]
        cropped = [
            transform(tuple(box), size, settings.res, settings.min_area) if shown else None
            for box, shown in zip(example.boxes_px.tolist(), seen, strict=True)
        ]
        good = [place for place, box in enumerate(cropped) if box is not None]
        boxes = np.array([box.normalised for box in cropped if box is not None], np.float64).reshape(-1, 4)
        chosen = np.sort(largest(boxes, settings.max_boxes))
        rows = [good[place] for place in chosen.tolist()]
        return replace(
            example,
            boxes=boxes[chosen].astype(np.float32),
            boxes_px=example.boxes_px[rows],
            scores=np.ones(len(rows), np.float32),
            phrases=tuple(example.phrases[row] for row in rows),
            dropped=example.dropped + len(cropped) - len(rows),
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

    def _example(self, image: str, path: Path) -> RawExample | Quarantined | Filtered:
        key = PurePosixPath(image).stem
        return Filtered(key, "held out") if key in self.held_out else super()._example(image, path)

    def _joined(self, key: str, name: str, data: bytes) -> RawExample:
        label = self._label_of(key)
        captions = usable([label.caption]) or self._captions_of(name)
        if not captions:
            raise ValueError("no caption")
        whole, facts = image_size(data), self._facts_of(key)
        unsized = not states_size(facts)
        if unsized and has_white_border(data):
            raise ValueError("a white border, and nothing says where the picture lies in it: give its <image>.json too")
        inner, size = self._inner(facts, whole)
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

    def _label_of(self, key: str) -> RichLabel:
        data = self._packed.read(PREFIX + key, "json") if self._tars else None
        if key in self._labels:
            data = self._bytes(self._labels[key], "its label")
        if data is None:
            raise ValueError("no label")
        return read_label(data)


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


def held_out(data: bytes, what: str) -> set[str]:
    """The images' names without folder and ending of a list of them: ``[["a.jpg", "label_a.json"], …]`` or
    ``["a.jpg", …]``.

    Args:
        what: the list's place, for the error.

    Raises:
        DataError: it is no such list.
    """
    try:
        rows = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise DataError(f"{what}: no JSON: {error}", "give a list of images") from error
    rows = rows if isinstance(rows, list) else [None]
    images = [row[0] if isinstance(row, list) and row else row for row in rows]
    if not all(isinstance(image, str) for image in images):
        raise DataError(f"{what}: it lists no images", 'give ["a.jpg", …] or [["a.jpg", "label_a.json"], …]')
    return {PurePosixPath(image).stem for image in images}
