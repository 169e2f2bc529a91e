"""A folder of raw tars with their boxes and captions, fetched file by file as they are used."""

import fnmatch
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from atelier.data.captions import CaptionTable
from atelier.errors import DataError
from atelier.storage.digest import sha256_file
from atelier.storage.folder import InputFolder
from atelier.storage.manifest import Manifest

TARS = ("tars/*", "*.tar", "*.tar.gz", "*.tgz")


@dataclass(frozen=True)
class RawTar:
    """One tar and its boxes file (None: a source without boxes), both here on disk."""

    tar: Path
    boxes: Path | None = None


class RawSource:
    """Raw data as a manifest lists it: tars, ``<stem of a tar>.npy`` boxes, ``.parquet`` captions.

    Args:
        manifest: of kind ``sa1b-raw``, or of any folder that holds these.
        cache: where remote files are kept, see ``InputFolder``.

    Attributes:
        tars: their names in the manifest, in the order in which they are written.

    Raises:
        DataError: no tars, or two whose shards would have one name.
    """

    def __init__(self, manifest: Manifest, cache: Path | None = None) -> None:
        self.manifest, self.cache = manifest, cache
        self._folder = InputFolder(manifest, cache)
        names = self._folder.names()
        self.tars = [name for name in names if any(fnmatch.fnmatchcase(name, form) for form in TARS)]
        self._boxes = {PurePosixPath(name).stem: name for name in names if name.endswith(".npy")}
        if not self.tars:
            raise DataError(f"{manifest.uri}: no tars", "give the output of download")
        stems: dict[str, str] = {}
        for name in self.tars:
            other = stems.setdefault(stem(name), name)
            if other != name:
                raise DataError(
                    f"{manifest.uri}: {other} and {name} would give shards of one name", "give each tar its own name"
                )

    def captions(self) -> CaptionTable:
        """The captions of all tars; the parquet files are fetched."""
        return CaptionTable([self._folder.fetch(name) for name in self._folder.names("*.parquet")])

    def fetch(self, name: str) -> RawTar:
        """A tar and its boxes, verified by sha256: flipped bits in a JPEG often decode without complaint.

        Raises:
            DataError: missing, or not what the manifest says. StorageError, ServiceError: it cannot be read.
        """
        boxes = self._boxes.get(stem(name))
        return RawTar(self._verified(name), self._verified(boxes) if boxes else None)

    def _verified(self, name: str) -> Path:
        path, entry = self._folder.fetch(name), self.manifest.file(name)
        found = sha256_file(path)
        if found != entry.sha256:
            raise DataError(
                f"{path}: its sha256 is {found[:16]}…, its manifest says {entry.sha256[:16]}…: changed or damaged",
                "delete the folder; the next run makes it again",
            )
        return path

    def forget(self, name: str) -> None:
        """Deletes the local copy of a remote tar that is no longer needed."""
        self._folder.forget(name)


def stem(name: str) -> str:
    """``"tars/sa_000001.tar.gz"`` → ``"sa_000001"``."""
    return PurePosixPath(name).name.split(".", 1)[0]
