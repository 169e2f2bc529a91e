"""A level's grid and masks: nearest neighbours, padding unseen, made once."""

import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from atelier.models.regional.batches import collate
from atelier.models.regional.grounding import Grounding, level_size
from atelier.models.regional.regions import map_regions, unions
from tests.models.regional.layouts import WIDTH, batch, random_boxes, random_layout


def grounding(height: int = 8, width: int = 8) -> Grounding:
    layouts = [random_layout(4, height, width), None, random_layout(2, height, width, seed=1)]
    given = batch(collate(layouts, height, width, WIDTH, with_unions=True))
    return Grounding(given["text"], given["bias"], given["region"], given["cells"], given["unions"], {})


@pytest.mark.parametrize(
    ("length", "cells", "expected"),
    [
        (4096, (64, 64), (64, 64)),
        (64, (64, 64), (8, 8)),
        (240, (12, 20), (12, 20)),
        (15, (12, 20), (3, 5)),
        (6, (12, 20), (2, 3)),
        (1, (12, 20), (1, 1)),
        (1024, (32, 128), (16, 64)),
        (77 * 4, (7, 11), (14, 22)),
    ],
)
def test_a_levels_grid(length: int, cells: tuple[int, int], expected: tuple[int, int]) -> None:
    assert level_size(length, *cells) == expected


@pytest.mark.parametrize("length", [0, 63, 65, 100, 5000])
def test_no_level_has_this_length(length: int) -> None:
    with pytest.raises(ValueError, match=rf"{length} visual tokens .* 64×32 map"):
        level_size(length, 64, 32)


@pytest.mark.parametrize(("height", "width", "level"), [(8, 8, (4, 4)), (12, 20, (3, 5)), (10, 6, (3, 2))])
def test_a_token_is_seen_by_the_nearest_cells_of_its_region_alone(
    height: int, width: int, level: tuple[int, int]
) -> None:
    given = grounding(height, width)
    mask = given.token_mask(level[0] * level[1])
    own = F.interpolate(given.cells[:, None].float(), level).flatten(1).long()
    for row in range(3):
        for query in range(own.shape[1]):
            seen = mask.scores[row, 0, query]
            member = (given.region[row] == own[row, query]) & (given.region[row] >= 0)
            assert bool(mask.covered[row, query, 0]) == bool(member.any())
            if member.any():
                assert torch.equal(seen[member], given.bias[row][member])
                assert (seen[~member] == -torch.inf).all()
            else:
                assert (seen == 0).all()
    assert not mask.covered[1].any()
    assert mask.covered[0].all()


def test_a_query_sees_its_regions_union() -> None:
    given = grounding()
    assert given.unions is not None
    mask = given.union_mask(16)
    own = F.interpolate(given.cells[:, None].float(), (4, 4)).flatten(1).long()
    unions = F.interpolate(given.unions.float(), (4, 4)).flatten(2).bool()
    for row in (0, 2):
        for query in range(16):
            assert torch.equal(mask.scores[row, 0, query] == 0, unions[row, own[row, query]])
    assert not mask.covered[1].any()
    assert (mask.scores[1] == 0).all()
    joint = given.joint_mask(16)
    assert torch.equal(joint.scores[0, ..., :16], mask.scores[0])
    assert torch.equal(joint.scores[..., 16:].isinf()[0], given.token_mask(16).scores.isinf()[0])


def test_a_region_whose_tokens_are_missing_is_not_covered() -> None:
    given = grounding()
    lost = given._replace(region=torch.where(given.region == 1, -1, given.region), masks=None)
    covered = lost.token_mask(64).covered[0, :, 0]
    assert torch.equal(covered, given.cells[0].flatten() != 1)
    assert torch.equal(lost.joint_mask(64).covered[0, :, 0], covered)


def test_cells_of_a_region_that_was_cut_off_see_nothing() -> None:
    given = grounding()
    cells = given.cells.clone()
    cells[0, :4] = -1
    cut = given._replace(cells=cells, masks=None)
    for mask in (cut.token_mask(64), cut.union_mask(64), cut.joint_mask(64)):
        assert torch.equal(mask.covered[0, :, 0], cells[0].flatten() >= 0)
        assert (mask.scores[0, 0, :32] == 0).all()


def by_hand(cells: list[list[int]], height: int, width: int) -> list[list[int]]:
    """The level's cells, region by region: twice over, the smallest that has none takes those that it touches first.

    Of each region that has any, its first cell that none wants (else its first) is left to it.
    """
    rows, columns = len(cells), len(cells[0])
    level = [[cells[y * rows // height][x * columns // width] for x in range(width)] for y in range(height)]
    sizes = Counter(region for row in cells for region in row)
    for _ in range(2):
        there = {region for row in level for region in row}
        wanted: dict[tuple[int, int], int] = {}
        for region in sorted(sizes.keys() - there - {-1}, key=lambda region: (sizes[region], region)):
            for y, x in itertools.product(range(rows), range(columns)):
                if cells[y][x] == region:
                    wanted.setdefault((y * height // rows, x * width // columns), region)
        stays = set()
        for region in there - {-1}:
            own = [
                place for place in itertools.product(range(height), range(width)) if level[place[0]][place[1]] == region
            ]
            stays.add(next((place for place in own if place not in wanted), own[0]))
        for (y, x), region in wanted.items():
            if (y, x) not in stays:
                level[y][x] = region
    return level


@pytest.mark.parametrize(("height", "width"), [(16, 16), (12, 20), (10, 14)])
def test_a_region_between_a_coarse_levels_cells_is_kept(height: int, width: int) -> None:
    cells = torch.from_numpy(np.stack([map_regions(random_boxes(20, n), height, width).cells for n in range(4)]))
    cells[3, : height // 2] = -1
    regions = int(cells.max()) + 1
    given = Grounding(torch.zeros(4, regions, 1), torch.zeros(4, regions), torch.arange(regions).expand(4, -1), cells)
    gained = 0
    for level in ((-(-height // 2), -(-width // 2)), (-(-height // 4), -(-width // 4))):
        kept, upstream = (given._replace(keep_small=keep).token_mask(level[0] * level[1]) for keep in (True, False))
        expected = torch.tensor([by_hand(each.tolist(), *level) for each in cells]).flatten(1)
        seen = kept.scores[:, 0].isfinite() & kept.covered
        assert torch.equal(seen.any(-1), expected >= 0)
        assert torch.equal(seen.int().argmax(-1)[expected >= 0], expected[expected >= 0])
        gained += int(seen.any(1).sum() - (upstream.scores[:, 0].isfinite() & upstream.covered).any(1).sum())
    assert gained > 4


def owners(cells: torch.Tensor, length: int, *, keep_small: bool) -> torch.Tensor:
    """int [B, L]: whose each of a level's cells is."""
    rows, regions = len(cells), int(cells.max()) + 1
    given = Grounding(
        torch.zeros(rows, regions, 1), torch.zeros(rows, regions), torch.arange(regions).expand(rows, -1), cells,
        keep_small=keep_small,
    )  # fmt: skip
    return (given.token_mask(length).scores[:, 0] == 0).int().argmax(-1)


def test_no_region_loses_its_last_cell_to_a_smaller_one() -> None:
    """Many boxes on a coarse level, where there are nearly as many regions as cells."""
    maps = [map_regions(random_boxes(count, count), 64, 64) for count in range(6, 16)]
    cells = torch.from_numpy(np.stack([found.cells for found in maps]))
    nearest, kept = (owners(cells, 64, keep_small=keep) for keep in (False, True))
    gained = 0
    for row in range(len(maps)):
        before, after = set(nearest[row].tolist()), set(kept[row].tolist())
        assert before <= after
        gained += len(after - before)
    assert gained > 30


def test_two_that_lie_in_one_cell_share_its_neighbour() -> None:
    """The first takes both cells that it touches, and gives one to the second, which has no other to take."""
    cells = torch.tensor([[[0, 1, 0, 0], [2, 2, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]])
    assert owners(cells, 4, keep_small=False).tolist() == [[0, 0, 0, 0]]
    assert owners(cells, 4, keep_small=True).tolist() == [[2, 0, 1, 0]]


def test_a_cell_that_none_wants_is_left_rather_than_one_that_is_wanted() -> None:
    """The first of the background's cells is wanted; 3 gives one of its two and keeps the other."""
    cells = torch.tensor([[[0, 1, 0, 0], [0, 1, 0, 0], [3, 3, 3, 3], [0, 0, 2, 2]]])
    assert owners(cells, 4, keep_small=False).tolist() == [[0, 0, 3, 3]]
    assert owners(cells, 4, keep_small=True).tolist() == [[1, 0, 3, 2]]
    cells = torch.tensor([[[1, 1, 2, 2], [1, 3, 2, 2], [4, 4, 5, 5], [4, 4, 5, 5]]])
    assert owners(cells, 4, keep_small=True).tolist() == [[1, 2, 4, 5]], "1 has no other cell"


def test_what_is_kept_sees_itself_where_its_union_is_lost() -> None:
    """One box of one cell, which the coarse level's nearest cells are not of."""
    found = map_regions([[0.55, 0.55, 0.6, 0.6]], 16, 16)
    assert found.cells[9, 9] == found.cells.sum() == 1
    cells, fields = torch.from_numpy(found.cells)[None], torch.from_numpy(unions(found))[None]
    given = Grounding(torch.zeros(1, 2, 1), torch.zeros(1, 2), torch.arange(2)[None], cells, fields, None, True)
    own = given.union_mask(16).scores[0, 0, 10] == 0
    assert own.nonzero().tolist() == [[10]]
    assert (given.union_mask(16).scores[0, 0, 0] == 0).all()
    assert (given._replace(keep_small=False).union_mask(16).scores == 0).all()


def test_masks_are_made_once_a_level_and_kept_with_the_grounding() -> None:
    given = grounding()
    first = given.token_mask(16)
    assert given.token_mask(16) is first
    assert given.token_mask(64) is not first
    assert given.masks is not None
    assert set(given.masks) == {("tokens", 16), ("tokens", 64)}
    assert grounding().masks == {}
    anew = given._replace(masks=None)
    assert anew.token_mask(16) is not anew.token_mask(16)


def test_unions_are_asked_for_by_name() -> None:
    with pytest.raises(ValueError, match="unions"):
        grounding()._replace(unions=None).union_mask(64)
