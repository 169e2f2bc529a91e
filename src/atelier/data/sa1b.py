"""Reads SA-1B's raw tars as a stream, joined with captions and boxes; nothing is ever extracted to disk.

The tars may be gzipped or not, whatever their name says. Source of the forms: facts sheet of GLIGEN, section 3.2.
"""

import json
import lzma
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Self

import numpy as np

from atelier.data.captions import CaptionTable, image_id
from atelier.data.geometry import image_size
from atelier.data.quarantine import Quarantined
from atelier.data.sa1b_select import clean
from atelier.data.safe_npy import load_object_array
from atelier.errors import DataError
from atelier.storage.atomic import os_errors

PENDING = 256  # images held back until their json comes; beyond that the JPEG header alone tells the size


@dataclass(frozen=True, eq=False)
class RawExample:
    """One image with everything known about it.

    Attributes:
        key: ``"sa_<id>"``.
        image: the JPEG's bytes.
        original_size: (H, W) in pixels.
        caption: text.
        boxes: float32 [n, 4], xyxy in [0, 1] of the centre crop.
        scores: [n], the detector's confidence.
        phrases: n texts.
        clipped, dropped: boxes that reached over the crop's border, and boxes that were of no use.
    """

    key: str
    image: bytes
    original_size: tuple[int, int]
    caption: str
    boxes: np.ndarray
    scores: np.ndarray
    phrases: tuple[str, ...]
    clipped: int = 0
    dropped: int = 0


class _StrictTarInfo(tarfile.TarInfo):
    """tarfile takes a damaged header, or an end without end mark, for the end of the archive; here it is an error."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"{error} at byte {tarfile_.offset:,}") from error


def read_tar(tar: Path, captions: CaptionTable, boxes: Path | None) -> Iterator[RawExample | Quarantined]:
    """The examples of one tar in the order of its images; what cannot be used comes as ``Quarantined``.

    Args:
        tar: ``sa_000000.tar``.
        captions: asked first; where it has none, the boxes file's own caption is used.
        boxes: ``sa_000000.npy`` as published; None for a source without boxes.

    Raises:
        DataError: the tar is truncated or damaged, or the boxes file is.
    """
    rows = read_boxes(boxes) if boxes is not None else {}
    known = captions.lookup(rows) if rows else {}
    for key, image, record in _images(tar):
        if image is None:
            yield Quarantined(key, record)
            continue
        number = image_id(key)
        if number not in rows and number not in known:
            known |= captions.lookup([number])
        yield _example(key, image, record, known.get(number), rows.get(number))


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


def _example(
    key: str, image: bytes, record: bytes | None, caption: str | None, row: tuple[Any, ...] | None
) -> RawExample | Quarantined:
    try:
        size = image_size(image)
    except ValueError as error:
        return Quarantined(key, str(error))
    if record is not None:
        try:
            stated = json.loads(record)["image"]
            stated_size = (int(stated["height"]), int(stated["width"]))
        except (ValueError, KeyError, TypeError) as error:
            return Quarantined(key, f"its json is not readable: {type(error).__name__}: {error}")
        if stated_size != size:
            return Quarantined(key, f"its json states another size than the image has: {stated_size} and {size}")
    caption = caption if caption is not None else (str(row[1]) if row is not None else None)
    if not caption or not caption.strip():
        return Quarantined(key, "no caption")
    if row is None:
        empty = np.empty((0, 4), np.float32)
        return RawExample(key, image, size, caption, empty, np.empty(0, np.float16), ())
    try:
        detected = np.asarray(row[2], np.float32).reshape(-1, 4)
        scores, phrases = np.asarray(row[3]).reshape(-1), tuple(str(phrase) for phrase in row[4])
        if not len(detected) == len(scores) == len(phrases):
            raise ValueError(f"{len(detected)} boxes, {len(scores)} confidences, {len(phrases)} phrases")
        if scores.dtype.kind != "f":
            scores = scores.astype(np.float16)
    except (ValueError, TypeError) as error:
        return Quarantined(key, f"its boxes are not readable: {error}")
    good = clean(detected)
    return RawExample(
        key,
        image,
        size,
        caption,
        good.xyxy,
        scores[good.kept],
        tuple(phrases[place] for place in good.kept.tolist()),
        good.clipped,
        good.dropped,
    )


def _images(tar: Path) -> Iterator[tuple[str, bytes | None, Any]]:
    """(key, jpeg, json bytes or None) of each image; (name, None, reason) for what is not one."""
    waiting: dict[str, bytes] = {}
    records: dict[str, bytes] = {}
    done: set[str] = set()
    for name, data, problem in _members(tar):
        key, _, kind = PurePosixPath(name).name.partition(".")
        if problem or kind not in ("jpg", "jpeg", "json"):
            yield name, None, problem or "unknown kind of file"
        elif kind == "json":
            if key in waiting:
                done.add(key)
                yield key, waiting.pop(key), data
            elif key not in done:
                records[key] = data
        elif key in done or key in waiting:
            yield key, None, "the image is there twice"
        elif key in records:
            done.add(key)
            yield key, data, records.pop(key)
        else:
            waiting[key] = data
            if len(waiting) > PENDING:
                oldest = next(iter(waiting))
                done.add(oldest)
                yield oldest, waiting.pop(oldest), None
    for key, data in waiting.items():
        yield key, data, None
    for key in records:
        yield key, None, "no image for its json"


def _members(tar: Path) -> Iterator[tuple[str, bytes, str]]:
    """(name, content, problem) of each member, read in one pass."""
    count = 0
    with os_errors(tar), tar.open("rb"):  # a missing tar is told apart from a damaged one
        pass
    try:
        with tarfile.open(tar, "r|*", tarinfo=_StrictTarInfo) as archive:
            for member in archive:
                if member.isdir():
                    continue
                path = PurePosixPath(member.name)
                if path.is_absolute() or ".." in path.parts:
                    yield member.name, b"", "its path leaves the folder"
                    continue
                stream = archive.extractfile(member) if member.isreg() else None
                if stream is None:
                    yield member.name, b"", "not a regular file"
                    continue
                data = stream.read()
                if len(data) != member.size:
                    raise tarfile.ReadError(f"unexpected end of data in {member.name}")
                count += 1
                yield member.name, data, ""
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, OSError, ValueError) as error:
        raise DataError(
            f"{tar}: truncated or damaged after {count:,} files ({error})",
            "download it again; what was made from the tars before it is kept",
        ) from error
