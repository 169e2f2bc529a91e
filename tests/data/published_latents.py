"""Writes SA-1B's published latents and boxes, pickled as their publishers do, from digit canvases."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from atelier.data.raw_example import RawExample
from atelier.data.sa1b import read_tar
from atelier.data.sa1b_latents_source import SA1BLatentsSource
from atelier.storage.digest import sha256_file
from atelier.storage.manifest import FileEntry, Manifest, sorted_entries
from tests.data import raw


def save(path: Path, value: Any) -> None:
    """``np.save`` of an object, as an array without dimensions."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, np.array(value, object), allow_pickle=True)


def write(folder: Path, tars: Path, latents: dict[str, np.ndarray]) -> None:
    """``latents/`` and ``boxes/`` for a folder of tars.

    Args:
        tars: made by ``raw.make``.
        latents: key → [C, h, w].
    """
    for tar in sorted(tars.glob("*.tar")):
        examples = [
            item
            for item in read_tar(tar, raw.captions(tars), tars / "boxes" / f"{tar.stem}.npy")
            if isinstance(item, RawExample)
        ]
        write_latents(folder, tar.stem, examples, [latents[item.key] for item in examples])
        rows = np.load(tars / "boxes" / f"{tar.stem}.npy", allow_pickle=True)  # made by this test's own set-up
        sizes = {int(item.key.removeprefix("sa_")): item.original_size for item in examples}
        write_rows(folder, tar.stem, [(*row, sizes[row[0]]) for row in rows])


def write_latents(folder: Path, name: str, examples: Sequence[RawExample], latents: Sequence[np.ndarray]) -> None:
    """One file of latents."""
    indices = [int(item.key.removeprefix("sa_")) for item in examples]
    save(folder / "latents" / f"{name}.npy", {"indices": indices, "latents": np.stack(latents)})


def write_rows(folder: Path, name: str, rows: Sequence[tuple[Any, ...]]) -> None:
    """One file of boxes: object rows of six columns."""
    table = np.empty((len(rows), len(rows[0])), object)
    for place, row in enumerate(rows):
        for column, value in enumerate(row):
            table[place, column] = value
    path = folder / "boxes" / f"{name}.npy"
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, table, allow_pickle=True)


def source(folder: Path) -> SA1BLatentsSource:
    """The folder as it is now."""
    entries = [
        FileEntry(path.relative_to(folder).as_posix(), path.stat().st_size, sha256_file(path))
        for path in sorted(folder.rglob("*.npy"))
    ]
    return SA1BLatentsSource(Manifest("sa1b-latents-raw", str(folder), sorted_entries(entries)))
