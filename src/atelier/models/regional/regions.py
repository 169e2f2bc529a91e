"""Boxes cut into regions: sets of cells that the very same boxes cover (arXiv 2409.04847, region reorganisation).

A region is what a description can belong to without ambiguity: where two boxes overlap, the overlap is a region of its
own with both descriptions. The regions are a partition of the grid; one of them may lie in several pieces.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from atelier.errors import DataError

_DECIMALS = 5
"""To which a cell coordinate is rounded first: 0.1 in float32 times 160 is 16.0000002."""

_MOST_REGIONS = np.iinfo(np.int16).max


@dataclass(frozen=True)
class Region:
    """Some cells that the same boxes cover.

    Attributes:
        members: those boxes' numbers, ascending; () is the background.
        ious: of the region with each member's cells, divided by the largest of them, which is 1 therefore.
    """

    members: tuple[int, ...]
    ious: tuple[float, ...]


@dataclass(frozen=True)
class RegionMap:
    """A grid's regions.

    Attributes:
        cells: int16 [h, w]; the number of the region that a cell is of, -1 where its region was cut off.
        regions: in lexicographic order of which boxes cover them, the first box most significant, "not" first: the
            background, where there is any, is region 0.
        covers: bool [N, h, w]; the cells of each box.
    """

    cells: np.ndarray
    regions: tuple[Region, ...]
    covers: np.ndarray


def map_regions(
    boxes: ArrayLike,
    height: int,
    width: int,
    *,
    legacy: bool = False,
    max_objects: int | None = None,
    max_regions: int | None = None,
) -> RegionMap:
    """The regions of some boxes on a grid.

    A box's edges go to the nearest cell borders, and a box that touches the picture has one cell at least. Every box
    and region is kept unless a limit is given.

    Args:
        boxes: [N, 4] normalised xyxy; they may stick out of 0..1. One that lies outside altogether covers nothing.
        height, width: of the grid; a latent's.
        legacy: upstream's rasterisation, which released checkpoints were trained with: coordinates are cut off towards
            0, no box reaches the last row and column, and boxes narrower than a cell may vanish.
        max_objects: boxes after these many are left out (upstream 30).
        max_regions: regions after these many are cut off (upstream 120): their cells become -1.

    Raises:
        DataError: a box is not finite, has its corners in the wrong order, or there are more than 32,767 regions.
    """
    given = np.asarray(boxes, np.float64).reshape(-1, 4)[:max_objects]
    if not legacy:
        _require_boxes(given)
    covers = _rasterised_by_truncation(given, height, width) if legacy else _rasterised(given, height, width)
    if not len(given):
        patterns, index = np.zeros((1, 0), bool), np.zeros(height * width, np.intp)
    else:
        # Bits packed into bytes sort as the bits do, in fewer columns.
        packed = np.packbits(covers.reshape(len(given), -1).T, axis=1)
        unique, index = np.unique(packed, axis=0, return_inverse=True)
        patterns = np.unpackbits(unique, axis=1, count=len(given)).astype(bool)
    if len(patterns) > _MOST_REGIONS:
        raise DataError(
            f"{len(given)} boxes cut a {height}×{width} grid into {len(patterns)} regions, at most {_MOST_REGIONS:,}",
            "give max_objects, or leave boxes out",
        )
    # numpy 2.0 gives the inverse another shape than every other version.
    cells = index.reshape(height, width).astype(np.int16)
    sizes = np.bincount(index.reshape(-1), minlength=len(patterns))
    areas = covers.sum(axis=(1, 2))
    regions = tuple(_region(*each, areas) for each in zip(patterns, sizes, strict=True))
    if max_regions is not None:
        regions = regions[:max_regions]
        cells[cells >= max_regions] = -1
    return RegionMap(cells, regions, covers)


def unions(found: RegionMap) -> np.ndarray:
    """bool [R, h, w]: all cells of the boxes that a region is of, for the background the whole grid.

    What a region's own visual tokens attend to in the fusers with self-attention.
    """
    masks = np.ones((len(found.regions), *found.cells.shape), bool)
    for row, region in enumerate(found.regions):
        if region.members:
            masks[row] = found.covers[list(region.members)].any(axis=0)
    return masks


def _require_boxes(boxes: np.ndarray) -> None:
    wrong = ~np.isfinite(boxes).all(axis=1) | (boxes[:, :2] > boxes[:, 2:]).any(axis=1)
    if wrong.any():
        row = int(wrong.argmax())
        raise DataError(
            f"box {row} is {boxes[row].tolist()}: not finite, or its corners are in the wrong order",
            "give x0, y0, x1, y1 with x0 <= x1 and y0 <= y1",
        )


def _region(pattern: np.ndarray, size: int, areas: np.ndarray) -> Region:
    members = np.flatnonzero(pattern)
    if not len(members):
        return Region((), ())
    # A region lies within each of its boxes, so that their union is the box.
    ious = size / areas[members]
    return Region(tuple(members.tolist()), tuple((ious / ious.max()).tolist()))


def _rasterised(boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    covers = np.zeros((len(boxes), height, width), bool)
    for cover, (x0, y0, x1, y1) in zip(covers, boxes, strict=True):
        cover[_span(y0, y1, height), _span(x0, x1, width)] = True
    return covers


def _span(low: float, high: float, cells: int) -> slice:
    """The cells of an interval of 0..1 along one axis."""
    if (low < 0 and high <= 0) or (low >= 1 and high > 1):
        return slice(0, 0)
    first, last = (int(np.clip(np.floor(round(edge * cells, _DECIMALS) + 0.5), 0, cells)) for edge in (low, high))
    if first == last:
        first = int(np.clip((low + high) / 2 * cells, 0, cells - 1))
        last = first + 1
    return slice(first, last)


def _rasterised_by_truncation(boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    covers = np.zeros((len(boxes), height, width), bool)
    corners = np.trunc(np.round(boxes * [width, height, width, height], _DECIMALS)).astype(int)
    for cover, (x0, y0, x1, y1) in zip(covers, corners.tolist(), strict=True):
        cover[_legacy_span(y0, y1, height), _legacy_span(x0, x1, width)] = True
    return covers


def _legacy_span(low: int, high: int, cells: int) -> slice:
    low = min(max(low, 0), cells - 1)
    return slice(low, min(max(high, low), cells - 1))
