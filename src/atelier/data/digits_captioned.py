"""Writes canvases of digit pairs as CrossFlow's training list has them: ``imgs/*.jpg`` and ``img_text_pair.jsonl``."""

import json
from pathlib import Path

import numpy as np

from atelier.data import digit_pairs, digits
from atelier.data.digits_canvas import jpeg
from atelier.progress import Progress
from atelier.storage.atomic import os_errors, write_bytes

LIST = "img_text_pair.jsonl"


def write_captioned(folder: Path, images: int, seed: int, size: int) -> None:
    """Makes ``images`` canvases with their captions; the same arguments give the same bytes.

    Args:
        size: pixels of the side.

    Raises:
        StorageError: the disk is full or not writable.
    """
    with os_errors(folder):
        (folder / "imgs").mkdir(parents=True, exist_ok=True)
    glyphs, progress, lines = digits.split().canvas, Progress("drawing canvases", images, "images"), []
    for number in range(images):
        canvas = digit_pairs.draw(np.random.default_rng([seed, number]), size, glyphs)
        name = f"imgs/{number:08d}.jpg"
        with os_errors(folder):
            (folder / name).write_bytes(jpeg(canvas.pixels))
        lines.append(json.dumps({"img_path": name, "prompt": canvas.caption}))
        progress.advance()
    write_bytes(folder / LIST, ("\n".join(lines) + "\n").encode())
