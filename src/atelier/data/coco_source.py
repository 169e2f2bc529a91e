"""COCO as a raw source: a folder of images and its annotations, JSON or the published ``.pth``."""

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from atelier.data.coco import Annotated, Annotations, CaptionFile, InstanceFile, usable, warn_of_missing
from atelier.data.coco_boxes import largest, transform
from atelier.data.geometry import image_size
from atelier.data.quarantine import Quarantined
from atelier.data.raw_example import RawExample
from atelier.data.raw_form import PICTURES
from atelier.data.raw_source import Examples
from atelier.data.sa1b import KEY
from atelier.data.settings import Settings
from atelier.errors import DataError
from atelier.storage.atomic import os_errors
from atelier.storage.digest import sha256_bytes
from atelier.storage.folder import InputFolder
from atelier.storage.manifest import Manifest

UNIT_IMAGES = 2048
FETCHES = 8


class COCOSource:
    """``RawSource`` of image files with one instances JSON or ``.pth``, and a captions JSON (the ``.pth`` may bring its
    own captions); a unit is ``UNIT_IMAGES`` images in the order of their names.

    Args:
        manifest: of kind ``coco-raw``: images anywhere, ``*instances*.json`` or ``*.pth``, ``*captions*.json``.
        cache: where remote files are kept, see ``InputFolder``.

    Raises:
        DataError: no images, two of one name, or not exactly one file of boxes.
    """

    brings_latents = False

    def __init__(self, manifest: Manifest, cache: Path | None = None) -> None:
        self.manifest, self.cache = manifest, cache
        self._folder = InputFolder(manifest, cache)
        names = self._folder.names()
        self._images = sorted((n for n in names if PurePosixPath(n).suffix.lower() in PICTURES), key=PurePosixPath)
        self._boxes = [n for n in names if n.endswith(".pth") or _is_json(n, "instances")]
        self._captions = [n for n in names if _is_json(n, "captions")]
        if not self._images:
            raise DataError(f"{manifest.uri}: no images", "give the output of download")
        if len(self._boxes) != 1 or len(self._captions) > 1:
            raise DataError(
                f"{manifest.uri}: {len(self._boxes)} files of boxes and {len(self._captions)} of captions",
                "give one instances_*.json or one .pth, and at most one captions_*.json",
            )
        stems: dict[str, str] = {}
        for name in self._images:
            other = stems.setdefault(PurePosixPath(name).stem, name)
            if other != name:
                raise DataError(f"{manifest.uri}: {other} and {name} would be one sample", "give each its own name")
        self.units = [f"coco-{number:06d}" for number in range(-(-len(self._images) // UNIT_IMAGES))]

    @functools.cached_property
    def annotations(self) -> Annotations:
        """The boxes' file, fetched and read once."""
        path = self._folder.fetch(self._boxes[0])
        found: Annotations
        if self._boxes[0].endswith(".json"):
            found = InstanceFile(path)
        else:
            from atelier.data.coco_published import PublishedFile

            found = PublishedFile(path)
        warn_of_missing(found, {PurePosixPath(name).name for name in self._images})
        return found

    @functools.cached_property
    def captions(self) -> CaptionFile | None:
        """The captions' file, fetched and read once."""
        return CaptionFile(self._folder.fetch(self._captions[0])) if self._captions else None

    def fetch(self, name: str) -> Callable[[], Examples]:
        """A unit's images; see ``RawSource``."""
        own = self._of_unit(name)
        with ThreadPoolExecutor(FETCHES) as pool:
            paths = dict(zip(own, pool.map(self._folder.fetch, own), strict=True))
        return lambda: (self._example(image, path) for image, path in paths.items())

    def first(self, count: int) -> Examples:
        """The first images, for a look at them."""
        return (self._example(image, self._folder.fetch(image)) for image in self._images[:count])

    def forget(self, name: str) -> None:
        """The unit's images' copies; see ``RawSource``."""
        for image in self._of_unit(name):
            self._folder.forget(image)

    def select(self, example: RawExample, settings: Settings) -> RawExample:
        """The largest boxes of at least ``settings.min_area``, the largest first: GLIGEN's rule for COCO."""
        assert example.boxes_px is not None
        size = (example.original_size[1], example.original_size[0])
        cropped = [transform(tuple(box), size, settings.res, settings.min_area) for box in example.boxes_px.tolist()]
        good = [place for place, box in enumerate(cropped) if box is not None]
        boxes = np.array([box.normalised for box in cropped if box is not None], np.float64).reshape(-1, 4)
        chosen = largest(boxes, settings.max_boxes)
        rows = [good[place] for place in chosen.tolist()]
        return replace(
            example,
            boxes=boxes[chosen].astype(np.float32),
            boxes_px=example.boxes_px[rows],
            scores=np.ones(len(rows), np.float32),
            phrases=tuple(example.phrases[row] for row in rows),
            phrase_embeddings=None if example.phrase_embeddings is None else example.phrase_embeddings[rows],
            dropped=example.dropped + len(cropped) - len(good),
        )

    def record(self, example: RawExample, res: int) -> dict[str, Any]:
        """With all captions, and the boxes in pixels of the original besides."""
        return {
            "key": example.key,
            "captions": list(example.captions),
            "phrases": list(example.phrases),
            "boxes": example.boxes.tolist(),
            "boxes_px": [] if example.boxes_px is None else example.boxes_px.tolist(),
            "original_size": list(example.original_size),
        }

    def _of_unit(self, name: str) -> list[str]:
        first = int(name.rpartition("-")[2]) * UNIT_IMAGES
        return self._images[first : first + UNIT_IMAGES]

    def _example(self, image: str, path: Path) -> RawExample | Quarantined:
        key, name = PurePosixPath(image).stem, PurePosixPath(image).name
        with os_errors(path):
            data = path.read_bytes()
        try:
            if not KEY.fullmatch(key):
                raise ValueError("unusable name: not 1 to 64 letters, digits, _ and -")
            if sha256_bytes(data) != self.manifest.file(image).sha256:
                raise ValueError("damaged: not the bytes that its manifest states")
            return self._joined(key, name, data)
        except ValueError as error:
            return Quarantined(key, str(error))

    def _joined(self, key: str, name: str, data: bytes) -> RawExample:
        size = image_size(data)
        known: Annotated | None = self.annotations.of(name)
        if known is None:
            raise ValueError("not in the annotations")
        if known.problem:
            raise ValueError(known.problem)
        if known.size is not None and known.size != size:
            raise ValueError(f"its annotations state another size than the image has: {known.size} and {size}")
        captions = usable(known.captions) or usable(self.captions.of(name) if self.captions else ())
        if not captions:
            raise ValueError("no caption")
        if len(known.boxes) != len(known.phrases):
            raise ValueError(f"{len(known.boxes)} boxes and {len(known.phrases)} phrases")
        return RawExample(
            key,
            data,
            size,
            captions[0],
            np.empty((0, 4), np.float32),
            np.ones(len(known.boxes), np.float32),
            known.phrases,
            dropped=known.dropped,
            captions=captions,
            boxes_px=known.boxes,
            phrase_embeddings=known.embeddings,
        )


def _is_json(name: str, kind: str) -> bool:
    return kind in PurePosixPath(name).name and name.endswith(".json")
