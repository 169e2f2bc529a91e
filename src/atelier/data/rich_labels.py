"""The labels of rich-context data, files or members of tars, and the lists of images that are held out."""

import functools
from collections.abc import Container, Mapping
from pathlib import PurePosixPath

import orjson

from atelier.data.picture_folder import checked_bytes, note
from atelier.data.raw_form import is_label, is_packed, is_validation
from atelier.data.raw_source import verified
from atelier.data.rich_label import PREFIX, RichLabel, read_label
from atelier.data.tar_members import TarMembers
from atelier.errors import DataError
from atelier.storage.atomic import os_errors
from atelier.storage.folder import InputFolder

FIX = "give the tars that annotate wrote"


class RichLabels:
    """A folder's labels by the images' names without folder and ending.

    Args:
        folder: with ``label_*.json``, or ``*.tar`` of them beside those of pictures; and ``validation*.json``.
        images: whose labels are wanted; None: any.

    Raises:
        DataError: no labels, two different ones of one image, or labels both as files and in tars.
    """

    def __init__(self, folder: InputFolder, images: Container[str] | None = None) -> None:
        self._folder, uri = folder, folder.manifest.uri
        self._files: dict[str, str] = {}
        self._tars = [name for name in folder.names("*.tar") if not is_packed(name)]
        names = folder.names("*.json")
        self._validation = sorted(name for name in names if is_validation(name))
        for name in names:
            if is_label(name):
                note(self._files, PurePosixPath(name).stem.removeprefix(PREFIX), name, folder.manifest, images)
        if self._files and self._tars:
            raise DataError(
                f"{uri}: labels of its images, and tars of labels ({self._tars[0]})", "give one or the other"
            )
        if not self._files and not self._tars:
            raise DataError(f"{uri}: no label of its images", "give a label_<image>.json for each")

    @property
    def files(self) -> Mapping[str, str]:
        """The labels that are files, by their images."""
        return self._files

    @functools.cached_property
    def held_out(self) -> frozenset[str]:
        """The images that are not to be trained on.

        Raises:
            DataError: a list of them that is none.
        """
        found: set[str] = set()
        for name in self._validation:
            path = self._folder.fetch(name)
            with os_errors(path):
                data = path.read_bytes()
            found |= held_out(data, f"{self._folder.manifest.uri}/{name}")
        return frozenset(found)

    def of(self, key: str) -> RichLabel:
        """An image's label.

        Raises:
            ValueError: it has none, or one of no use. DataError: a tar of no use.
        """
        data = self._packed.read(PREFIX + key, "json") if self._tars else None
        if key in self._files:
            data = checked_bytes(self._folder, self._files[key], "its label")
        if data is None:
            raise ValueError("no label")
        return read_label(data)

    @functools.cached_property
    def _packed(self) -> TarMembers:
        """The tars' labels; the tars are fetched once."""
        return TarMembers([verified(self._folder, name) for name in self._tars], "json", FIX)


def held_out(data: bytes, what: str) -> set[str]:
    """The images' names without folder and ending of a list of them: ``[["a.jpg", "label_a.json"], …]`` or
    ``["a.jpg", …]``.

    Args:
        what: the list's place, for the error.

    Raises:
        DataError: it is no such list.
    """
    try:
        rows = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise DataError(f"{what}: no JSON: {error}", "give a list of images") from error
    rows = rows if isinstance(rows, list) else [None]
    images = [row[0] if isinstance(row, list) and row else row for row in rows]
    if not all(isinstance(image, str) for image in images):
        raise DataError(f"{what}: it lists no images", 'give ["a.jpg", …] or [["a.jpg", "label_a.json"], …]')
    return {PurePosixPath(image).stem for image in images}
