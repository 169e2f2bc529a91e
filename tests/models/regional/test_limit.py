"""Too many region tokens: which regions go, and that the others are as they were."""

import numpy as np
import pytest

from atelier.models.regional.limit import limited
from atelier.models.regional.regions import map_regions
from atelier.models.regional.tokens import RegionTokens

# Background 0 (all but), the large box 1, the small one 2, their overlap 3, in a grid of 8 by 8.
BOXES = [[0.0, 0.0, 0.5, 0.5], [0.375, 0.375, 0.75, 0.75]]
FOUND = map_regions(BOXES, 8, 8)
COUNTS = {0: 7, 1: 2, 2: 5, 3: 4}


def tokens_of(counts: dict[int, int]) -> RegionTokens:
    region = np.repeat(np.array(list(counts), np.int16), list(counts.values()))
    text = np.arange(len(region), dtype=np.float16)[:, None]
    return RegionTokens(text, np.zeros((len(region), 4), np.float32), -text[:, 0].astype(np.float32), region)


def sizes() -> dict[int, int]:
    return {number: int((FOUND.cells == number).sum()) for number in range(4)}


def test_the_map_is_the_one_that_is_meant() -> None:
    members = [region.members for region in FOUND.regions]
    assert members == [(), (1,), (0,), (0, 1)]
    assert sizes() == {0: 40, 1: 8, 2: 15, 3: 1}


@pytest.mark.parametrize(
    ("most", "gone"),
    [(18, []), (17, [3]), (14, [3]), (13, [3, 1]), (12, [3, 1]), (11, [3, 1, 2]), (7, [3, 1, 2]), (1, [3, 1, 2])],
)
def test_the_smallest_regions_go_first_and_the_background_never(most: int, gone: list[int]) -> None:
    given = tokens_of(COUNTS)
    made = limited(FOUND, given, most)
    assert made.left_out == len(gone)
    assert sorted(set(made.tokens.region.tolist())) == [number for number in range(4) if number not in gone]
    assert len(made.tokens.region) <= max(most, COUNTS[0])
    for number in range(4):
        assert ((made.cells == number) == ((FOUND.cells == number) & (number not in gone))).all(), "numbers stay"
    assert ((made.cells == -1) == np.isin(FOUND.cells, gone)).all()
    assert made.cells.dtype == np.int16
    # A row is the row that it was, in every field.
    rows = made.tokens.text[:, 0].astype(int)
    assert (np.diff(rows) > 0).all()
    assert (made.tokens.region == given.region[rows]).all()
    assert (made.tokens.bias == given.bias[rows]).all()
    assert made.tokens.boxes.shape == (len(rows), 4)
    assert len(given.region) == 18, "what was given is left alone"


def test_of_equally_large_regions_the_later_goes() -> None:
    found = map_regions([[0.0, 0.0, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0]], 8, 8)
    made = limited(found, tokens_of({0: 3, 1: 3, 2: 3}), 8)
    assert sorted(set(made.tokens.region.tolist())) == [0, 1]


def test_a_picture_without_a_background_may_lose_all_its_regions() -> None:
    found = map_regions([[0.0, 0.0, 1.0, 1.0]], 4, 4)
    made = limited(found, tokens_of({0: 5}), 4)
    assert (made.cells == -1).all()
    assert made.tokens.text.shape == (0, 1)
    assert made.left_out == 1
