"""A region's text as conditioned tokens: each knows its region, its object's box and how much it is to weigh.

A region's descriptions are encoded together (``texts``). Of the encoder's 77 states only those are kept that an
object's words stand on: the published model gives all others a bias of -1000, after which a softmax leaves nothing of
them. A region without words (the background) keeps all 77, as there.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from atelier.errors import DataError
from atelier.models.regional.regions import Region
from atelier.models.regional.texts import require_each

NO_BOX = -1.0
"""Every coordinate of a token that no object owns."""


class EncodedTexts(NamedTuple):
    """What text encoders make of some texts.

    Attributes:
        ids: int [N, L]; the first tokenizer's, from the begin-of-text token on.
        states: [N, L, D]; the last hidden states, of several encoders side by side.
    """

    ids: np.ndarray
    states: np.ndarray


class RegionTokens(NamedTuple):
    """One picture's tokens, region after region.

    Attributes:
        text: [T, D], of the type that the encoder gives.
        boxes: float32 [T, 4] normalised xyxy of the object that a token describes; -1 where there is none.
        bias: float32 [T], added to the token's attention scores; 0 or less.
        region: int16 [T]; the region whose cells see the token.
    """

    text: np.ndarray
    boxes: np.ndarray
    bias: np.ndarray
    region: np.ndarray


def condition(
    regions: Sequence[Region],
    boxes: ArrayLike,
    texts: EncodedTexts,
    *,
    separator: int,
    end: int,
    iou_weight: float = 1.0,
    numbers: Sequence[int] | None = None,
) -> RegionTokens:
    """The tokens of regions whose texts are encoded.

    Args:
        regions: whose objects each text describes: ``RegionText.objects``, or the very regions of a map.
        boxes: [N, 4] normalised xyxy.
        texts: a row an entry of ``regions``.
        separator: the first tokenizer's id of ``;</w>`` (282 of CLIP's).
        end: its id of the end-of-text token.
        iou_weight: multiplies ``iou - 1``, the bias of an object's tokens: larger favours the object that a region is
            most of, 0 treats all alike (upstream's ``attention_weight_scale``).
        numbers: the region that each text is of, in their order (``RegionText.region``); a text a region by default.

    Raises:
        DataError: rows and regions differ in number, or a region is of a box that is not there.
    """
    given = np.asarray(boxes, np.float64).reshape(-1, 4)
    require_each(regions, len(given), "boxes")
    of = np.arange(len(regions)) if numbers is None else np.asarray(numbers, np.int64)
    if not len(texts.ids) == len(regions) == len(of) or texts.states.shape[:2] != texts.ids.shape:
        raise DataError(
            f"{len(regions)} regions, ids {texts.ids.shape} and states {texts.states.shape}",
            "encode the texts of texts.region_texts or texts.spread_texts, each to one row",
        )
    kept = [_spoken(region, ids, separator, end) for region, ids in zip(regions, texts.ids, strict=True)]
    spoken = {int(number) for number, (positions, _) in zip(of, kept, strict=True) if len(positions)}
    rows, owned, bias, counts = [], [np.zeros((0, 4))], [np.zeros(0)], []
    for number, region, states, (positions, owners) in zip(of, regions, texts.states, kept, strict=True):
        if len(positions):
            rows.append(states[positions])
            owned.append(given[np.asarray(region.members)[owners]])
            bias.append((np.asarray(region.ious)[owners] - 1) * iou_weight)
        elif int(number) in spoken:  # another text of its region has words
            rows.append(states[:0])
        else:
            rows.append(states)
            owned.append(np.full((len(states), 4), NO_BOX))
            bias.append(np.zeros(len(states)))
            spoken.add(int(number))
        counts.append(len(rows[-1]))
    return RegionTokens(
        np.concatenate(rows) if rows else texts.states.reshape(0, texts.states.shape[-1]),
        np.concatenate(owned).astype(np.float32),
        np.concatenate(bias).astype(np.float32),
        np.repeat(of.astype(np.int16), counts),
    )


def spans(ids: np.ndarray, count: int, *, separator: int, end: int) -> list[tuple[int, int]]:
    """[first, last) of each of the ``count`` texts that stand in one row of ids, begin-of-text first.

    A text that was cut off at the row's end is shorter or empty; those behind it are left out. What follows a separator
    too many is the last text's.
    """
    ends = np.flatnonzero(ids[1:] == end)
    stop = int(ends[0]) + 1 if len(ends) else len(ids)
    if not count:
        return []
    cuts = [int(cut) for cut in np.flatnonzero(ids[:stop] == separator)][: count - 1]
    starts = [1, *(cut + 1 for cut in cuts)]
    return list(zip(starts, [*cuts, stop], strict=True))


def _spoken(region: Region, ids: np.ndarray, separator: int, end: int) -> tuple[np.ndarray, np.ndarray]:
    """The places in a row that objects' words stand on, and which of the region's objects each is of."""
    found = spans(ids, len(region.members), separator=separator, end=end)
    positions = [np.arange(first, last) for first, last in found]
    owners = [np.full(last - first, order) for order, (first, last) in enumerate(found)]
    none = np.zeros(0, np.int64)
    return np.concatenate([none, *positions]), np.concatenate([none, *owners])


def pooled_tokens(regions: Sequence[Region], boxes: ArrayLike, states: np.ndarray) -> RegionTokens:
    """One token a region, of its first object's box: what the ablation with InstanceDiffusion's self-attention takes.

    Args:
        boxes: [N, 4] normalised xyxy.
        states: [R, D] pooled states of ``texts.region_texts``.
    """
    given = np.asarray(boxes, np.float64).reshape(-1, 4)
    require_each(regions, len(given), "boxes")
    owned = [given[region.members[0]] if region.members else np.full(4, NO_BOX) for region in regions]
    return RegionTokens(
        states,
        np.asarray(owned, np.float32).reshape(-1, 4),
        np.zeros(len(regions), np.float32),
        np.arange(len(regions), dtype=np.int16),
    )
