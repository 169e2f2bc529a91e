"""Rich-context data with its pictures in img2dataset's own tars: millions of pictures, and some hundred files."""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

from atelier.data.img2dataset import examples_of, read_tar
from atelier.data.quarantine import Filtered, Quarantined
from atelier.data.raw_example import RawExample
from atelier.data.raw_form import PICTURES, is_packed
from atelier.data.raw_source import Examples, stem, verified
from atelier.data.rich_examples import RichExamples, joined
from atelier.data.rich_labels import RichLabels
from atelier.data.tar_stream import members_of
from atelier.errors import DataError
from atelier.storage.folder import InputFolder
from atelier.storage.manifest import Manifest


class RichTars(RichExamples):
    """``RawSource`` of tars of pictures and their labels, joined by name as ``RichSource`` does; a unit is a tar.

    Args:
        manifest: of kind ``rich-context-raw``: ``images/*.tar``, of ``<key>.jpg`` and ``<key>.json``; labels and lists
            of what is held out as for ``RichSource``. Captions are the labels' own.
        cache: where remote files are kept, see ``InputFolder``.

    Raises:
        DataError: pictures as files too, two tars whose shards would have one name, no labels, or two different ones
            of one name.
    """

    def __init__(self, manifest: Manifest, cache: Path | None = None) -> None:
        self.manifest, self.cache = manifest, cache
        self._folder = InputFolder(manifest, cache)
        names = self._folder.names()
        self.units = [name for name in names if is_packed(name)]
        files = [name for name in names if PurePosixPath(name).suffix.lower() in PICTURES]
        if files:
            raise DataError(f"{manifest.uri}: pictures in tars, and as files ({files[0]})", "give one or the other")
        if len({stem(name) for name in self.units}) < len(self.units):
            raise DataError(f"{manifest.uri}: two tars would give shards of one name", "give each its own name")
        self._labels = RichLabels(self._folder)

    def fetch(self, name: str) -> Callable[[], Examples]:
        """A tar; see ``RawSource``. Labels that are files are fetched one by one as they are needed."""
        tar = verified(self._folder, name)
        return lambda: self._labelled(read_tar(tar))

    def first(self, count: int) -> Examples:
        """The first examples, for a look at them; of a remote tar no more is read than that takes."""
        name = self.units[0]
        with self._folder.look_into(name) as file:
            found = members_of(file, self.manifest.file(name).bytes)
            yield from itertools.islice(self._labelled(examples_of(found, PurePosixPath(name).name)), count)

    def forget(self, name: str) -> None:
        """The tar's copy."""
        self._folder.forget(name)

    def _labelled(self, found: Examples) -> Iterator[RawExample | Quarantined | Filtered]:
        for picture in found:
            yield self._with_label(picture) if isinstance(picture, RawExample) else picture

    def _with_label(self, picture: RawExample) -> RawExample | Quarantined | Filtered:
        if picture.key in self._labels.held_out:
            return Filtered(picture.key, "held out")
        try:
            return joined(picture.key, picture.image, self._labels.of(picture.key), picture.facts, tuple)
        except ValueError as error:
            return Quarantined(picture.key, str(error))
