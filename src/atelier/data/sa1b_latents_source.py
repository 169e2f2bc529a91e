"""SA-1B's published latents with their boxes, fetched file by file as they are used."""

from collections.abc import Callable
from pathlib import Path

from atelier.data.raw_source import Examples, stem, verified
from atelier.data.sa1b_boxed import BoxedSource
from atelier.data.sa1b_latents import read_latents
from atelier.errors import DataError
from atelier.storage.manifest import Manifest


class SA1BLatentsSource(BoxedSource):
    """``RawSource`` of ``latents/<name>.npy`` and ``boxes/<name>.npy`` (with sizes); a unit is a file of latents.

    Args:
        manifest: of kind ``sa1b-latents-raw``.
        cache: where remote files are kept, see ``InputFolder``.

    Raises:
        DataError: no latents, two files whose shards would have one name, or a file without boxes.
    """

    brings_latents = True

    def __init__(self, manifest: Manifest, cache: Path | None = None) -> None:
        super().__init__(manifest, cache, units=("latents/*.npy",), boxes=("boxes/*.npy",), what="latents")
        without = [name for name in self.units if stem(name) not in self._boxes]
        if without:
            raise DataError(
                f"{manifest.uri}: no boxes for {', '.join(without[:5])}", "give boxes/<name>.npy for latents/<name>.npy"
            )

    def fetch(self, name: str) -> Callable[[], Examples]:
        """A file of latents and its boxes; see ``RawSource``."""
        latents, boxes = verified(self._folder, name), verified(self._folder, self._boxes[stem(name)])
        return lambda: read_latents(latents, boxes)
