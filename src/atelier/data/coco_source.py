"""COCO as a raw source: a folder of images and its annotations: JSON, the published ``.pth``, or our own shards."""

import functools
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from atelier.data.coco import Annotated, Annotations, InstanceFile, ThingsAndStuff, usable, warn_of_missing
from atelier.data.coco_boxes import kept
from atelier.data.coco_folder import COCOFolder, is_json
from atelier.data.geometry import image_size
from atelier.data.raw_example import RawExample
from atelier.data.raw_form import is_stuff
from atelier.data.raw_source import verified
from atelier.data.settings import Settings
from atelier.errors import DataError
from atelier.storage.manifest import Manifest


class COCOSource(COCOFolder):
    """``RawSource`` of image files with one instances JSON or ``.pth``, or the shards of ``annotate``, and a captions
    JSON (the ``.pth`` and the shards may bring their own captions). Beside an instances JSON there may be one of stuff.

    Args:
        manifest: of kind ``coco-raw``: images anywhere, ``*instances*.json`` (and ``stuff*.json``), ``*.pth`` or
            ``*.tar``, ``*captions*.json``.
        cache: where remote files are kept, see ``InputFolder``.

    Raises:
        DataError: no images, two of one name, or not exactly one file of boxes (or several shards).
    """

    brings_latents = False

    def __init__(self, manifest: Manifest, cache: Path | None = None) -> None:
        super().__init__(manifest, cache)
        names = self._folder.names()
        self._shards = [n for n in names if n.endswith(".tar")]
        self._boxes = [n for n in names if n.endswith(".pth") or is_json(n, "instances")]
        self._stuff = [n for n in names if is_stuff(n)]
        if len(self._boxes) + bool(self._shards) != 1:
            found = f"{len(self._boxes)} files of boxes" + (" and shards of annotations" if self._shards else "")
            raise DataError(
                f"{manifest.uri}: {found}", "give one instances_*.json, one .pth, or the shards (*.tar) of annotate"
            )

        if len(self._stuff) > 1 or (self._stuff and not is_json(self._boxes[0] if self._boxes else "", "instances")):
            raise DataError(
                f"{manifest.uri}: {len(self._stuff)} files of stuff", "give at most one, beside an instances_*.json"
            )

    @functools.cached_property
    def annotations(self) -> Annotations:
        """The boxes' file or shards, fetched and read once."""
        found: Annotations
        if self._shards:
            from atelier.data.coco_annotated import AnnotatedShards

            found = AnnotatedShards([verified(self._folder, name) for name in self._shards])
        elif self._boxes[0].endswith(".json"):
            found = things = InstanceFile(self._folder.fetch(self._boxes[0]))
            if self._stuff:
                found = ThingsAndStuff(things, InstanceFile(self._folder.fetch(self._stuff[0])))
        else:
            from atelier.data.coco_published import PublishedFile

            found = PublishedFile(self._folder.fetch(self._boxes[0]))
        warn_of_missing(found, {PurePosixPath(name).name for name in self.images})
        return found

    def select(self, example: RawExample, settings: Settings) -> RawExample:
        """The largest boxes of at least ``settings.min_area``, the largest first: GLIGEN's rule for COCO."""
        assert example.boxes_px is not None
        size = (example.original_size[1], example.original_size[0])
        boxes, rows = kept(example.boxes_px, size, settings.res, settings.min_area, settings.max_boxes)
        return replace(
            example,
            boxes=boxes,
            boxes_px=example.boxes_px[rows],
            scores=np.ones(len(rows), np.float32),
            phrases=tuple(example.phrases[row] for row in rows),
            phrase_embeddings=None if example.phrase_embeddings is None else example.phrase_embeddings[rows],
            dropped=example.dropped + len(example.boxes_px) - len(rows),
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

    def _joined(self, key: str, name: str, data: bytes) -> RawExample:
        size = image_size(data)
        known: Annotated | None = self.annotations.of(name)
        if known is None:
            raise ValueError("not in the annotations")
        if known.problem:
            raise ValueError(known.problem)
        if known.size is not None and known.size != size:
            raise ValueError(f"its annotations state another size than the image has: {known.size} and {size}")
        captions = usable(known.captions) or self._captions_of(name)
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
