"""Tars as img2dataset writes them, member by member, for the tests."""

import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from atelier.data import tar_bytes
from atelier.storage.folder import OutputFolder
from atelier.storage.manifest import Manifest


def picture(number: int = 0, size: tuple[int, int] = (32, 32), kind: str = "JPEG") -> bytes:
    """A picture of one colour; size is (W, H)."""
    buffer = io.BytesIO()
    Image.new("RGB", size, (number * 40 % 256, 100, 50)).save(buffer, kind)
    return buffer.getvalue()


def facts(number: int, **changed: Any) -> dict[str, Any]:
    """A sample's json as LAION-400M's are written, with some values replaced; ``...`` leaves one out."""
    key = f"{number:09d}"
    found = {
        "NSFW": "UNLIKELY", "similarity": 0.33, "LICENSE": "?", "caption": f"picture {number}",
        "url": f"https://example.org/{number}.jpg", "key": key, "status": "success", "error_message": None,
        "width": 32, "height": 32, "original_width": 640, "original_height": 640, "exif": "{}", "sha256": "0" * 64,
    }  # fmt: skip
    return {name: value for name, value in {**found, **changed}.items() if value is not ...}


def sample(
    number: int, size: tuple[int, int] = (32, 32), caption: str | None = None, **changed: Any
) -> dict[str, bytes]:
    """A sample's members in the order of img2dataset's writer."""
    key = f"{number:09d}"
    record = facts(number, width=size[0], height=size[1], **changed)
    text = f"picture {number}" if caption is None else caption
    return {
        f"{key}.jpg": picture(number, size),
        f"{key}.json": json.dumps(record, indent=4).encode(),
        f"{key}.txt": text.encode(),
    }


def tar(path: Path, samples: Iterable[Mapping[str, bytes]]) -> Path:
    """A tar of members."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file, tar_bytes.open_for_writing(file) as archive:
        for members in samples:
            for name, data in members.items():
                tar_bytes.add_bytes(archive, name, data)
    return path


def evil(path: Path, names: Iterable[tarfile.TarInfo]) -> None:
    """Appends members of any kind."""
    with tarfile.open(path, "a") as archive:
        for info in names:
            archive.addfile(info, io.BytesIO(b"x" * info.size))


def manifest(folder: Path, kind: str = "img2dataset-raw") -> Manifest:
    """The folder, published in its place."""
    return OutputFolder(str(folder.with_name(folder.name + "-published")), folder).finish(kind, {}, {})


class PlainEncoder:
    """Takes several squares; the text is the caption's length."""

    digest = "sha256:plain"

    def encode(self, images: np.ndarray, examples: list[Any]) -> list[dict[str, np.ndarray]]:
        raise AssertionError("encode_squares is there")

    def encode_squares(self, squares: dict[int, np.ndarray], examples: list[Any]) -> list[Any]:
        from atelier.data.encoder import Encoded

        return [
            Encoded(
                {f"moments_{res}": images[row, ::8, ::8, 0].astype(np.float16) for res, images in squares.items()}
                | {"text": np.full((len(example.caption), 1), row, np.float16)},
                {"captions_cut": 1} if len(example.caption) > 12 else {},
            )
            for row, example in enumerate(examples)
        ]
