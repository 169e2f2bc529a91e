"""A region's text as conditioned tokens: each knows its region, its object's box and how much it is to weigh.

A region's text is its objects' descriptions, ``"a cat; a dog"``, encoded as one. Of the encoder's 77 states only those
are kept that an object's words stand on: the published model gives all others a bias of -1000, after which a softmax
leaves nothing of them. A region without words (the background) keeps all 77, as there.
"""

import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from atelier.errors import DataError
from atelier.models.regional.regions import Region, RegionMap

NO_BOX = -1.0
"""Every coordinate of a token that no object owns."""

_TRAILING = re.compile(r"[\W_]+$")
"""Signs at a text's end. CLIP's tokenizer makes ``.;`` one token, and the separator would be lost."""


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


Encode = Callable[[Sequence[str]], EncodedTexts]


def region_tokens(
    found: RegionMap,
    boxes: ArrayLike,
    labels: Sequence[str],
    encode: Encode,
    *,
    separator: int,
    end: int,
    iou_weight: float = 1.0,
    legacy: bool = False,
) -> RegionTokens:
    """``region_texts``, encoded, through ``condition``: everything for one picture.

    Args:
        found: from ``map_regions``.
        boxes: [N, 4] normalised xyxy, the very ones that ``found`` was made from.
        labels: [N] descriptions.
        encode: texts to their states.
        separator, end, iou_weight: as in ``condition``.
        legacy: as in ``region_texts``.
    """
    texts = encode(region_texts(found.regions, labels, legacy=legacy))
    return condition(found.regions, boxes, texts, separator=separator, end=end, iou_weight=iou_weight)


def region_texts(regions: Sequence[Region], labels: Sequence[str], *, legacy: bool = False) -> list[str]:
    """Each region's text: its objects' descriptions, in their order, with ``"; "`` between them.

    A description loses its semicolons, and signs at its end where a separator follows. The background's is empty.

    Args:
        labels: a description a box.
        legacy: leaves the signs, as upstream does; CLIP's tokenizer then merges ``.;`` and all tokens of the region
            count as its first object's.

    Raises:
        DataError: a region is of a box that has no description.
    """
    _require_each(regions, len(labels), "descriptions")
    texts = []
    for region in regions:
        own = [labels[member].replace(";", "") for member in region.members]
        if not legacy:
            own = [_without_separators(text) for text in own]
            own[:-1] = [_TRAILING.sub("", text) for text in own[:-1]]
        texts.append("; ".join(own))
    return texts


def condition(
    regions: Sequence[Region],
    boxes: ArrayLike,
    texts: EncodedTexts,
    *,
    separator: int,
    end: int,
    iou_weight: float = 1.0,
) -> RegionTokens:
    """The tokens of regions whose texts are encoded.

    Args:
        boxes: [N, 4] normalised xyxy.
        texts: of ``region_texts``, a row a region.
        separator: the first tokenizer's id of ``;</w>`` (282 of CLIP's).
        end: its id of the end-of-text token.
        iou_weight: multiplies ``iou - 1``, the bias of an object's tokens: larger favours the object that a region is
            most of, 0 treats all alike (upstream's ``attention_weight_scale``).

    Raises:
        DataError: rows and regions differ in number, or a region is of a box that is not there.
    """
    given = np.asarray(boxes, np.float64).reshape(-1, 4)
    _require_each(regions, len(given), "boxes")
    if len(texts.ids) != len(regions) or texts.states.shape[:2] != texts.ids.shape:
        raise DataError(
            f"{len(regions)} regions, ids {texts.ids.shape} and states {texts.states.shape}",
            "encode the texts of region_texts, each to one row",
        )
    kept: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for region, ids in zip(regions, texts.ids, strict=True):
        positions: list[int] = []
        owners: list[int] = []
        for order, (first, last) in enumerate(spans(ids, len(region.members), separator=separator, end=end)):
            positions += range(first, last)
            owners += [order] * (last - first)
        if positions:
            members, ious = np.asarray(region.members)[owners], np.asarray(region.ious)[owners]
            kept.append((np.asarray(positions), given[members], (ious - 1) * iou_weight))
        else:
            kept.append((np.arange(len(ids)), np.full((len(ids), 4), NO_BOX), np.zeros(len(ids))))
    rows = [states[positions] for states, (positions, _, _) in zip(texts.states, kept, strict=True)]
    lengths = [len(positions) for positions, _, _ in kept]
    return RegionTokens(
        np.concatenate(rows) if rows else texts.states.reshape(0, texts.states.shape[-1]),
        np.concatenate([np.zeros((0, 4)), *(owned for _, owned, _ in kept)]).astype(np.float32),
        np.concatenate([np.zeros(0), *(bias for _, _, bias in kept)]).astype(np.float32),
        np.repeat(np.arange(len(regions), dtype=np.int16), lengths),
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


def pooled_tokens(regions: Sequence[Region], boxes: ArrayLike, states: np.ndarray) -> RegionTokens:
    """One token a region, of its first object's box: what the ablation with InstanceDiffusion's self-attention takes.

    Args:
        boxes: [N, 4] normalised xyxy.
        states: [R, D] pooled states of ``region_texts``.
    """
    given = np.asarray(boxes, np.float64).reshape(-1, 4)
    _require_each(regions, len(given), "boxes")
    owned = [given[region.members[0]] if region.members else np.full(4, NO_BOX) for region in regions]
    return RegionTokens(
        states,
        np.asarray(owned, np.float32).reshape(-1, 4),
        np.zeros(len(regions), np.float32),
        np.arange(len(regions), dtype=np.int16),
    )


def _require_each(regions: Sequence[Region], count: int, what: str) -> None:
    needed = max((max(region.members) + 1 for region in regions if region.members), default=0)
    if needed > count:
        raise DataError(f"{count} {what} for {needed} boxes", "give one a box, in the boxes' order")


def _without_separators(text: str) -> str:
    """Without signs that a tokenizer's normalisation makes a semicolon (the Greek question mark, the fullwidth one)."""
    return "".join(sign for sign in text if unicodedata.normalize("NFKC", sign) != ";")
