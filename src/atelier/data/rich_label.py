"""A ``label_<id>.json`` of the rich-context labelling, read and made: a picture's caption, every object's description.

The form is that of InstanceDiffusion's labelling: ``{"caption": …, "annos": [{"bbox": [x, y, w, h], "caption": …,
"category_name": …, "mask": {"size": [H, W], …}, …}, …]}``.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from atelier.data import rle
from atelier.data.sa1b import checked_text

PREFIX = "label_"
"""Of a label's name, before its picture's."""
OBJECTS = 1000
"""Between the numbers of two pictures' first objects."""


@dataclass(frozen=True, eq=False)
class RichLabel:
    """What a label states.

    Attributes:
        caption: of the whole picture; "" where it states none.
        boxes: float64 [n, 4], xyxy in pixels of the picture that was labelled.
        descriptions: n texts: what was said of each object, or its category where nothing was.
        categories: n texts, "" where none is stated.
        frame: (H, W) of the picture that was labelled, which the masks state; None: no mask does.
        dropped: objects of no use (a box that is none, or no word about it).
    """

    caption: str
    boxes: np.ndarray
    descriptions: tuple[str, ...]
    categories: tuple[str, ...]
    frame: tuple[int, int] | None
    dropped: int = 0


def read_label(data: bytes) -> RichLabel:
    """Parses a label.

    Raises:
        ValueError: it is no label, or its masks are of different pictures.
    """
    try:
        content = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise ValueError(f"its label is no JSON: {error}") from error
    annotations = content.get("annos") if isinstance(content, dict) else None
    if not isinstance(annotations, list) or not all(isinstance(each, dict) for each in annotations):
        raise ValueError("its label lists no objects (annos)")
    boxes: list[tuple[float, ...]] = []
    descriptions: list[str] = []
    categories: list[str] = []
    for each in annotations:
        corners, category = _corners(each.get("bbox")), _text(each, "category_name")
        description = _text(each, "caption") or category
        if corners is None or not description:
            continue
        boxes.append(corners)
        descriptions.append(description)
        categories.append(category)
    return RichLabel(
        _text(content, "caption"),
        np.array(boxes, np.float64).reshape(-1, 4),
        tuple(descriptions),
        tuple(categories),
        _frame(annotations),
        len(annotations) - len(boxes),
    )


def _text(content: Mapping[str, Any], name: str) -> str:
    """A member's text without surrounding space; "" where there is none.

    Raises:
        ValueError: it is something else, too long, or no Unicode text.
    """
    found = content.get(name)
    if found is not None and not isinstance(found, str):
        raise ValueError(f"its label's {name} is no text")
    return checked_text(found or "", name).strip()


def _corners(bbox: Any) -> tuple[float, float, float, float] | None:
    """xyxy of x, y, width, height; None where that is no box."""
    try:
        x, y, width, height = (float(value) for value in bbox)
    except (TypeError, ValueError, OverflowError):
        return None
    corners = (x, y, x + width, y + height)
    return corners if all(map(math.isfinite, corners)) and width > 0 and height > 0 else None


def _frame(annotations: list[dict[str, Any]]) -> tuple[int, int] | None:
    """The size that the masks share.

    Raises:
        ValueError: they are of several sizes.
    """
    masks = [each["mask"] for each in annotations if isinstance(each.get("mask"), dict)]
    sizes = {tuple(mask["size"]) for mask in masks if _is_size(mask.get("size"))}
    if len(sizes) > 1:
        raise ValueError(f"its label's masks are of several sizes: {sorted(sizes)[:3]}")
    return next(iter(sizes), None)


def _is_size(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(side, int) and side > 0 for side in value)


def make_label(
    file_name: str, number: int, caption: str, objects: Sequence[Mapping[str, Any]], dataset: str
) -> dict[str, Any]:
    """A label as the published generation writes it.

    Args:
        file_name: the picture's.
        number: of the picture in its data set.
        objects: what ``make_object`` made.
    """
    return {
        "caption": caption,
        "file_name": file_name,
        "is_det": 1,
        "dataset_name": dataset,
        "data_id": number,
        "annos": [
            {**each, "mask_value": place + 1, "id": number * OBJECTS + place, "data_id": number}
            for place, each in enumerate(objects)
        ],
    }


def make_object(
    box: tuple[int, int, int, int],
    category: str,
    category_id: int,
    description: str,
    score: float = 1.0,
    mask: np.ndarray | None = None,
) -> dict[str, Any]:
    """An object of a label; ``make_label`` numbers it.

    Args:
        box: xyxy in whole pixels of the picture.
        mask: bool [H, W] of the picture; None: the object has none.
    """
    left, top, right, bottom = box
    area = (right - left) * (bottom - top) if mask is None else int(mask.sum())
    return {
        "bbox": [left, top, right - left, bottom - top],
        **({} if mask is None else {"mask": rle.encode(mask)}),
        "pred_score": score,
        "category_name": category,
        "caption": description,
        "area": area,
        "is_stuff": 0,
        "is_thing": 1,
        "isfake": 0,
        "isreflected": 0,
        "category_id": category_id,
        "text_embedding_before": "",
        "blip_clip_embeddings": "",
    }
