"""SA-1B's raw tars with their boxes and captions, fetched file by file as they are used."""

import functools
from collections.abc import Callable
from pathlib import Path

from atelier.data.captions import CaptionTable
from atelier.data.raw_source import Examples, stem, verified
from atelier.data.sa1b import read_tar
from atelier.data.sa1b_boxed import BoxedSource
from atelier.storage.manifest import Manifest

TARS = ("tars/*", "*.tar", "*.tar.gz", "*.tgz")


class SA1BSource(BoxedSource):
    """``RawSource`` of tars, ``<stem of a tar>.npy`` boxes and ``.parquet`` captions; a unit is a tar.

    Args:
        manifest: of kind ``sa1b-raw``, or of any folder that holds these.
        cache: where remote files are kept, see ``InputFolder``.

    Raises:
        DataError: no tars, or two whose shards would have one name.
    """

    brings_latents = False

    def __init__(self, manifest: Manifest, cache: Path | None = None) -> None:
        super().__init__(manifest, cache, units=TARS, boxes=("*.npy",), what="tars")

    @functools.cached_property
    def captions(self) -> CaptionTable:
        """The captions of all tars; the parquet files are fetched."""
        return CaptionTable([self._folder.fetch(name) for name in self._folder.names("*.parquet")])

    def fetch(self, name: str) -> Callable[[], Examples]:
        """A tar and its boxes; see ``RawSource``."""
        boxes = self._boxes.get(stem(name))
        tar, rows = verified(self._folder, name), verified(self._folder, boxes) if boxes else None
        return lambda: read_tar(tar, self.captions, rows)
