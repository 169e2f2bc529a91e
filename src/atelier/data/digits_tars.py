"""Writes canvases of digit pairs as img2dataset writes LAION-400M: tars of ``<key>.jpg``, ``.json`` and ``.txt``.

Among them are a few that the recipe's filters must drop, one of each kind in turn, so that a twin's run shows what they
do: unsafe, dissimilar, without its score, too long, without a caption.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from atelier.data import digit_pairs, digits, tar_bytes
from atelier.data.digits_canvas import jpeg
from atelier.progress import Progress
from atelier.storage.atomic import os_errors, replace_file, write_bytes

SAMPLES_PER_TAR = 1000
EVERY = 25
"""One canvas in so many is one to be dropped."""

FAULTS: tuple[dict[str, Any], ...] = (
    {"NSFW": "NSFW"},
    {"similarity": 0.21},
    {"similarity": float("nan")},
    {"shape": 3},
    {"caption": ""},
)


def write_tars(folder: Path, images: int, seed: int, size: int) -> dict[str, int]:
    """Makes ``images`` canvases that are to be kept, and beside them some that are not.

    The same arguments give the same bytes. Beside each tar lies the ``_stats.json`` that img2dataset writes.

    Args:
        size: pixels of the side.

    Returns:
        How many tars, and images in all.

    Raises:
        StorageError: the disk is full or not writable.
    """
    with os_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    total = images + images // EVERY
    glyphs, progress = digits.split().canvas, Progress("drawing canvases", total, "images")
    tars = -(-total // SAMPLES_PER_TAR)
    for tar in range(tars):
        numbers = range(tar * SAMPLES_PER_TAR, min(total, (tar + 1) * SAMPLES_PER_TAR))
        with (
            replace_file(folder / f"{tar:05d}.tar") as temporary,
            temporary.open("wb") as file,
            tar_bytes.open_for_writing(file) as archive,
        ):
            for number in numbers:
                fault = FAULTS[number // (EVERY + 1) % len(FAULTS)] if number % (EVERY + 1) == EVERY else {}
                for name, data in _members(number, seed, size, glyphs, fault).items():
                    tar_bytes.add_bytes(archive, name, data)
                progress.advance()
        counted = {"count": len(numbers), "successes": len(numbers), "failed_to_download": 0, "failed_to_resize": 0}
        write_bytes(folder / f"{tar:05d}_stats.json", json.dumps(counted, indent=4).encode())
    return {"tars": tars, "images": total}


def _members(number: int, seed: int, size: int, glyphs: digits.Glyphs, fault: dict[str, Any]) -> dict[str, bytes]:
    canvas = digit_pairs.draw(np.random.default_rng([seed, number]), size, glyphs)
    picture = jpeg(np.tile(canvas.pixels, (1, fault.get("shape", 1), 1)))
    caption = fault.get("caption", canvas.caption)
    key, height, width = f"{number:09d}", size, size * fault.get("shape", 1)
    record = {
        "NSFW": fault.get("NSFW", "UNLIKELY"),
        "similarity": fault.get("similarity", 0.33),
        "LICENSE": "?",
        "caption": caption,
        "url": f"https://example.org/{key}.jpg",
        "key": key,
        "status": "success",
        "error_message": None,
        "width": width,
        "height": height,
        "original_width": width,
        "original_height": height,
        "exif": "{}",
        "sha256": hashlib.sha256(picture).hexdigest(),
    }
    return {f"{key}.jpg": picture, f"{key}.json": json.dumps(record, indent=4).encode(), f"{key}.txt": caption.encode()}
