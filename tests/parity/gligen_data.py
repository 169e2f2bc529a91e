"""Boxes, crops and SDXL's size conditions: the kinds of ``gligen/`` whose cases are JSON alone."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from atelier.data.coco_boxes import transform
from atelier.data.geometry import time_ids, top_left
from atelier.data.sa1b_select import clean, select
from tests.parity.case import Case, Comparison


def geometry(case: Case) -> Comparison:
    """GLIGEN's box transform for COCO, and IGLIGEN-XL's crops and time ids."""
    ours: dict[str, Any] = {}
    expected: dict[str, Any] = {}
    for number, row in enumerate(case.spec.get("coco", [])):
        name, res = f"coco.{number}", row["image_size"]
        given = list(row["xyxy"])
        box = transform(given, tuple(row["size_wh"]), res, row["min_box_size"])
        ours[f"{name}.given"], expected[f"{name}.given"] = given, row["xyxy"]
        ours[f"{name}.valid"], expected[f"{name}.valid"] = box is not None, row["valid"]
        if row["valid"] and box is not None:
            ours[f"{name}.norm"], expected[f"{name}.norm"] = _doubles(box.normalised), _doubles(row["out_norm"])
            ours[f"{name}.px"], expected[f"{name}.px"] = _doubles(box.box_px), _doubles(row["out_xyxy_px"])
    for number, row in enumerate(case.spec.get("sdxl", [])):
        name, res = f"sdxl.{number}", row["resolution"]
        height, width = row["original_hw"]
        ours[f"{name}.crop"], expected[f"{name}.crop"] = list(top_left((height, width), res)), row["crop_top_left_yx"]
        ours[f"{name}.ids"], expected[f"{name}.ids"] = list(time_ids((height, width), res)), row["time_ids"]
    return Comparison(ours, expected)


def sa1b_select(case: Case) -> Comparison:
    """The boxes and phrases of a published SA-1B shard that training sees, with and without the joint drop."""
    encoded = set(case.spec["latent_indices"])
    ours: dict[str, Any] = {}
    expected: dict[str, Any] = {"images": sorted(int(index) for index in case.spec["expected"])}
    ours["images"] = sorted(row[0] for row in case.spec["rows"] if row[0] in encoded)
    for index, caption, boxes, confidence, phrases, size in case.spec["rows"]:
        if index not in encoded:
            continue
        rows = select(np.asarray(confidence, np.float16))
        chosen = clean(np.asarray(boxes, np.float16).reshape(-1, 4)[rows], parity=True).xyxy
        kept = {"caption": caption, "boxes": chosen, "phrases": [phrases[row] for row in rows.tolist()]}
        dropped = {"caption": "", "boxes": chosen[:0], "phrases": []}
        for form, found in (("boxes", kept), ("dropped", dropped)):
            wanted, name = case.spec["expected"][str(index)][form], f"{index}.{form}"
            ours |= {f"{name}.{field}": found[field] for field in ("caption", "phrases")}
            expected |= {f"{name}.{field}": wanted[field] for field in ("caption", "phrases")}
            ours[f"{name}.n"], expected[f"{name}.n"] = len(found["boxes"]), wanted["n"]
            ours[f"{name}.xyxy"] = torch.from_numpy(found["boxes"])
            expected[f"{name}.xyxy"] = _doubles(wanted["boxes_xyxy"]).reshape(-1, 4)
            ours[f"{name}.size"], expected[f"{name}.size"] = size, wanted["original_hw"]
    return Comparison(ours, expected)


def _doubles(values: Any) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


KINDS: dict[str, Callable[[Case], Comparison]] = {"geometry": geometry, "sa1b_select": sa1b_select}
