"""The grounded annotations that the step ``annotate`` writes: WebDataset shards, one sample an image.

``<key>.json`` holds ``image`` (the file's name), ``original_size`` [H, W], ``captions`` of the whole image, ``tags``,
and for each box ``boxes_px`` (xyxy in pixels of the original), ``scores`` (the detector's), ``labels`` (the tag that it
was found by) and ``phrases`` (its own caption). ``<key>.embeddings.npy``, where there is one, is float16 [boxes, D] of
the phrases.
"""

import json
import os
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from atelier.data import npy_header
from atelier.data.coco import Annotated
from atelier.data.sa1b import checked_text
from atelier.errors import DataError
from atelier.storage.atomic import os_errors

EMBEDDINGS = "embeddings"
RECORD = "json"


class _Span(NamedTuple):
    """Where a member's content lies."""

    tar: int
    offset: int
    size: int


class AnnotatedShards:
    """``coco.Annotations`` of such shards: only where each member lies is kept, the rest is read when asked for.

    Args:
        paths: plain tars.

    Raises:
        DataError: one is no tar or ends early, or two hold the same image.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = list(paths)
        self._spans: dict[str, dict[str, _Span]] = {}
        for number, path in enumerate(self._paths):
            self._scan(number, path)

    def names(self) -> Iterable[str]:
        for key in self._spans:
            yield str(self._record(key)["image"])

    def of(self, image: str) -> Annotated | None:
        key = PurePosixPath(image).stem
        if key not in self._spans:
            return None
        record = self._record(key)
        if record.get("image") != image:
            return None
        try:
            return _annotated(record, self._embeddings(key))
        except (KeyError, TypeError, ValueError, EOFError) as error:
            return Annotated(problem=f"its annotations are not readable: {type(error).__name__}: {error}")

    def _scan(self, number: int, path: Path) -> None:
        with os_errors(path):
            size = path.stat().st_size
        own: set[str] = set()
        try:
            with os_errors(path), tarfile.open(path, "r:") as tar:
                while (member := tar.next()) is not None:
                    key, _, field = member.name.partition(".")
                    if member.offset_data + member.size > size:
                        raise tarfile.ReadError(f"it ends within {member.name}")
                    if key in self._spans and key not in own:
                        raise DataError(f"{path}: image {key} is in another shard too", "give each shard once")
                    own.add(key)
                    self._spans.setdefault(key, {})[field] = _Span(number, member.offset_data, member.size)
                    tar.members.clear()  # type: ignore[attr-defined]  # tarfile keeps every header that it saw
        except tarfile.TarError as error:
            raise DataError(f"{path}: not a readable shard ({error})", "give the tars that annotate wrote") from error
        without = next((key for key in own if RECORD not in self._spans[key]), None)
        if without is not None or not own:
            raise DataError(
                f"{path}: {f'no {without}.json' if own else 'empty'}", "give the tars that annotate wrote, whole"
            )

    def _read(self, span: _Span) -> bytes:
        path = self._paths[span.tar]
        with os_errors(path), path.open("rb") as file:
            return os.pread(file.fileno(), span.size, span.offset)

    def _record(self, key: str) -> dict[str, Any]:
        span = self._spans[key][RECORD]
        try:
            return dict(json.loads(self._read(span)))
        except (ValueError, TypeError) as error:
            raise DataError(
                f"{self._paths[span.tar]}: {key}.json is no JSON object", "give the tars that annotate wrote"
            ) from error

    def _embeddings(self, key: str) -> np.ndarray | None:
        span = self._spans[key].get(f"{EMBEDDINGS}.npy")
        return None if span is None else npy_header.array_of(self._read(span))


def _annotated(record: dict[str, Any], embeddings: np.ndarray | None) -> Annotated:
    phrases = tuple(checked_text(str(phrase), "phrase") for phrase in record["phrases"])
    boxes = np.array(record["boxes_px"], np.float64).reshape(-1, 4)
    height, width = (int(side) for side in record["original_size"])
    if len(boxes) != len(phrases):
        raise ValueError(f"{len(boxes)} boxes and {len(phrases)} phrases")
    if not (np.isfinite(boxes).all() and (boxes[:, 2:] > boxes[:, :2]).all()):
        raise ValueError("a box that is none")
    if embeddings is not None:
        if embeddings.ndim != 2 or len(embeddings) != len(phrases) or not np.isfinite(embeddings).all():
            raise ValueError(f"phrase embeddings of shape {embeddings.shape}, or not finite")
        embeddings = embeddings.astype(np.float16)
    return Annotated(tuple(str(caption) for caption in record["captions"]), boxes, phrases, (height, width), embeddings)
