"""Boxes and descriptions of many pictures to their regions' tokens, every text encoded once."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

from numpy.typing import ArrayLike

from atelier.models.regional.regions import Region, RegionMap, map_regions
from atelier.models.regional.texts import RegionText, region_texts, spread_texts
from atelier.models.regional.tokens import EncodedTexts, RegionTokens, condition


class Reader(NamedTuple):
    """A base model's text encoders, as regions' descriptions are read.

    Attributes:
        encode: N texts, longer ones cut.
        fits: whether a text is read to its end.
        separator, end: as in ``tokens.condition``.
    """

    encode: Callable[[Sequence[str]], EncodedTexts]
    fits: Callable[[str], bool]
    separator: int
    end: int


def read_regions(
    pictures: Sequence[tuple[ArrayLike, Sequence[str]]],
    height: int,
    width: int,
    reader: Reader,
    *,
    iou_weight: float = 1.0,
    legacy: bool = False,
) -> list[tuple[RegionMap, RegionTokens]]:
    """Each picture's map and tokens.

    Args:
        pictures: a picture's boxes [N, 4] normalised xyxy and N descriptions.
        height, width: of the maps of cells.
        iou_weight: as in ``tokens.condition``.
        legacy: upstream's rules (``map_regions``, ``region_texts``): also one text a region, cut where it is too long.

    Raises:
        DataError: a box is none, or there are fewer descriptions than boxes.
    """
    fits = functools.cache(reader.fits)
    maps = [map_regions(boxes, height, width, legacy=legacy) for boxes, _ in pictures]
    texts = [
        _whole(found.regions, labels) if legacy else spread_texts(found.regions, labels, fits)
        for found, (_, labels) in zip(maps, pictures, strict=True)
    ]
    unique = list(dict.fromkeys(each.text for own in texts for each in own))
    if not unique:
        return []
    encoded, places = reader.encode(unique), {text: place for place, text in enumerate(unique)}
    made = []
    for found, own, (boxes, _) in zip(maps, texts, pictures, strict=True):
        rows = [places[each.text] for each in own]
        tokens = condition(
            [each.objects for each in own],
            boxes,
            EncodedTexts(encoded.ids[rows], encoded.states[rows]),
            separator=reader.separator,
            end=reader.end,
            iou_weight=iou_weight,
            numbers=[each.region for each in own],
        )
        made.append((found, tokens))
    return made


def _whole(regions: Sequence[Region], labels: Sequence[str]) -> list[RegionText]:
    """One text a region, as upstream makes it."""
    texts = region_texts(regions, labels, legacy=True)
    return [RegionText(*each) for each in zip(texts, regions, range(len(regions)), strict=True)]
