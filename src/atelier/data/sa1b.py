"""Reads SA-1B's raw tars as a stream, joined with captions and boxes; nothing is ever extracted to disk.

The tars may be gzipped or not, whatever their name says. Source of the forms: facts sheet of GLIGEN, section 3.2.
"""

import itertools
import json
import re
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from atelier.data.captions import CaptionTable, image_id
from atelier.data.geometry import image_size
from atelier.data.quarantine import Quarantined
from atelier.data.raw_example import RawExample
from atelier.data.sa1b_select import clean
from atelier.data.safe_npy import load_object_array
from atelier.data.tar_stream import TarDamaged, members
from atelier.errors import DataError

PENDING = 256  # images held back until their json comes; beyond that the JPEG header alone tells the size
MAX_TEXT = 20_000
"""Characters of a caption or phrase: far above any that a text encoder reads to the end."""

_LOOKUP = 256  # images whose captions are looked up together, where no boxes file names them before
_NO_BOXES = (np.empty((0, 4), np.float32), np.empty(0, np.float16), ())
_HEADER = 64 * 2**10  # bytes of a JPEG in which its size is nearly always found
KEY = re.compile(r"[0-9A-Za-z_-]{1,64}")  # short enough for ustar, and no dot: a shard's member name divides there


class _Image(NamedTuple):
    """An image's bytes and those of its json, where it has one."""

    key: str
    data: bytes
    record: bytes | None


def read_tar(tar: Path, captions: CaptionTable, boxes: Path | None) -> Iterator[RawExample | Quarantined]:
    """The examples of one tar in the order of its images, one item at the least; what cannot be used comes as
    ``Quarantined``.

    Of a damaged tar the examples before the damage are used. It is quarantined under its own name, and with it every
    image that its boxes name and that was not reached, so that the loss counts in full. Without readable boxes all
    of the tar's images are quarantined.

    Args:
        tar: ``sa_000000.tar``.
        captions: asked first; where it has none, the boxes file's own caption is used.
        boxes: ``sa_000000.npy`` as published; None for a source without boxes.

    Raises:
        StorageError: a file is missing, or the disk fails.
    """
    try:
        rows, problem = (read_boxes(boxes) if boxes is not None else {}), ""
    except DataError as error:
        rows, problem = {}, error.what
    known = captions.lookup(rows) if rows else {}
    images, empty = _images(tar, rows), True
    while group := list(itertools.islice(images, 1 if rows else _LOOKUP)):
        empty = False
        ids = {image_id(item.key) for item in group if isinstance(item, _Image)}
        if unknown := ids - known.keys() - rows.keys():
            known |= captions.lookup(unknown)
        for item in group:
            if isinstance(item, Quarantined):
                yield item
            elif problem:
                yield Quarantined(item.key, f"boxes file not readable: {problem}")
            else:
                number = image_id(item.key)
                yield _example(item, known.get(number), rows.get(number))
        if not rows:
            known = {}
    if empty:
        yield Quarantined(tar.name, "no files in the tar")


def image_sizes(tar: Path) -> Iterator[tuple[str, tuple[int, int]] | Quarantined]:
    """(key, (H, W) in pixels) of each image, from its header: nothing is decoded, and of a plain tar only the heads
    of its members are read.

    Raises:
        StorageError: the tar is missing, or the disk fails.
    """
    whole: dict[str, bytes] = {}
    try:
        for member in members(tar, head=_HEADER):
            key, kind = _key_and_kind(member.name)
            if kind not in ("jpg", "jpeg"):
                continue
            try:
                if member.problem:
                    raise ValueError(member.problem)
                yield key, image_size(member.data)
            except ValueError as error:
                if len(member.data) == _HEADER:
                    whole[key] = b""  # long metadata before the size
                else:
                    yield Quarantined(key, str(error))
        for member in members(tar) if whole else ():
            key, _ = _key_and_kind(member.name)
            if key in whole and not member.name.endswith("json"):
                try:
                    yield key, image_size(member.data)
                except ValueError as error:
                    yield Quarantined(key, str(error))
    except TarDamaged as error:
        yield Quarantined(tar.name, f"damaged tar: {error}")


def read_boxes(path: Path) -> dict[int, tuple[Any, ...]]:
    """Rows of a boxes file by image id: (index, caption, boxes, confidence, phrases, …).

    Raises:
        DataError: not of the published form.
    """
    array = load_object_array(path)
    if array.dtype != object or array.ndim != 2 or array.shape[1] < 5:
        raise DataError(
            f"{path}: {array.dtype} array of shape {array.shape}, not object rows of five columns",
            "use boxes in the published form (index, caption, boxes, confidence, phrases)",
        )
    return {int(row[0]): tuple(row) for row in array if isinstance(row[0], int | np.integer)}


def _example(image: _Image, caption: str | None, row: tuple[Any, ...] | None) -> RawExample | Quarantined:
    try:
        size = image_size(image.data)
        if image.record is not None:
            stated = _stated_size(image.record)
            if stated != size:
                raise ValueError(f"its json states another size than the image has: {stated} and {size}")
        return joined(RawExample(image.key, image.data, size, "", *_NO_BOXES), caption, row)
    except ValueError as error:
        return Quarantined(image.key, str(error))


def joined(example: RawExample, caption: str | None, row: tuple[Any, ...] | None) -> RawExample:
    """The example with its caption and the usable ones of its boxes.

    Args:
        caption: None takes the row's own.
        row: of ``read_boxes``; None: an image without boxes.

    Raises:
        ValueError: no caption, or boxes of which none can be used.
    """
    caption = checked_text(caption if caption is not None else (str(row[1]) if row is not None else ""), "caption")
    if not caption.strip():
        raise ValueError("no caption")
    if row is None:
        return replace(example, caption=caption)
    detected, scores, phrases = _detections(row)
    good = clean(detected)
    if len(detected) and not len(good.xyxy):
        raise ValueError(f"no box inside the image: {len(detected)} outside or empty")
    return replace(
        example,
        caption=caption,
        boxes=good.xyxy,
        scores=scores[good.kept],
        phrases=tuple(phrases[place] for place in good.kept.tolist()),
        clipped=good.clipped,
        dropped=good.dropped,
    )


def _stated_size(record: bytes) -> tuple[int, int]:
    try:
        stated = json.loads(record)["image"]
        return int(stated["height"]), int(stated["width"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise ValueError(f"its json is not readable: {type(error).__name__}: {error}") from error


def _detections(row: tuple[Any, ...]) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Boxes float32 [n, 4], confidences [n] and n phrases of a row.

    Raises:
        ValueError: of another form, or not finite.
    """
    try:
        with np.errstate(over="ignore"):
            detected = np.asarray(row[2], np.float32).reshape(-1, 4)
            scores = np.asarray(row[3]).reshape(-1)
            if scores.dtype.kind != "f":
                scores = scores.astype(np.float16)
        phrases = tuple(checked_text(str(phrase), "phrase") for phrase in row[4])
        if not len(detected) == len(scores) == len(phrases):
            raise ValueError(f"{len(detected)} boxes, {len(scores)} confidences, {len(phrases)} phrases")
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"its boxes are not readable: {error}") from error
    if not (np.isfinite(detected).all() and np.isfinite(scores).all()):
        raise ValueError("non-finite boxes")
    return detected, scores, phrases


def checked_text(text: str, what: str) -> str:
    """A caption or phrase, found to be of bounded length and writable as UTF-8.

    Raises:
        ValueError: says what is wrong.
    """
    if len(text) > MAX_TEXT:
        raise ValueError(f"{what} too long: {len(text):,} characters, at most {MAX_TEXT:,}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{what} is not Unicode text") from None
    return text


def _key_and_kind(name: str) -> tuple[str, str]:
    """``"./sa_1.jpg"`` → ``("sa_1", "jpg")``."""
    key, _, kind = PurePosixPath(name).name.partition(".")
    return key, kind


def _images(tar: Path, expected: Collection[int]) -> Iterator[_Image | Quarantined]:
    """Each image once its json is there (at the latest when ``PENDING`` others wait, or at the end)."""
    waiting: dict[str, bytes] = {}
    records: dict[str, bytes] = {}
    done: set[str] = set()
    overflowed, described, damage = False, False, ""
    try:
        for name, data, problem in members(tar):
            key, kind = _key_and_kind(name)
            if problem or kind not in ("jpg", "jpeg", "json"):
                yield Quarantined(name, problem or "unknown kind of file")
            elif not KEY.fullmatch(key):
                yield Quarantined(name, "unusable name: not 1 to 64 letters, digits, _ and -")
            elif kind == "json":
                described = True
                if key in waiting:
                    done.add(key)
                    yield _Image(key, waiting.pop(key), data)
                elif key not in done:
                    records[key] = data
            elif key in done or key in waiting:
                yield Quarantined(key, "the image is there twice")
            elif key in records:
                done.add(key)
                yield _Image(key, data, records.pop(key))
            else:
                waiting[key] = data
                if len(waiting) > PENDING:
                    overflowed = True
                    oldest = next(iter(waiting))
                    done.add(oldest)
                    yield _Image(oldest, waiting.pop(oldest), None)
    except TarDamaged as error:
        damage = str(error)
    # A tar without any json is a form of its own; in one that has them an image lacks its partner. Where images come
    # first and their json long after, the two cannot be told apart in one pass.
    for key, data in waiting.items():
        yield Quarantined(key, "no json for its image") if described and not overflowed else _Image(key, data, None)
    for key in records:
        yield Quarantined(key, "no image for its json")
    if damage:
        yield Quarantined(tar.name, f"damaged tar: {damage}")
        reached = {image_id(key) for key in (*done, *waiting, *records)}
        for number in sorted(set(expected) - reached):
            yield Quarantined(f"sa_{number}", f"lost in a damaged tar: {tar.name}")
