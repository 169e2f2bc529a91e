"""What is encoded of a region: its objects' descriptions, joined, ``"a cat; a dog"``.

A text encoder reads no more than its length (CLIP's 77 tokens). Upstream cuts what a region has beyond that, and the
objects at the end are lost; here they go into a further text of the same region.
"""

import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import NamedTuple

from atelier.errors import DataError
from atelier.models.regional.regions import Region

_TRAILING = re.compile(r"[\W_]+$")
"""Signs at a text's end. CLIP's tokenizer makes ``.;`` one token, and the separator would be lost."""

_SAYING = ("L", "N", "M", "So")
"""Unicode's categories of what says something alone: letters, numbers, pictures."""


class RegionText(NamedTuple):
    """A text that is encoded as one.

    Attributes:
        text: the descriptions of some of a region's objects.
        objects: those objects, as a region of them alone.
        region: the number of the region that they are of.
    """

    text: str
    objects: Region
    region: int


def spread_texts(regions: Sequence[Region], labels: Sequence[str], fits: Callable[[str], bool]) -> list[RegionText]:
    """Every region's texts, each of which fits, region after region; one text where all its objects' do.

    A text has as many objects as fit, in their order. A description that fits alone in no text has one to itself. One
    of no words is none, and its object is in no text, where others of its region have words; else the text is "".

    Args:
        labels: a description a box.
        fits: whether an encoder reads a text to its end.

    Raises:
        DataError: a region is of a box that has no description.
    """
    require_each(regions, len(labels), "descriptions")
    made = []
    for number, region in enumerate(regions):
        cleaned = [_cleaned(labels[member]) for member in region.members]
        spoken = [order for order, text in enumerate(cleaned) if text]
        if not spoken:
            made.append(RegionText("", region, number))
            continue
        own, first = [cleaned[order] for order in spoken], 0
        for last in _ends(own, fits):
            orders = spoken[first:last]
            members = tuple(region.members[order] for order in orders)
            ious = tuple(region.ious[order] for order in orders)
            made.append(RegionText(_joined(own[first:last]), Region(members, ious), number))
            first = last
    return made


def region_texts(regions: Sequence[Region], labels: Sequence[str], *, legacy: bool = False) -> list[str]:
    """Each region's text, however long: its objects' descriptions, in their order, with ``"; "`` between them.

    A description loses its semicolons, and signs at its end where a separator follows. Of signs alone it is none. The
    background's is empty, as is that of objects without any description.

    Args:
        labels: a description a box.
        legacy: leaves the signs, as upstream does; CLIP's tokenizer then merges ``.;`` and all tokens of the region
            count as its first object's.

    Raises:
        DataError: a region is of a box that has no description.
    """
    if legacy:
        require_each(regions, len(labels), "descriptions")
        return ["; ".join(labels[member].replace(";", "") for member in region.members) for region in regions]
    return [one.text for one in spread_texts(regions, labels, lambda _: True)]


def require_each(regions: Sequence[Region], count: int, what: str) -> None:
    """Every box that the regions are of has one of ``count`` things.

    Raises:
        DataError: it has not.
    """
    needed = max((max(region.members) + 1 for region in regions if region.members), default=0)
    if needed > count:
        raise DataError(f"{count} {what} for {needed} boxes", "give one a box, in the boxes' order")


def _ends(own: Sequence[str], fits: Callable[[str], bool]) -> list[int]:
    """Where each text of a region's descriptions ends."""
    if len(own) < 2 or fits(_joined(own)):
        return [len(own)]
    ends, first = [], 0
    for last in range(1, len(own)):
        if not fits(_joined(own[first : last + 1])):
            ends.append(last)
            first = last
    return [*ends, len(own)]


def _joined(own: Sequence[str]) -> str:
    return "; ".join((*(_TRAILING.sub("", text) for text in own[:-1]), *own[-1:]))


def _cleaned(text: str) -> str:
    """Without signs that a tokenizer's normalisation makes a semicolon (the Greek question mark, the fullwidth one);
    empty where only signs are left."""
    left = "".join(sign for sign in text if unicodedata.normalize("NFKC", sign) != ";")
    return left if any(unicodedata.category(sign).startswith(_SAYING) for sign in left) else ""
