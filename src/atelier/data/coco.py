"""What is known of COCO's images: plain instances and captions JSON, read element by element into compact arrays."""

import sys
from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import numpy as np

from atelier.data import json_stream
from atelier.data.sa1b import checked_text
from atelier.errors import DataError


@dataclass(frozen=True, eq=False)
class Annotated:
    """Everything stated about one image.

    Attributes:
        captions: those of the whole image.
        boxes: float64 [n, 4], xyxy in pixels of the original.
        phrases: n texts.
        size: (H, W) where it is stated.
        embeddings: float16 [n, D] of the phrases, where they are stated.
        dropped: annotations that are of no use (crowds, boxes that are none).
        problem: why the image is of no use, or "".
    """

    captions: tuple[str, ...] = ()
    boxes: np.ndarray = field(default_factory=lambda: np.empty((0, 4)))
    phrases: tuple[str, ...] = ()
    size: tuple[int, int] | None = None
    embeddings: np.ndarray | None = None
    dropped: int = 0
    problem: str = ""


class Annotations(Protocol):
    """Annotations by image."""

    def of(self, image: str) -> Annotated | None:
        """What is stated about an image file (its name without folders); None: nothing."""
        ...

    def names(self) -> Iterable[str]:
        """The image files that they are about."""
        ...


class InstanceFile:
    """COCO's ``instances_*.json``: a box's phrase is its category's name.

    Crowd regions (``iscrowd``) are left out: their box is no object's. 860,000 annotations take 60 MB here.

    Raises:
        DataError: not of COCO's form.
    """

    def __init__(self, path: Path) -> None:
        self._ids: dict[str, int] = {}
        self._sizes: dict[int, tuple[int, int]] = {}
        self._categories: dict[int, str] = {}
        images, boxes, categories = array("q"), array("d"), array("q")
        self._dropped: dict[int, int] = {}
        for member, item in json_stream.elements(path):
            try:
                if member == "images":
                    name, number = PurePosixPath(item["file_name"]).name, int(item["id"])
                    self._ids[name] = number
                    self._sizes[number] = (int(item["height"]), int(item["width"]))
                elif member == "categories":
                    self._categories[int(item["id"])] = checked_text(str(item["name"]), "category")
                elif member == "annotations":
                    number = int(item["image_id"])
                    corners = None if item.get("iscrowd") else _corners(item["bbox"])
                    if corners is None:
                        self._dropped[number] = self._dropped.get(number, 0) + 1
                        continue
                    images.append(number)
                    boxes.extend(corners)
                    categories.append(int(item["category_id"]))
            except (KeyError, TypeError, ValueError, OverflowError) as error:
                raise _no_coco(path, member, item, error) from error
        ids = np.array(images, np.int64)
        order = np.argsort(ids, kind="stable")
        self._images = ids[order]
        self._boxes = np.array(boxes, np.float64).reshape(-1, 4)[order]
        self._of_box = np.array(categories, np.int64)[order]
        unknown = sorted(set(np.unique(self._of_box).tolist()) - self._categories.keys())
        if unknown or not self._ids:
            what = f"annotations of categories that it does not list: {unknown[:5]}" if unknown else "no images"
            raise DataError(f"{path}: {what}", "give an instances file of COCO's form, e.g. instances_train2017.json")

    def names(self) -> Iterable[str]:
        return self._ids

    def of(self, image: str) -> Annotated | None:
        number = self._ids.get(image)
        if number is None:
            return None
        first, end = np.searchsorted(self._images, [number, number + 1]).tolist()
        phrases = tuple(self._categories[category] for category in self._of_box[first:end].tolist())
        return Annotated(
            (), self._boxes[first:end].copy(), phrases, self._sizes[number], dropped=self._dropped.get(number, 0)
        )


OTHER = "other"
"""COCO's category of stuff that is none of the others; it says nothing of what is to be seen."""


class ThingsAndStuff:
    """COCO's ``instances_*.json`` and ``stuff_*.json`` of the same images: an image's things, then its stuff.

    Args:
        things, stuff: of which ``OTHER`` is left out.
    """

    def __init__(self, things: InstanceFile, stuff: InstanceFile) -> None:
        self._things, self._stuff = things, stuff

    def names(self) -> Iterable[str]:
        return self._things.names()

    def of(self, image: str) -> Annotated | None:
        things, stuff = self._things.of(image), self._stuff.of(image)
        if things is None or stuff is None:
            return things
        if things.size != stuff.size:
            return replace(things, problem=f"its things and its stuff state two sizes: {things.size} and {stuff.size}")
        rows = [place for place, phrase in enumerate(stuff.phrases) if phrase != OTHER]
        return replace(
            things,
            boxes=np.concatenate([things.boxes, stuff.boxes[rows]]),
            phrases=(*things.phrases, *(stuff.phrases[row] for row in rows)),
            dropped=things.dropped + stuff.dropped + len(stuff.phrases) - len(rows),
        )


class CaptionFile:
    """COCO's ``captions_*.json``: some five captions an image.

    Raises:
        DataError: not of COCO's form.
    """

    def __init__(self, path: Path) -> None:
        ids: dict[int, str] = {}
        captions: dict[int, list[str]] = {}
        for member, item in json_stream.elements(path):
            try:
                if member == "images":
                    ids[int(item["id"])] = PurePosixPath(item["file_name"]).name
                elif member == "annotations":
                    captions.setdefault(int(item["image_id"]), []).append(str(item["caption"]))
            except (KeyError, TypeError, ValueError, OverflowError) as error:
                raise _no_coco(path, member, item, error) from error
        self._captions = {ids[number]: tuple(own) for number, own in captions.items() if number in ids}
        if not self._captions:
            raise DataError(f"{path}: no captions", "give a captions file of COCO's form, e.g. captions_train2017.json")

    def names(self) -> Iterable[str]:
        """The images that have captions."""
        return self._captions

    def of(self, image: str) -> tuple[str, ...]:
        """An image's captions in the file's order."""
        return self._captions.get(image, ())


def usable(captions: Iterable[str]) -> tuple[str, ...]:
    """The captions without surrounding space, empty ones left out.

    Raises:
        ValueError: one is too long or no Unicode text.
    """
    return tuple(text for text in (checked_text(caption, "caption").strip() for caption in captions) if text)


def warn_of_missing(annotations: Annotations, images: set[str]) -> None:
    """Says on stderr how many annotated images the folder lacks (a part of COCO with the whole's annotations)."""
    missing = [name for name in annotations.names() if name not in images]
    if missing:
        print(
            f"warning: {len(missing):,} annotated images are not in the folder, e.g. {missing[0]}",
            file=sys.stderr,
            flush=True,
        )


def _corners(bbox: Any) -> tuple[float, float, float, float] | None:
    """xyxy of COCO's x, y, width, height; None where that is no box."""
    x, y, width, height = (float(value) for value in bbox)
    corners = (x, y, x + width, y + height)
    return corners if np.isfinite(corners).all() and width > 0 and height > 0 else None


def _no_coco(path: Path, member: str, item: Any, error: Exception) -> DataError:
    return DataError(
        f"{path}: an element of {member!r} is not of COCO's form ({type(error).__name__}: {error}): {str(item)[:200]}",
        "give instances and captions files as COCO publishes them",
    )
