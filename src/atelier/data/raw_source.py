"""Where raw examples come from: one Protocol, a form of publication each (SA-1B's tars, COCO's folders)."""

from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from atelier.data.quarantine import Filtered, Quarantined
from atelier.data.raw_example import RawExample
from atelier.data.settings import Settings
from atelier.errors import DataError
from atelier.storage.digest import sha256_file
from atelier.storage.folder import InputFolder
from atelier.storage.manifest import Manifest

Examples = Iterator[RawExample | Quarantined | Filtered]


class RawUnits(Protocol):
    """Raw data as a manifest lists it, in units that are fetched, read and encoded one after the other.

    Attributes:
        manifest: what the source holds.
        cache: where remote files are kept, see ``InputFolder``.
        units: names in the order in which they are written. Each one's shards are named after its ``stem``.
    """

    manifest: Manifest
    cache: Path | None
    units: list[str]

    def fetch(self, name: str) -> Callable[[], Examples]:
        """Brings a unit here; what it returns reads the unit's examples, one item at the least.

        Raises:
            DataError: missing, or not what the manifest says. StorageError, ServiceError: it cannot be read.
        """
        ...

    def forget(self, name: str) -> None:
        """Deletes the local copy of a remote unit that is no longer needed."""
        ...


class RawSource(RawUnits, Protocol):
    """Raw data with annotations, ready to be made training samples of.

    Attributes:
        brings_latents: whether its examples hold latents in the place of images.
    """

    brings_latents: bool

    def select(self, example: RawExample, settings: Settings) -> RawExample:
        """The example with the boxes that are trained on, xyxy in [0, 1] of the crop, and their phrases."""
        ...

    def record(self, example: RawExample, res: int) -> dict[str, Any]:
        """A selected example's json: everything that is not an array. Boxes are xyxy in [0, 1] of the crop."""
        ...


def open_source(manifest: Manifest, cache: Path | None = None) -> RawSource:
    """The source of the manifest's kind: ``coco-raw``, ``captioned-raw``, ``img2dataset-raw``, ``rich-context-raw``,
    ``sa1b-latents-raw``, or tars (``sa1b-raw``, or any folder that holds some).

    Raises:
        DataError: it holds no data of that form.
    """
    if manifest.kind in ("coco-raw", "coco-images-raw"):  # the latter lacks boxes, and is refused for it
        from atelier.data.coco_source import COCOSource

        return COCOSource(manifest, cache)
    if manifest.kind == "captioned-raw":
        from atelier.data.captioned_parts import CaptionedParts
        from atelier.data.captioned_source import CaptionedSource
        from atelier.data.raw_form import is_part

        in_parts = any(is_part(entry.path) for entry in manifest.files)
        return CaptionedParts(manifest, cache) if in_parts else CaptionedSource(manifest, cache)
    if manifest.kind == "img2dataset-raw":
        from atelier.data.img2dataset_source import Img2DatasetSource

        return Img2DatasetSource(manifest, cache)
    if manifest.kind == "rich-context-raw":
        from atelier.data.raw_form import is_packed
        from atelier.data.rich_source import RichSource
        from atelier.data.rich_tars import RichTars

        packed = any(is_packed(entry.path) for entry in manifest.files)
        return RichTars(manifest, cache) if packed else RichSource(manifest, cache)
    if manifest.kind == "sa1b-latents-raw":
        from atelier.data.sa1b_latents_source import SA1BLatentsSource

        return SA1BLatentsSource(manifest, cache)
    from atelier.data.sa1b_source import SA1BSource

    return SA1BSource(manifest, cache)


def verified(folder: InputFolder, name: str) -> Path:
    """A file's local path, its sha256 compared: flipped bits in a JPEG often decode without complaint.

    Raises:
        DataError: it is not what the manifest says.
    """
    path, entry = folder.fetch(name), folder.manifest.file(name)
    found = sha256_file(path)
    if found != entry.sha256:
        raise DataError(
            f"{path}: its sha256 is {found[:16]}…, its manifest says {entry.sha256[:16]}…: changed or damaged",
            "delete the folder; the next run makes it again",
        )
    return path


def stem(name: str) -> str:
    """``"tars/sa_000001.tar.gz"`` → ``"sa_000001"``."""
    return PurePosixPath(name).name.split(".", 1)[0]
