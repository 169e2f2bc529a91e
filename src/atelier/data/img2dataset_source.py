"""img2dataset's tars as a raw source, fetched one by one as they are used."""

import itertools
import math
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

from atelier.data.img2dataset import examples_of, read_tar
from atelier.data.raw_example import RawExample
from atelier.data.raw_form import is_tar
from atelier.data.raw_source import Examples, stem, verified
from atelier.data.settings import Settings
from atelier.data.tar_stream import members_of
from atelier.errors import DataError
from atelier.storage.folder import InputFolder
from atelier.storage.manifest import Manifest

KEPT = ("url", "LICENSE", "similarity", "NSFW")
"""Facts that a sample's json keeps: where it is from, under which licence, and why it was kept."""

MAX_FACT = 2000
"""Characters of a fact that is kept."""

MAX_INT = 2**63
"""Whole numbers that are kept are less, beside the sign: JSON has them of any length, other readers do not."""


class Img2DatasetSource:
    """``RawSource`` of tars; a unit is a tar.

    Args:
        manifest: of kind ``img2dataset-raw``.
        cache: where remote files are kept, see ``InputFolder``.

    Raises:
        DataError: no tars, or two whose shards would have one name.
    """

    brings_latents = False

    def __init__(self, manifest: Manifest, cache: Path | None = None) -> None:
        self.manifest, self.cache = manifest, cache
        self._folder = InputFolder(manifest, cache)
        self.units = [name for name in self._folder.names() if is_tar(name)]
        if not self.units:
            raise DataError(f"{manifest.uri}: no tars", "give the output of download")
        if len({stem(name) for name in self.units}) < len(self.units):
            raise DataError(f"{manifest.uri}: two tars would give shards of one name", "give each its own name")

    def fetch(self, name: str) -> Callable[[], Examples]:
        """A tar; see ``RawSource``."""
        tar = verified(self._folder, name)
        return lambda: read_tar(tar)

    def first(self, count: int) -> Examples:
        """The first examples, for a look at them; of a remote tar no more is read than that takes."""
        name = self.units[0]
        with self._folder.look_into(name) as file:
            found = members_of(file, self.manifest.file(name).bytes)
            yield from itertools.islice(examples_of(found, PurePosixPath(name).name), count)

    def forget(self, name: str) -> None:
        """The tar's copy."""
        self._folder.forget(name)

    def select(self, example: RawExample, settings: Settings) -> RawExample:
        """There are no boxes to choose among."""
        return example

    def record(self, example: RawExample, res: int) -> dict[str, Any]:
        """The caption, the picture's size and some facts."""
        kept = {name: example.facts[name] for name in KEPT if _sayable(example.facts.get(name))}
        return {"key": example.key, "caption": example.caption, "original_size": list(example.original_size), **kept}


def _sayable(value: object) -> bool:
    """Whether a fact is there and can be written: NaN is a number to Python alone, half a surrogate pair is no text."""
    if isinstance(value, str):
        return len(value) <= MAX_FACT and value.isprintable() and value.encode("utf-8", "replace").decode() == value
    if isinstance(value, int):
        return abs(value) < MAX_INT
    return isinstance(value, float) and math.isfinite(value)
