"""CropCLIP, CropPick and SAMIoU of pictures of described boxes: is each object in its box what its description says?"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from atelier.data.geometry import decode_whole
from atelier.data.padding import unpadded
from atelier.errors import DataError
from atelier.evaluation.regional_parts import Figures, Parts, write
from atelier.evaluation.regional_yardsticks import METRICS, RESULT, Boxed, RegionalYardsticks
from atelier.progress import Progress
from atelier.sampling.text_drawing import share
from atelier.storage.atomic import os_errors, write_json
from atelier.storage.digest import sha256_bytes, sha256_json

VERSION = 1
"""Of what is measured; another one's figures are not taken over."""
AT_ONCE = 16
"""Pictures whose crops are measured together."""


class _Opened:
    """The networks, opened before anything is measured."""

    def __init__(self, given: RegionalYardsticks, batch: int) -> None:
        from atelier.evaluation.crop_score import CropScore
        from atelier.evaluation.sam_iou import SamIoU

        self.clip = CropScore(given.clip, batch=batch) if given.clip else None
        self.pick = CropScore(given.pick, given.pick_tokenizer or given.clip, batch) if given.pick else None
        self.sam = SamIoU(given.sam, given.legacy) if given.sam else None

    def measured(self, pictures: Sequence[Boxed]) -> list[Figures]:
        """The figures of every box of some pictures."""
        from atelier.evaluation.crops import crop, pixels

        opened = [_open(each) for each in pictures]
        boxes = [pixels(_of_the_rest(each, image), image.size) for each, image in zip(pictures, opened, strict=True)]
        cut = [[crop(image, box) for box in own] for image, own in zip(opened, boxes, strict=True)]
        crops = [each for own in cut for each in own]
        phrases = [phrase for each in pictures for phrase in each.phrases]
        found: list[Figures] = [{"pixels": [each.width * each.height for each in own]} for own in cut]
        for name, score in (("crop_clip", self.clip), ("crop_pick", self.pick)):
            if score is not None:
                values = score(crops, phrases).tolist()
                for row, own in zip(found, boxes, strict=True):
                    row[name], values = values[: len(own)], values[len(own) :]
        if self.sam is not None:
            for row, image, own in zip(found, opened, boxes, strict=True):
                row["sam_iou"] = self.sam(image, own).tolist()
        return found


def evaluate(
    out: Path, pictures: Sequence[Boxed], yardsticks: RegionalYardsticks, batch: int = 64
) -> dict[str, Any] | None:
    """Measures every box, and writes ``evaluation.json`` and ``objects.jsonl`` (a picture a line).

    Under torchrun every process takes its share, and the first writes. What an interrupted evaluation measured of the
    same pictures with the same yardsticks is taken over.

    Args:
        pictures: those without boxes are counted, and have no part in the means.
        batch: crops at once.

    Returns:
        what ``evaluation.json`` holds: metrics are means over a picture's boxes, then over pictures; None but in the
        first process.

    Raises:
        ConfigError: no yardstick, or a model that does not fit. DataError: no box at all, a picture that cannot be
        read, a box outside of it. StorageError: a file cannot be read, or the folder not be written.
    """
    yardsticks.check()
    for each in pictures:
        if len(each.boxes) != len(each.phrases):
            raise DataError(f"{each.path}: {len(each.boxes)} boxes and {len(each.phrases)} phrases", "give one a box")
    if not any(each.boxes for each in pictures):
        raise DataError("no picture has a box", "give layouts with boxes and phrases")
    rank, world = share()
    states = asdict(yardsticks) | {"states": yardsticks.states, "version": VERSION}
    keys, parts = [_key(each, states) for each in pictures], Parts(out)
    known = parts.known()
    mine = [place for place, each in enumerate(pictures) if place % world == rank and each.boxes]
    waiting = [place for place in mine if keys[place] not in known]
    progress = Progress("measuring", len(mine), "pictures", start=len(mine) - len(waiting))
    if waiting:
        opened = _Opened(yardsticks, batch)
        with parts.writing(rank) as file:
            for some in _chunks(waiting, AT_ONCE):
                chosen = [pictures[place] for place in some]
                write(file, chosen, [keys[place] for place in some], opened.measured(chosen))
                progress.advance(len(some))
    if rank:
        return None
    known = parts.wait({key for key, each in zip(keys, pictures, strict=True) if each.boxes})
    parts.finish(pictures, keys, known)
    result = _result(pictures, [known.get(key, {}) for key in keys], yardsticks, states)
    write_json(out / RESULT, result)
    return result


def mean_of_means(values: Sequence[Sequence[float]]) -> float:
    """Over the objects of a picture, then over pictures; those without objects are left out."""
    return float(np.mean([np.mean(own) for own in values if len(own)]))


def _result(
    pictures: Sequence[Boxed],
    rows: Sequence[Figures],
    yardsticks: RegionalYardsticks,
    states: dict[str, Any],
) -> dict[str, Any]:
    there = [name for name in METRICS if name not in yardsticks.skipped]
    return {
        "metrics": {name: round(mean_of_means([row.get(name, ()) for row in rows]), 5) for name in there},
        "skipped": yardsticks.skipped,
        "pictures": sum(bool(each.boxes) for each in pictures),
        "without_boxes": sum(not each.boxes for each in pictures),
        "objects": sum(len(each.boxes) for each in pictures),
        "yardsticks": states,
    }


def _key(each: Boxed, states: dict[str, Any]) -> str:
    with os_errors(each.path):
        data = each.path.read_bytes()
    asked = {"boxes": each.boxes, "phrases": each.phrases, **({"padded": each.padded} if each.padded else {})}
    return sha256_json({"picture": sha256_bytes(data), **asked, **states})[:32]


def _open(each: Boxed) -> Image.Image:
    """The picture without its padding."""
    with os_errors(each.path):
        data = each.path.read_bytes()
    try:
        image = decode_whole(data, 1)
    except ValueError as error:
        raise DataError(f"{each.path}: {error}", "give pictures as JPEG, PNG or WebP") from error
    if each.padded is None:
        return image
    if image.width != image.height:
        raise DataError(
            f"{each.path}: {image.width}×{image.height}, and its layout is of a square with padding",
            "give pictures that were drawn as squares, or make the layouts with another --frame",
        )
    width, height = each.padded
    return unpadded(image, (height, width))


def _of_the_rest(each: Boxed, image: Image.Image) -> list[list[float]]:
    """The boxes as shares of the picture without its padding, which is at its right or lower side."""
    if each.padded is None:
        return each.boxes
    across, down = (max(image.size) / side for side in image.size)
    return [[x0 * across, y0 * down, x1 * across, y1 * down] for x0, y0, x1, y1 in each.boxes]


def _chunks(places: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    return (places[at : at + size] for at in range(0, len(places), size))
