"""Pictures' region tokens as one batch: what ``RegionTextNet`` is called with."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from atelier.errors import DataError
from atelier.models.regional.regions import RegionMap, unions
from atelier.models.regional.tokens import RegionTokens


class RegionLayout(NamedTuple):
    """One picture's layout, ready for a batch.

    Attributes:
        tokens: of its regions.
        cells: int16 [h, w] (``RegionMap.cells``).
        unions: bool [R, h, w] for the fusers with self-attention (``regions.unions``).
    """

    tokens: RegionTokens
    cells: np.ndarray
    unions: np.ndarray | None = None


def layout(found: RegionMap, tokens: RegionTokens, *, with_unions: bool = False) -> RegionLayout:
    """A picture's layout from its map and tokens."""
    return RegionLayout(tokens, found.cells, unions(found) if with_unions else None)


def collate(
    layouts: Sequence[RegionLayout | None],
    height: int,
    width: int,
    text_dim: int,
    *,
    with_unions: bool = False,
    multiple: int = 8,
) -> dict[str, np.ndarray]:
    """A batch of B layouts, by the names of ``RegionTextNet.forward``'s arguments.

    Args:
        layouts: None is a sample without a layout: guidance's unconditional half, a layout dropped in training.
        height, width: of the maps of cells.
        text_dim: width of a text state.
        with_unions: adds ``unions`` [B, R, h, w].
        multiple: T is padded up to a multiple of this many (torch's fused kernels want aligned masks), and is never 0.

    Returns:
        ``text`` [B, T, text_dim] of the layouts' own type (float32 without any), ``boxes`` float32 [B, T, 4], ``bias``
        float32 [B, T], ``region`` int16 [B, T] (-1 is padding), ``cells`` int16 [B, height, width] (-1 is no region).

    Raises:
        DataError: a layout has another size or width, or no unions where they are asked for.
    """
    given = [one for one in layouts if one is not None]
    for one in given:
        _require(one, height, width, text_dim, with_unions)
    longest = max((len(one.tokens.region) for one in given), default=0)
    rows, tokens = len(layouts), -(-max(longest, 1) // multiple) * multiple
    batch = {
        "text": np.zeros((rows, tokens, text_dim), given[0].tokens.text.dtype if given else np.float32),
        "boxes": np.full((rows, tokens, 4), -1, np.float32),
        "bias": np.zeros((rows, tokens), np.float32),
        "region": np.full((rows, tokens), -1, np.int16),
        "cells": np.full((rows, height, width), -1, np.int16),
    }
    if with_unions:
        most = max((len(one.unions) for one in given if one.unions is not None), default=1)
        batch["unions"] = np.zeros((rows, most, height, width), bool)
    for row, each in enumerate(layouts):
        if each is None:
            continue
        used = len(each.tokens.region)
        for name, array in each.tokens._asdict().items():
            batch[name][row, :used] = array
        batch["cells"][row] = each.cells
        if with_unions and each.unions is not None:
            batch["unions"][row, : len(each.unions)] = each.unions
    return batch


def _require(one: RegionLayout, height: int, width: int, text_dim: int, with_unions: bool) -> None:
    if one.cells.shape != (height, width) or one.tokens.text.shape[1:] != (text_dim,):
        raise DataError(
            f"a layout of {one.cells.shape} cells and text {one.tokens.text.shape[1:]} wide in a batch of "
            f"{(height, width)} and ({text_dim},)",
            "make every layout of a batch for one latent size and one set of text encoders",
        )
    if with_unions and one.unions is None:
        raise DataError(
            "a layout has no unions", "give layout(..., with_unions=True) for the fusers with self-attention"
        )
