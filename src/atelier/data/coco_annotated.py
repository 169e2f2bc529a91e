"""The grounded annotations that the step ``annotate`` writes: WebDataset shards, one sample an image.

``<key>.json`` holds ``image`` (the file's name), ``original_size`` [H, W], ``captions`` of the whole image, ``tags``,
and for each box ``boxes_px`` (xyxy in pixels of the original), ``scores`` (the detector's), ``labels`` (the tag that it
was found by) and ``phrases`` (its own caption). ``<key>.embeddings.npy``, where there is one, is float16 [boxes, D] of
the phrases.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from atelier.data import npy_header
from atelier.data.coco import Annotated
from atelier.data.sa1b import checked_text
from atelier.data.tar_members import TarMembers
from atelier.errors import DataError

EMBEDDINGS = "embeddings"
RECORD = "json"
FIX = "give the tars that annotate wrote"


class AnnotatedShards:
    """``coco.Annotations`` of such shards: only where each member lies is kept, the rest is read when asked for.

    Args:
        paths: plain tars.

    Raises:
        DataError: one is no tar or ends early, or two hold the same image.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._members = TarMembers(paths, RECORD, FIX)

    def names(self) -> Iterable[str]:
        for key in self._members:
            yield str(self._record(key)["image"])

    def of(self, image: str) -> Annotated | None:
        key = PurePosixPath(image).stem
        if key not in self._members:
            return None
        record = self._record(key)
        if record.get("image") != image:
            return None
        try:
            return _annotated(record, self._embeddings(key))
        except (KeyError, TypeError, ValueError, EOFError) as error:
            return Annotated(problem=f"its annotations are not readable: {type(error).__name__}: {error}")

    def _record(self, key: str) -> dict[str, Any]:
        try:
            return dict(json.loads(self._members.read(key, RECORD) or b""))
        except (ValueError, TypeError) as error:
            raise DataError(f"{self._members.place(key)}: {key}.json is no JSON object", FIX) from error

    def _embeddings(self, key: str) -> np.ndarray | None:
        data = self._members.read(key, f"{EMBEDDINGS}.npy")
        return None if data is None else npy_header.array_of(data)


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
