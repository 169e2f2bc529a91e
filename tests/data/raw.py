"""Small raw data sets for the tests of this folder, made by the code that makes the laptop run's."""

import io
import tarfile
from pathlib import Path

from atelier.data.captions import CaptionTable
from atelier.data.digits_sa1b import write_sa1b
from atelier.data.sa1b_source import SA1BSource
from atelier.storage.digest import sha256_file
from atelier.storage.manifest import FileEntry, Manifest, sorted_entries


def make(folder: Path, images: int = 24, tars: int = 1, seed: int = 0) -> Path:
    """Digit canvases in SA-1B's form."""
    write_sa1b(folder, images, tars, seed)
    return folder


def captions(folder: Path) -> CaptionTable:
    """The folder's captions."""
    return CaptionTable([folder / "captions.parquet"])


def source(folder: Path) -> SA1BSource:
    """The folder as it is now."""
    files = [path for path in sorted(folder.rglob("*")) if path.suffix in (".tar", ".gz", ".npy", ".parquet")]
    entries = [FileEntry(path.relative_to(folder).as_posix(), path.stat().st_size, sha256_file(path)) for path in files]
    return SA1BSource(Manifest("sa1b-raw", str(folder), sorted_entries(entries)))


def members(tar: Path) -> dict[str, bytes]:
    """Content by name, in order."""
    with tarfile.open(tar) as archive:
        return {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]


def rewrite(tar: Path, content: dict[str, bytes], mode: str = "w") -> None:
    """Replaces a tar's members."""
    with tarfile.open(tar, mode) as archive:  # type: ignore[call-overload]
        for name, data in content.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
