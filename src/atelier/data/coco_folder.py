"""COCO's images: a folder of files and their captions, in units of a fixed number of images."""

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

import numpy as np

from atelier.data.coco import CaptionFile, usable
from atelier.data.geometry import image_size
from atelier.data.quarantine import Filtered, Quarantined
from atelier.data.raw_example import RawExample
from atelier.data.raw_form import PICTURES
from atelier.data.raw_source import Examples
from atelier.data.sa1b import KEY
from atelier.errors import DataError
from atelier.storage.atomic import os_errors
from atelier.storage.digest import sha256_bytes
from atelier.storage.folder import InputFolder
from atelier.storage.manifest import Manifest

UNIT_IMAGES = 2048
FETCHES = 8


class COCOFolder:
    """``RawUnits`` of image files and at most one captions JSON; a unit is some images in the order of their names.

    Args:
        manifest: of kind ``coco-raw`` or ``coco-images-raw``: images anywhere, ``*captions*.json``.
        cache: where remote files are kept, see ``InputFolder``.
        unit_images: images of a unit; 0 is ``UNIT_IMAGES``.

    Raises:
        DataError: no images, two of one name, or several files of captions.
    """

    def __init__(self, manifest: Manifest, cache: Path | None = None, unit_images: int = 0) -> None:
        self.manifest, self.cache, self._unit_images = manifest, cache, unit_images or UNIT_IMAGES
        self._folder = InputFolder(manifest, cache)
        names = self._folder.names()
        self.images = sorted((n for n in names if PurePosixPath(n).suffix.lower() in PICTURES), key=PurePosixPath)
        self._captions = [n for n in names if is_json(n, "captions")]
        if not self.images:
            raise DataError(f"{manifest.uri}: no images", "give the output of download")
        if len(self._captions) > 1:
            raise DataError(
                f"{manifest.uri}: {len(self._captions)} files of captions", "give at most one captions_*.json"
            )
        stems: dict[str, str] = {}
        for name in self.images:
            other = stems.setdefault(PurePosixPath(name).stem, name)
            if other != name:
                raise DataError(f"{manifest.uri}: {other} and {name} would be one sample", "give each its own name")
        self.units = [f"coco-{number:06d}" for number in range(-(-len(self.images) // self._unit_images))]

    @functools.cached_property
    def captions(self) -> CaptionFile | None:
        """The captions' file, fetched and read once."""
        return CaptionFile(self._folder.fetch(self._captions[0])) if self._captions else None

    def fetch(self, name: str) -> Callable[[], Examples]:
        """A unit's images; see ``RawUnits``."""
        own = self._of_unit(name)
        with ThreadPoolExecutor(FETCHES) as pool:
            paths = dict(zip(own, pool.map(self._folder.fetch, own), strict=True))
        return lambda: (self._example(image, path) for image, path in paths.items())

    def first(self, count: int) -> Examples:
        """The first images, for a look at them."""
        return (self._example(image, self._folder.fetch(image)) for image in self.images[:count])

    def forget(self, name: str) -> None:
        """The unit's images' copies; see ``RawUnits``."""
        for image in self._of_unit(name):
            self._folder.forget(image)

    def _of_unit(self, name: str) -> list[str]:
        first = int(name.rpartition("-")[2]) * self._unit_images
        return self.images[first : first + self._unit_images]

    def _example(self, image: str, path: Path) -> RawExample | Quarantined | Filtered:
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
        """The image with what is stated about it: here its captions, of which there may be none.

        Raises:
            ValueError: it is of no use.
        """
        captions = self._captions_of(name)
        boxes = np.empty((0, 4), np.float32)
        return RawExample(
            key, data, image_size(data), "".join(captions[:1]), boxes, np.empty(0, np.float32), (), captions=captions
        )

    def _captions_of(self, name: str) -> tuple[str, ...]:
        return usable(self.captions.of(name) if self.captions else ())


def is_json(name: str, kind: str) -> bool:
    """Whether a file's name is that of a JSON file of this kind, e.g. "captions"."""
    return kind in PurePosixPath(name).name and name.endswith(".json")
