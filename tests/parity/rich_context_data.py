"""Rich-context data: a labelled record to the picture, boxes and texts that upstream's evaluation sees (``data``).

What upstream does to numbers on the way is done here too: boxes are cut to whole pixels, after the labels' scale and
again in the square. Its ``_0``, ``_1`` behind repeated descriptions are not ours: they are compared without.
"""

import io
import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from atelier.data.coco import InstanceFile, ThingsAndStuff
from atelier.data.letterbox import content
from atelier.data.padding import padded_boxes, padded_square, padding
from atelier.data.raw_example import RawExample
from atelier.data.raw_source import open_source
from atelier.data.rich_examples import frame_scale
from atelier.data.rich_label import read_label
from atelier.data.settings import Settings
from atelier.data.squares import decode_squares
from atelier.storage.folder import OutputFolder
from tests.parity.case import Case, Comparison

EXACT = (0.0, 0.0)


def data(case: Case) -> Comparison:
    """COCO with labels of another resolution, CC3M within a border, COCO's things and stuff."""
    ours: dict[str, Any] = {}
    expected: dict[str, Any] = {}
    size = case.spec["image_size"]
    for name, read in (("rccoco", _rccoco), ("cc3m", _cc3m), ("cocostuff", _cocostuff)):
        spec = case.spec["cases"][name]
        found = read(spec, case.inputs[f"{name}.image"].numpy().astype(np.uint8), size)
        ours |= {f"{name}.{field}": value for field, value in found.items()}
        for field in ("image", "bboxes", "masks"):
            if f"{name}.{field}" in case.outputs:
                expected[f"{name}.{field}"] = case.outputs[f"{name}.{field}"]
        for field in ("categories", "caption", "pad_size", "pad_side"):
            if field in spec:
                expected[f"{name}.{field}"] = spec[field]
        expected[f"{name}.labels"] = [re.sub(r"_\d+$", "", label) for label in spec["labels"]]
    return Comparison(ours, expected, EXACT)


def _rccoco(spec: dict[str, Any], pixels: np.ndarray, size: int) -> dict[str, Any]:
    label, shape = read_label(json.dumps(spec["label_json"]).encode()), (pixels.shape[0], pixels.shape[1])
    side = spec["image_size_when_labeling"]
    scale = frame_scale(shape, (side, side))
    # Upstream scales x, y, width and height, each to a whole number.
    corner, extent = np.trunc(label.boxes[:, :2] * scale), np.trunc((label.boxes[:, 2:] - label.boxes[:, :2]) * scale)
    scaled = np.concatenate([corner, corner + extent], axis=1)
    pad = padding(shape, size)
    return {
        "image": _pixels(padded_square(Image.fromarray(pixels), size, legacy=True)),
        "bboxes": _whole(padded_boxes(scaled, shape) * size),
        "labels": list(label.descriptions),
        "categories": list(label.categories),
        "caption": label.caption,
        "pad_size": pad.size,
        "pad_side": pad.side,
    }


def _cc3m(spec: dict[str, Any], pixels: np.ndarray, size: int) -> dict[str, Any]:
    """By way of the source itself: files, manifest, the border's end, the crop.

    The case's border is a part of its gradient, which the source would refuse; it is painted white, as real ones are.
    """
    left, top, right, bottom = content(
        (pixels.shape[0], pixels.shape[1]), (spec["original_height"], spec["original_width"])
    )
    bordered = np.full_like(pixels, 255)
    bordered[top:bottom, left:right] = pixels[top:bottom, left:right]
    with tempfile.TemporaryDirectory() as place:
        work = Path(place) / "work"
        work.mkdir()
        buffer = io.BytesIO()
        Image.fromarray(bordered).save(buffer, "PNG")
        (work / "000012345.png").write_bytes(buffer.getvalue())
        sizes = {name: spec[name] for name in ("original_width", "original_height")}
        (work / "000012345.json").write_text(json.dumps(sizes))
        (work / "label_000012345.json").write_text(json.dumps(spec["label_json"]))
        source = open_source(OutputFolder(f"{place}/raw", work).finish("rich-context-raw", {}, {}))
        (example,) = source.fetch(source.units[0])()
        assert isinstance(example, RawExample), example
        chosen = source.select(example, Settings(res=size, samples_per_shard=1, batch=1, min_area=0))
        boxes = _whole(chosen.boxes * size)
        return {
            "image": _pixels(Image.fromarray(decode_squares(example.image, [size], inner=example.inner)[size])) / 255,
            "bboxes": boxes,
            "masks": _masks(boxes, size),
            "labels": list(chosen.phrases),
            "caption": chosen.caption,
        }


def _cocostuff(spec: dict[str, Any], pixels: np.ndarray, size: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as place:
        files = []
        for name in ("instances", "stuff"):
            path = Path(place) / f"{name}.json"
            path.write_text(json.dumps(spec[name]))
            files.append(InstanceFile(path))
        found = ThingsAndStuff(*files).of(spec["instances"]["images"][0]["file_name"])
    assert found is not None
    shape = (pixels.shape[0], pixels.shape[1])
    area = (found.boxes[:, 2:] - found.boxes[:, :2]).prod(axis=1) / (shape[0] * shape[1])
    rows = np.flatnonzero(area > spec["kwargs"]["min_object_size"])
    boxes, pad = _whole(padded_boxes(found.boxes[rows], shape) * size), padding(shape, size)
    return {
        "image": _pixels(padded_square(Image.fromarray(pixels), size, legacy=True)) / 255,
        "bboxes": boxes,
        "masks": _masks(boxes, size),
        "labels": [found.phrases[row] for row in rows.tolist()],
        "caption": spec["caption"],  # of a captions file, whose reading tests/data/test_coco.py tests
        "pad_size": pad.size,
        "pad_side": pad.side,
    }


def _pixels(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.asarray(image, np.float32).copy()).permute(2, 0, 1)


def _whole(boxes: np.ndarray) -> Tensor:
    return torch.from_numpy(np.trunc(boxes).astype(np.float32))


def _masks(boxes: Tensor, size: int) -> Tensor:
    masks = torch.zeros(len(boxes), size, size)
    for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist(), strict=True):
        mask[top:bottom, left:right] = 1
    return masks


KINDS: dict[str, Callable[[Case], Comparison]] = {"data": data}
