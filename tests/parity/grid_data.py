"""GRID's pictures: frames packed into a grid (``grid_pack``), and upstream's buckets (``buckets``)."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from atelier.data.bucket_rules import upstream_bucket
from atelier.data.frame_grid import FrameGrid
from atelier.data.video_frames import cut
from tests.parity.case import Case, Comparison

EXACT = (0.0, 0.0)


def grid_pack(case: Case) -> Comparison:
    """Packing and back, tail, first cell everywhere, fading between rows' keys, the mask."""
    spec, given = case.spec, case.tensors
    grid = FrameGrid(spec["rows"], spec["cols"])
    frames = given["frames"].numpy()
    found = cut(len(frames), grid)
    pictures = np.stack([grid.pack(frames[places]) for places in found.grids])
    height, width = pictures.shape[1:3]
    keys = frames[found.grids[0]][:: grid.columns]
    ours: dict[str, Any] = {
        "grids": torch.from_numpy(pictures),
        "frames": torch.from_numpy(np.concatenate([grid.unpack(picture) for picture in pictures])),
        "tile_first_cell": torch.from_numpy(grid.tiled(frames[0])),
        "interp_row_keys": torch.from_numpy(grid.between_rows(keys)),
        "mask_1_is_generate": torch.from_numpy(grid.mask([tuple(cell) for cell in spec["given_cells"]], height, width)),
        "n_grids": len(found.grids),
        "dropped_tail_frames": found.left_out,
        "cell_hw": list(grid.cell_size(height, width)),
    }
    expected = {name: given.get(name, spec.get(name)) for name in ours}
    expected["frames"] = given["frames"][: len(found.grids) * grid.cells]  # the tail is in no grid
    return Comparison(ours, expected, EXACT)


def buckets(case: Case) -> Comparison:
    """All of upstream's tables: bucket, size before the cut, its corner, and whether it enlarges."""
    ours: dict[str, Any] = {}
    expected: dict[str, Any] = {}
    for row in case.spec["rows"]:
        width, height = row["size"]
        for name, wanted in row.items():
            said = re.fullmatch(r"(\w+)_r(\d+)_d(\d+)", name)
            if said is None:
                continue
            found = upstream_bucket(said[1], (width, height), int(said[2]), int(said[3]))  # type: ignore[arg-type]
            scale = max(found.size[0] / width, found.size[1] / height)
            key = f"{width} × {height} {name}"
            ours[key] = {
                "bucket": list(found.size),
                "scale_to": list(found.scaled),
                "crop_xy": list(found.corner),
                "upscaled": scale > 1,
                "scale": round(scale, 6),
            }
            expected[key] = wanted
    return Comparison(ours, expected, EXACT)


KINDS: dict[str, Callable[[Case], dict[str, Tensor] | Comparison]] = {"grid_pack": grid_pack, "buckets": buckets}
