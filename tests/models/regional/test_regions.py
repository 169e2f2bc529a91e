"""Boxes cut into regions: a partition, exact members, nothing lost at the edges."""

import numpy as np
import pytest

from atelier.errors import DataError
from atelier.models.regional.regions import map_regions, unions
from tests.models.regional.layouts import random_boxes


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(("count", "height", "width"), [(1, 8, 8), (5, 16, 12), (12, 32, 32), (20, 64, 48)])
def test_cells_of_a_region_are_those_that_its_members_cover_and_no_other(
    count: int, height: int, width: int, legacy: bool
) -> None:
    found = map_regions(random_boxes(count), height, width, legacy=legacy)
    assert found.cells.shape == (height, width)
    assert found.cells.dtype == np.int16
    assert set(np.unique(found.cells)) == set(range(len(found.regions)))
    patterns = []
    for number, region in enumerate(found.regions):
        inside = found.cells == number
        for box, cover in enumerate(found.covers):
            assert (cover[inside] == (box in region.members)).all()
        areas = [found.covers[member].sum() for member in region.members]
        ious = np.array([inside.sum() / area for area in areas])
        if region.members:
            np.testing.assert_allclose(region.ious, ious / ious.max())
        patterns.append([box in region.members for box in range(count)])
    assert patterns == sorted(patterns)
    assert len({tuple(pattern) for pattern in patterns}) == len(patterns)


def test_no_region_is_dropped_however_many_there_are() -> None:
    boxes = random_boxes(40)
    found = map_regions(boxes, 64, 64)
    assert len(found.regions) > 120
    assert len(found.covers) == 40
    assert (found.cells >= 0).all()


def test_edges_go_to_the_nearest_border_and_the_last_cells_are_reached() -> None:
    full = map_regions([[0, 0, 1, 1]], 8, 8)
    assert full.covers.all()
    assert [region.members for region in full.regions] == [(0,)]
    rounded = map_regions([[0.1, 0.2, 0.55, 0.81]], 10, 10).covers[0]
    assert rounded[2:8, 1:6].all()
    assert rounded.sum() == 30
    upstream = map_regions([[0, 0, 1, 1]], 8, 8, legacy=True)
    assert upstream.covers[0, :7, :7].all()
    assert upstream.covers.sum() == 49


def test_a_box_smaller_than_a_cell_has_the_cell_that_it_lies_in() -> None:
    small = [0.52, 0.26, 0.55, 0.29]
    assert np.argwhere(map_regions([small], 8, 8).covers[0]).tolist() == [[2, 4]]
    assert map_regions([small], 8, 8, legacy=True).covers.sum() == 0
    astride = map_regions([[0.49, 0.49, 0.53, 0.53]], 8, 8).covers[0]
    assert np.argwhere(astride).tolist() == [[4, 4]]
    corner = map_regions([[0.99, 0.99, 1.0, 1.0]], 8, 8).covers[0]
    assert np.argwhere(corner).tolist() == [[7, 7]]
    line = map_regions([[0.5, 0.0, 0.5, 1.0]], 8, 8).covers[0]
    assert line[:, 4].all()
    assert line.sum() == 8


def test_what_sticks_out_is_cut_and_what_lies_outside_covers_nothing() -> None:
    found = map_regions([[-0.5, -0.5, 0.25, 0.25], [1.0, 0.0, 1.5, 1.0], [-1, 0, 0, 1]], 8, 8)
    assert found.covers[0, :2, :2].all()
    assert found.covers.reshape(3, -1).sum(1).tolist() == [4, 0, 0]
    assert [region.members for region in found.regions] == [(), (0,)]


def test_float32_boxes_have_the_regions_of_exact_ones() -> None:
    exact = np.array([[k / 96, (k + 7) / 160, (k + 20) / 96, (k + 50) / 160] for k in range(0, 76, 5)])
    for legacy in (False, True):
        wide, narrow = (map_regions(boxes, 160, 96, legacy=legacy) for boxes in (exact, exact.astype(np.float32)))
        assert np.array_equal(wide.cells, narrow.cells)
        assert wide.regions == narrow.regions


def test_no_boxes_are_one_background() -> None:
    for boxes in ([], np.zeros((0, 4))):
        found = map_regions(boxes, 4, 6)
        assert (found.cells == 0).all()
        assert [region.members for region in found.regions] == [()]
        assert unions(found).all()


def test_limits_cut_off_from_the_end() -> None:
    boxes = random_boxes(6)
    assert np.array_equal(map_regions(boxes, 16, 16, max_objects=3).cells, map_regions(boxes[:3], 16, 16).cells)
    whole, cut = map_regions(boxes, 16, 16), map_regions(boxes, 16, 16, max_regions=4)
    assert cut.regions == whole.regions[:4]
    assert len(whole.regions) > 4
    assert np.array_equal(cut.cells, np.where(whole.cells < 4, whole.cells, -1))


def test_a_union_is_all_cells_of_a_regions_boxes() -> None:
    found = map_regions(random_boxes(6), 16, 16)
    for region, union in zip(found.regions, unions(found), strict=True):
        expected = np.ones((16, 16), bool)
        if region.members:
            expected = np.logical_or.reduce([found.covers[member] for member in region.members])
        assert np.array_equal(union, expected)


@pytest.mark.parametrize("box", [[0.5, 0, 0.4, 1], [0, 0.5, 1, 0.4], [0, 0, np.nan, 1], [0, 0, np.inf, 1]])
def test_a_box_that_is_none_is_named(box: list[float]) -> None:
    with pytest.raises(DataError, match="box 1"):
        map_regions([[0, 0, 1, 1], box], 8, 8)
