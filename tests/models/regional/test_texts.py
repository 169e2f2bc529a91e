"""A region's texts: what is joined, and what goes into a text of its own."""

from collections.abc import Callable

import pytest

from atelier.errors import DataError
from atelier.models.regional.regions import Region
from atelier.models.regional.texts import RegionText, region_texts, spread_texts

THREE = [Region((), ()), Region((1,), (1.0,)), Region((0, 1, 2), (1.0, 0.5, 0.25))]
LABELS = ["A rug.", "a; cat.", "the end."]


def fits(words: int, asked: list[str] | None = None) -> Callable[[str], bool]:
    """A reader of so many words; a separator is one."""

    def answer(text: str) -> bool:
        if asked is not None:
            asked.append(text)
        return len(text.replace(";", " ;").split()) <= words

    return answer


def test_texts_of_regions() -> None:
    assert region_texts(THREE, LABELS) == ["", "a cat.", "A rug; a cat; the end."]
    assert region_texts(THREE, LABELS, legacy=True) == ["", "a cat.", "A rug.; a cat.; the end."]
    for legacy in (False, True):
        with pytest.raises(DataError, match="2 descriptions for 3 boxes"):
            region_texts(THREE, LABELS[:2], legacy=legacy)


def test_what_fits_is_one_text() -> None:
    asked: list[str] = []
    made = spread_texts(THREE, LABELS, fits(8, asked))
    assert [each.text for each in made] == ["", "a cat.", "A rug; a cat; the end."]
    assert [each.objects for each in made] == THREE
    assert [each.region for each in made] == [0, 1, 2]
    assert asked == ["A rug; a cat; the end."], "what is not joined of several is not asked of"


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (8, [("A rug; a cat; the end.", (0, 1, 2))]),
        (7, [("A rug; a cat.", (0, 1)), ("the end.", (2,))]),
        (5, [("A rug; a cat.", (0, 1)), ("the end.", (2,))]),
        (4, [("A rug.", (0,)), ("a cat.", (1,)), ("the end.", (2,))]),
        (1, [("A rug.", (0,)), ("a cat.", (1,)), ("the end.", (2,))]),
    ],
)
def test_as_many_objects_a_text_as_fit_in_their_order(words: int, wanted: list[tuple[str, tuple[int, ...]]]) -> None:
    made = spread_texts(THREE[2:], LABELS, fits(words))
    assert [(each.text, each.objects.members) for each in made] == wanted
    assert {each.region for each in made} == {0}
    ious = dict(zip(THREE[2].members, THREE[2].ious, strict=True))
    assert all(each.objects.ious == tuple(ious[member] for member in each.objects.members) for each in made)


def test_one_that_is_too_long_alone_takes_no_others_place() -> None:
    region = Region((0, 1, 2, 3), (1.0,) * 4)
    made = spread_texts([region], ["a", "far too long a text", "b", "c"], fits(3))
    assert [each.text for each in made] == ["a", "far too long a text", "b; c"]


@pytest.mark.parametrize("silent", ["", ";", "...", "…", "; ;", " - _ ", "\uff1b.", "(!)"])
def test_a_description_of_signs_alone_is_none(silent: str) -> None:
    region = Region((0, 1, 2), (1.0, 0.5, 0.25))
    assert [each.text for each in spread_texts(THREE, [silent] * 3, fits(9))] == ["", "", ""]
    assert spread_texts([region], [silent] * 3, fits(0)) == [RegionText("", region, 0)]
    for place in range(3):
        labels = [silent] * 3
        labels[place] = "a cat."
        objects = Region((place,), (region.ious[place],))
        assert spread_texts([region], labels, fits(9)) == [RegionText("a cat.", objects, 0)]
    first, last = Region((0,), (1.0,)), Region((2,), (0.25,))
    both = RegionText("A rug; the end.", Region((0, 2), (1.0, 0.25)), 0)
    assert spread_texts([region], ["A rug.", silent, "the end."], fits(9)) == [both]
    apart = [RegionText("A rug.", first, 0), RegionText("the end.", last, 0)]
    assert spread_texts([region], ["A rug.", silent, "the end."], fits(2)) == apart


def test_a_picture_sign_is_a_description() -> None:
    assert region_texts(THREE[1:2], ["", "\N{DOG FACE}", ""]) == ["\N{DOG FACE}"]
    assert region_texts(THREE[1:2], ["", "7", ""]) == ["7"]


def test_each_box_needs_a_description() -> None:
    with pytest.raises(DataError, match="2 descriptions for 3 boxes"):
        spread_texts(THREE, LABELS[:2], fits(9))
