"""What SA-1B's two forms share: a file of boxes for each unit, selection by confidence, SDXL's size conditions."""

import fnmatch
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from atelier.data.geometry import time_ids, top_left
from atelier.data.raw_example import RawExample
from atelier.data.raw_source import stem
from atelier.data.sa1b_select import select
from atelier.data.settings import Settings
from atelier.errors import DataError
from atelier.storage.folder import InputFolder
from atelier.storage.manifest import Manifest


class BoxedSource:
    """``RawSource`` but for ``fetch`` and ``brings_latents``.

    Args:
        units, boxes: patterns of the files that are units, and of those that hold boxes.
        what: the units' name in an error.

    Raises:
        DataError: no units, or two whose shards would have one name.
    """

    def __init__(
        self, manifest: Manifest, cache: Path | None, units: Sequence[str], boxes: Sequence[str], what: str
    ) -> None:
        self.manifest, self.cache = manifest, cache
        self._folder = InputFolder(manifest, cache)
        names = self._folder.names()
        self.units = [name for name in names if _fits(name, units)]
        self._boxes = {PurePosixPath(name).stem: name for name in names if _fits(name, boxes)}
        if not self.units:
            raise DataError(f"{manifest.uri}: no {what}", "give the output of download")
        stems: dict[str, str] = {}
        for name in self.units:
            other = stems.setdefault(stem(name), name)
            if other != name:
                raise DataError(
                    f"{manifest.uri}: {other} and {name} would give shards of one name", "give each its own name"
                )

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
        """The unit's copy; its boxes are small and stay."""
        self._folder.forget(name)


def _fits(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
