"""Small raw data sets for the tests of this folder, made by the code that makes the laptop run's."""

import io
import tarfile
from pathlib import Path

from atelier.data.captions import CaptionTable
from atelier.data.digits_sa1b import write_sa1b
from atelier.data.preprocess import RawTar


def make(folder: Path, images: int = 24, tars: int = 1, seed: int = 0) -> Path:
    """Digit canvases in SA-1B's form."""
    write_sa1b(folder, images, tars, seed)
    return folder


def captions(folder: Path) -> CaptionTable:
    """The folder's captions."""
    return CaptionTable([folder / "captions.parquet"])


def raw_tars(folder: Path) -> list[RawTar]:
    """The folder's tars with their boxes."""
    return [RawTar(tar, folder / "boxes" / f"{tar.stem}.npy") for tar in sorted(folder.glob("sa_*.tar"))]


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
