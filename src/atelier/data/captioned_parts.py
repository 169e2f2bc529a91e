"""Captioned pictures in tars, as JourneyDB publishes them: ``imgs/000.tgz`` … and one list of prompts."""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from atelier.data.captioned_source import Prompts, record
from atelier.data.quarantine import Quarantined
from atelier.data.raw_example import RawExample
from atelier.data.raw_form import PICTURES, is_part
from atelier.data.raw_source import Examples, stem, verified
from atelier.data.sa1b import KEY
from atelier.data.settings import Settings
from atelier.data.tar_stream import Member, TarDamaged, members, members_of
from atelier.errors import DataError
from atelier.storage.folder import InputFolder
from atelier.storage.manifest import Manifest


class CaptionedParts:
    """``RawSource`` of tars of images and lists of prompts, joined by the image's file name; a unit is a tar.

    Args:
        manifest: of kind ``captioned-raw``.
        cache: where remote files are kept, see ``InputFolder``.

    Raises:
        DataError: two tars whose shards would have one name, pictures beside them, or no list of prompts.
    """

    brings_latents = False

    def __init__(self, manifest: Manifest, cache: Path | None = None) -> None:
        self.manifest, self.cache = manifest, cache
        self._folder = InputFolder(manifest, cache)
        names = self._folder.names()
        self.units = [name for name in names if is_part(name)]
        if len({stem(name) for name in self.units}) < len(self.units):
            raise DataError(f"{manifest.uri}: two tars would give shards of one name", "give each its own name")
        if loose := [name for name in names if PurePosixPath(name).suffix.lower() in PICTURES]:
            raise DataError(f"{manifest.uri}: tars and loose pictures, e.g. {loose[0]}", "give one or the other")
        self._prompts = Prompts(self._folder, cache)

    def fetch(self, name: str) -> Callable[[], Examples]:
        """A tar's images; the first one also gives the lines that are of no use, so that they are counted."""
        tar = verified(self._folder, name)

        def examples() -> Examples:
            if name == self.units[0]:
                yield from self._prompts.read.bad
            yield from self._read(members(tar), tar.name)

        return examples

    def first(self, count: int) -> Examples:
        """The first images, for a look at them; of a remote tar no more is read than that takes."""
        name = self.units[0]
        with self._folder.look_into(name) as file:
            found = members_of(file, self.manifest.file(name).bytes)
            yield from itertools.islice(self._read(found, PurePosixPath(name).name), count)

    def forget(self, name: str) -> None:
        """The tar's copy."""
        self._folder.forget(name)

    def select(self, example: RawExample, settings: Settings) -> RawExample:
        """There are no boxes to choose among."""
        return example

    def record(self, example: RawExample, res: int) -> dict[str, Any]:
        """See ``captioned_source.record``."""
        return record(example)

    def _read(self, found: Iterator[Member], tar: str) -> Iterator[RawExample | Quarantined]:
        empty, seen = True, set[str]()
        try:
            for member in found:
                empty = False
                yield self._example(member, seen)
        except TarDamaged as error:
            empty = False
            yield Quarantined(tar, f"damaged tar: {error}")
        if empty:
            yield Quarantined(tar, "no files in the tar")

    def _example(self, member: Member, seen: set[str]) -> RawExample | Quarantined:
        path = PurePosixPath(member.name)
        key = path.stem
        if member.problem or path.suffix.lower() not in PICTURES:
            return Quarantined(member.name, member.problem or "unknown kind of file")
        try:
            if not KEY.fullmatch(key):
                raise ValueError("unusable name: not 1 to 64 letters, digits, _ and -")
            if key in seen:
                raise ValueError("the image is there twice")
            seen.add(key)
            return self._prompts.example(key, path.name, member.data)
        except ValueError as error:
            return Quarantined(key, str(error))
