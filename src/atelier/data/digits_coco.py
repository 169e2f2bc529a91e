"""Writes digit canvases in the very form in which COCO is published.

``train2017/<12 digits>.jpg``, ``annotations/instances_train2017.json`` (a category is a digit's phrase) and
``annotations/captions_train2017.json`` (three captions an image, its digits in different orders).
"""

from pathlib import Path
from typing import Any

import numpy as np

from atelier.data import digits
from atelier.data.digits_canvas import SHORT_SIDE, Canvas, canvases, jpeg
from atelier.progress import Progress
from atelier.storage.atomic import os_errors, write_bytes
from atelier.storage.digest import canonical_json

CAPTIONS = 3
INFO = {"description": "UCI handwritten digits on canvases", "version": "1.0"}
CATEGORIES = [
    {"id": label + 1, "name": digits.phrase(label), "supercategory": "digit"} for label in range(len(digits.WORDS))
]


def write_coco(folder: Path, images: int, seed: int, first_id: int = 1, size: int = SHORT_SIDE) -> None:
    """Makes ``images`` canvases with their annotations; the same arguments give the same bytes.

    Args:
        folder: where ``train2017/`` and ``annotations/`` go.
        seed: everything random comes from (seed, image id).
        first_id: id of the first image.
        size: pixels of the canvases' short side.

    Raises:
        StorageError: the disk is full or not writable.
    """
    with os_errors(folder):
        for name in ("train2017", "annotations"):
            (folder / name).mkdir(parents=True, exist_ok=True)
    glyphs, progress = digits.split().canvas, Progress("drawing canvases", images, "images")
    listed: list[dict[str, Any]] = []
    instances: list[dict[str, Any]] = []
    captions: list[dict[str, Any]] = []
    for canvas in canvases(range(first_id, first_id + images), seed, glyphs, size):
        height, width = canvas.pixels.shape[:2]
        name = f"{canvas.image_id:012d}.jpg"
        with os_errors(folder):
            (folder / "train2017" / name).write_bytes(jpeg(canvas.pixels))
        listed.append({"id": canvas.image_id, "file_name": name, "height": height, "width": width})
        instances += _instances(canvas)
        captions += _captions(canvas, seed)
        progress.advance()
    common = {"info": INFO, "images": listed}
    for kind, annotations in (("instances", instances), ("captions", captions)):
        content = common | {"annotations": annotations} | ({"categories": CATEGORIES} if kind == "instances" else {})
        write_bytes(folder / "annotations" / f"{kind}_train2017.json", canonical_json(content))


def _instances(canvas: Canvas) -> list[dict[str, Any]]:
    made = []
    for place, (box, label) in enumerate(canvas.layout):
        left, top, right, bottom = digits.pixel_box(box, canvas.pixels.shape[:2])
        corners = [[left, top], [right, top], [right, bottom], [left, bottom]]
        made.append(
            {
                "id": canvas.image_id * 10 + place,
                "image_id": canvas.image_id,
                "category_id": label + 1,
                "bbox": [left, top, right - left, bottom - top],
                "area": (right - left) * (bottom - top),
                "iscrowd": 0,
                "segmentation": [[value for corner in corners for value in corner]],
            }
        )
    return made


def _captions(canvas: Canvas, seed: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng([seed, canvas.image_id, 1])
    orders = [np.arange(len(canvas.layout)), *(rng.permutation(len(canvas.layout)) for _ in range(CAPTIONS - 1))]
    return [
        {
            "id": canvas.image_id * 10 + number,
            "image_id": canvas.image_id,
            "caption": digits.caption([canvas.layout[place] for place in order.tolist()]),
        }
        for number, order in enumerate(orders)
    ]
