"""A folder of raw tars with their boxes and captions, fetched file by file as they are used."""

import fnmatch
import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from atelier.data.captions import CaptionTable
from atelier.data.geometry import time_ids, top_left
from atelier.data.raw_example import RawExample
from atelier.data.raw_source import Examples, stem, verified
from atelier.data.sa1b import read_tar
from atelier.data.sa1b_select import select
from atelier.data.settings import Settings
from atelier.errors import DataError
from atelier.storage.folder import InputFolder
from atelier.storage.manifest import Manifest

TARS = ("tars/*", "*.tar", "*.tar.gz", "*.tgz")


class SA1BSource:
    """``RawSource`` of tars, ``<stem of a tar>.npy`` boxes and ``.parquet`` captions; a unit is a tar.

    Args:
        manifest: of kind ``sa1b-raw``, or of any folder that holds these.
        cache: where remote files are kept, see ``InputFolder``.

    Raises:
        DataError: no tars, or two whose shards would have one name.
    """

    def __init__(self, manifest: Manifest, cache: Path | None = None) -> None:
        self.manifest, self.cache = manifest, cache
        self._folder = InputFolder(manifest, cache)
        names = self._folder.names()
        self.units = [name for name in names if any(fnmatch.fnmatchcase(name, form) for form in TARS)]
        self._boxes = {PurePosixPath(name).stem: name for name in names if name.endswith(".npy")}
        if not self.units:
            raise DataError(f"{manifest.uri}: no tars", "give the output of download")
        stems: dict[str, str] = {}
        for name in self.units:
            other = stems.setdefault(stem(name), name)
            if other != name:
                raise DataError(
                    f"{manifest.uri}: {other} and {name} would give shards of one name", "give each tar its own name"
                )

    @functools.cached_property
    def captions(self) -> CaptionTable:
        """The captions of all tars; the parquet files are fetched."""
        return CaptionTable([self._folder.fetch(name) for name in self._folder.names("*.parquet")])

    def fetch(self, name: str) -> Callable[[], Examples]:
        """A tar and its boxes; see ``RawSource``."""
        boxes = self._boxes.get(stem(name))
        tar, rows = verified(self._folder, name), verified(self._folder, boxes) if boxes else None
        return lambda: read_tar(tar, self.captions, rows)

    def select(self, example: RawExample, settings: Settings) -> RawExample:
        """By confidence, IGLIGEN's rule."""
        rows = select(example.scores, settings.min_confidence, settings.max_boxes)
        phrases = tuple(example.phrases[row] for row in rows.tolist())
        return replace(example, boxes=example.boxes[rows], scores=example.scores[rows], phrases=phrases)

    def record(self, example: RawExample, res: int) -> dict[str, Any]:
        """With SDXL's size conditions."""
        return {
            "key": example.key,
            "caption": example.caption,
            "phrases": list(example.phrases),
            "boxes": [[float(value) for value in box] for box in example.boxes],
            "scores": [float(score) for score in example.scores],
            "original_size": list(example.original_size),
            "crop_top_left": list(top_left(example.original_size, res)),
            "time_ids": list(time_ids(example.original_size, res)),
        }

    def forget(self, name: str) -> None:
        """The tar's copy; its boxes are small and stay."""
        self._folder.forget(name)
