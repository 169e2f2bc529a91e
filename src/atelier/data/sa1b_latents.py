"""Reads SA-1B as it is published for IGLIGEN-XL: a file of latents joined with its file of boxes.

``sa_000000.npy`` of ``sa1b-sdxl-latents-{512,1024}`` is an object array without dimensions, in it
``{"indices": [N numbers], "latents": float16 [N, 4, res / 8, res / 8]}``, scaled; that of ``sa-1b_boxes_sdxl`` has
the rows (index, caption, boxes cxcywh of the crop, confidence, phrases, (H, W)). Both are pickles, opened by
``safe_npy``. Source: facts sheet of GLIGEN, section 3.2.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from atelier.data.quarantine import Quarantined
from atelier.data.raw_example import RawExample
from atelier.data.sa1b import joined, read_boxes
from atelier.data.safe_npy import load_object_array
from atelier.errors import DataError

LARGEST = 1_000_000
"""Pixels of a side that a row may state."""


class _File(NamedTuple):
    """A file's indices and latents [N, C, h, w], in one order."""

    indices: list[Any]
    latents: np.ndarray


def read_latents(latents: Path, boxes: Path) -> Iterator[RawExample | Quarantined]:
    """The examples of one file in the order of its latents, one item at the least; what cannot be used comes as
    ``Quarantined``: also an index that one of the two files lacks.

    The file of latents is in memory until the last of its examples was taken. Each example's latent is a copy, so that
    one that waits to be written does not hold its whole file.

    Raises:
        StorageError: a file is missing, or the disk fails.
    """
    rows, problem = dict[int, tuple[Any, ...]](), ""
    try:
        rows = read_boxes(boxes)
    except DataError as error:
        problem = f"boxes file not readable: {error.what}"
    try:
        file = _open(latents)
    except DataError as error:
        yield from (Quarantined(f"sa_{number}", f"latents file not readable: {error.what}") for number in sorted(rows))
        if not rows:
            yield Quarantined(latents.name, f"latents file not readable: {error.what}")
        return
    done: set[int] = set()
    for place, number in enumerate(file.indices):
        if not isinstance(number, int | np.integer) or number < 0:
            yield Quarantined(f"{latents.name}[{place}]", f"unusable index: {number!r}")
            continue
        key, number = f"sa_{number}", int(number)
        if number in done:
            yield Quarantined(key, "the latent is there twice")
            continue
        done.add(number)
        try:
            if problem or number not in rows:
                raise ValueError(problem or "no boxes for its latent")
            row = rows[number]
            bare = RawExample(key, b"", _size(row), "", np.empty((0, 4), np.float32), np.empty(0, np.float16), ())
            example = joined(bare, None, row)
        except ValueError as error:
            yield Quarantined(key, str(error))
            continue
        yield replace(example, latent=file.latents[place].copy())
    for number in sorted(rows.keys() - done):
        yield Quarantined(f"sa_{number}", "no latent for its boxes")
    if not (done or rows or file.indices):
        yield Quarantined(latents.name, "no latents in the file")


def flaw(latent: np.ndarray, shape: tuple[int, ...]) -> str:
    """Why a latent cannot be trained on, or "".

    Args:
        shape: [C, h, w] that the base's autoencoder gives the recipe's resolution.
    """
    if latent.dtype != np.float16:
        return f"wrong dtype: latent is {latent.dtype}, not float16"
    if latent.shape != shape:
        return f"latent of another resolution: {list(latent.shape)}, not {list(shape)}"
    return "" if np.isfinite(latent).all() else "non-finite latent"


def _open(path: Path) -> _File:
    """Raises ``DataError`` for anything but the published form."""
    array = load_object_array(path)
    content = array.item() if array.dtype == object and array.ndim == 0 else None
    if isinstance(content, dict) and content.keys() >= {"indices", "latents"}:
        latents, indices = content["latents"], content["indices"]
        if isinstance(latents, np.ndarray) and not latents.dtype.hasobject and latents.ndim == 4:
            listed = indices.tolist() if isinstance(indices, np.ndarray) else indices
            if isinstance(listed, list | tuple) and len(listed) == len(latents):
                return _File(list(listed), latents)
            raise DataError(
                f"{path}: {len(latents)} latents and not as many indices", "it is damaged; download it again"
            )
    raise DataError(
        f"{path}: holds no dict of indices and latents [N, C, h, w]",
        "use latents in the published form (sa1b-sdxl-latents-512 or -1024)",
    )


def _size(row: tuple[Any, ...]) -> tuple[int, int]:
    """(H, W) of the original image.

    Raises:
        ValueError: the row states none, as those of sa-1b_boxes, or an impossible one.
    """
    try:
        height, width = (int(side) for side in row[5])
    except (IndexError, TypeError, ValueError, OverflowError) as error:
        raise ValueError("no original size in its row") from error
    if not (0 < height <= LARGEST and 0 < width <= LARGEST):
        raise ValueError(f"impossible original size: {height}×{width}")
    return height, width
