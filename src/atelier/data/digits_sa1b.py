"""Writes digit canvases in the very form in which SA-1B and its captions and boxes are published.

``sa_000000.tar`` … with ``sa_<id>.jpg`` and ``sa_<id>.json``; ``captions.parquet`` (``key``, ``caption``);
``boxes/sa_000000.npy`` … (object arrays of (index, caption, boxes, confidence, phrases)).
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from atelier.data import digits, rle, tar_bytes
from atelier.data.digits_canvas import INK, SHORT_SIDE, Canvas, canvases, jpeg
from atelier.progress import Progress
from atelier.storage.atomic import os_errors, replace_file


def write_sa1b(folder: Path, images: int, tars: int, seed: int, first_id: int = 1, size: int = SHORT_SIDE) -> None:
    """Makes ``images`` canvases in ``tars`` tars, with captions and boxes.

    The same arguments give the same bytes. Tars, boxes and the parquet appear whole or not at all; those that
    are there already are made again with the same bytes.

    Args:
        folder: where ``sa_*.tar``, ``captions.parquet`` and ``boxes/`` go.
        seed: everything random comes from (seed, image id).
        first_id: id of the first image.
        size: pixels of the canvases' short side.

    Raises:
        StorageError: the disk is full or not writable.
    """
    import pyarrow
    import pyarrow.parquet

    glyphs = digits.split().canvas
    progress = Progress("drawing canvases", images, "images")
    rows: list[tuple[str, str]] = []
    with os_errors(folder):
        (folder / "boxes").mkdir(parents=True, exist_ok=True)
    for tar, ids in enumerate(np.array_split(np.arange(first_id, first_id + images), tars)):
        stem = f"sa_{tar:06d}"
        drawn = []
        with (
            replace_file(folder / f"{stem}.tar") as temporary,
            temporary.open("wb") as file,
            tar_bytes.open_for_writing(file) as archive,
        ):
            for canvas in canvases(ids.tolist(), seed, glyphs, size):
                name = f"sa_{canvas.image_id}"
                tar_bytes.add_bytes(archive, f"{name}.jpg", jpeg(canvas.pixels))
                tar_bytes.add_bytes(archive, f"{name}.json", json.dumps(_annotations(canvas)).encode())
                rows.append((name, digits.caption(canvas.layout)))
                drawn.append(canvas)
                progress.advance()
        with replace_file(folder / "boxes" / f"{stem}.npy") as temporary, temporary.open("wb") as file:
            # The published form is an object array, which numpy writes as a pickle; it is read back through
            # safe_npy, never by numpy's own unpickling.
            np.save(file, _box_rows(drawn), allow_pickle=True)
    table = pyarrow.table({"key": [key for key, _ in rows], "caption": [caption for _, caption in rows]})
    with replace_file(folder / "captions.parquet") as temporary:
        pyarrow.parquet.write_table(table, temporary, row_group_size=4096)


def _annotations(canvas: Canvas) -> dict[str, Any]:
    """SA-1B's json: the image and one mask (the ink) per digit."""
    height, width = canvas.pixels.shape[:2]
    ink = canvas.pixels.min(axis=2) > INK
    annotations = []
    for position, (box, _) in enumerate(canvas.layout):
        left, top, right, bottom = digits.pixel_box(box, (height, width))
        mask = np.zeros((height, width), bool)
        mask[top:bottom, left:right] = ink[top:bottom, left:right]
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        y, x = np.argwhere(mask)[mask.sum() // 2].tolist()
        annotations.append(
            {
                "id": canvas.image_id * 10 + position,
                "area": int(mask.sum()),
                "bbox": [
                    float(columns[0]),
                    float(rows[0]),
                    float(columns[-1] - columns[0] + 1),
                    float(rows[-1] - rows[0] + 1),
                ],
                "predicted_iou": 1.0,
                "stability_score": 1.0,
                "point_coords": [[float(x), float(y)]],
                "crop_box": [0.0, 0.0, float(width), float(height)],
                "segmentation": rle.encode(mask),
            }
        )
    image = {"image_id": canvas.image_id, "width": width, "height": height, "file_name": f"sa_{canvas.image_id}.jpg"}
    return {"image": image, "annotations": annotations}


def _box_rows(canvases: list[Canvas]) -> np.ndarray:
    """Object array [N, 5], sorted by index; boxes cxcywh of the centre crop in fp16, as published."""
    rows = np.empty((len(canvases), 5), object)
    for row, canvas in enumerate(canvases):
        xyxy = np.array([box for box, _ in canvas.layout])
        cxcywh = np.concatenate([(xyxy[:, :2] + xyxy[:, 2:]) / 2, xyxy[:, 2:] - xyxy[:, :2]], axis=1)
        phrases = [digits.phrase(label) for _, label in canvas.layout]
        rows[row, 0], rows[row, 1] = canvas.image_id, digits.caption(canvas.layout)
        rows[row, 2], rows[row, 3] = cxcywh.astype(np.float16), canvas.confidence
        rows[row, 4] = phrases
    return rows
