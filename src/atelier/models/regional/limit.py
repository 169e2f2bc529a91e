"""A bound on a picture's region tokens: twenty boxes of fourteen words can make ten thousand, where a dozen make 500.

A batch is as wide as its widest picture, so that one such picture costs its whole batch memory and time.
"""

from typing import NamedTuple

import numpy as np

from atelier.models.regional.regions import RegionMap
from atelier.models.regional.tokens import RegionTokens


class Limited(NamedTuple):
    """A picture's regions, the smallest left out where all were too many.

    Attributes:
        cells: int16 [h, w]; -1 (no region) where its region was left out. The others keep their numbers.
        tokens: of the regions that stay.
        left_out: how many regions are gone.
    """

    cells: np.ndarray
    tokens: RegionTokens
    left_out: int


def limited(found: RegionMap, tokens: RegionTokens, most: int) -> Limited:
    """At most ``most`` tokens: whole regions are left out, those of fewest cells first, never the background.

    Of regions of equally many cells the later goes first. Where the background's tokens alone are more, they stay.

    Args:
        found: whose every region has its cells.
        tokens: of all its regions.
    """
    excess = len(tokens.region) - most
    if excess <= 0:
        return Limited(found.cells, tokens, 0)
    count = len(found.regions)
    own = np.bincount(tokens.region, minlength=count)
    sizes = np.bincount(found.cells[found.cells >= 0], minlength=count)
    numbers = np.array([number for number, region in enumerate(found.regions) if region.members], np.int64)
    order = numbers[np.lexsort((-numbers, sizes[numbers]))]
    gone = order[: int(np.searchsorted(np.cumsum(own[order]), excess)) + 1]
    kept = ~np.isin(tokens.region, gone)
    cells = np.where(np.isin(found.cells, gone), np.int16(-1), found.cells)
    return Limited(cells, RegionTokens(*(array[kept] for array in tokens)), len(gone))
