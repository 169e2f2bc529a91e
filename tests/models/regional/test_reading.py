"""Boxes and descriptions of many pictures to tokens: long regions, and each text encoded and asked of once."""

from collections.abc import Sequence

import numpy as np
import pytest

from atelier.models.regional.reading import Reader, read_regions
from atelier.models.regional.tokens import EncodedTexts
from tests.models.regional.layouts import LENGTH, READER, WIDTH, encode, random_boxes, word_ids

NESTED = np.array([[0.0, 0.0, 1.0 - 0.1 * n, 1.0 - 0.1 * n] for n in range(6)])
"""Six boxes, each in the one before: the last one's cells are of all six."""

SENTENCES = [" ".join(f"word{n}x{m}" for m in range(20)) for n in range(6)]


def longer(length: int) -> Reader:
    """``READER`` with room for so many ids, and a state that is the very id."""

    def read(texts: Sequence[str]) -> EncodedTexts:
        ids = np.full((len(texts), length), 2)
        ids[:, 0] = 1
        for row, text in zip(ids, texts, strict=True):
            words = word_ids(text)[: length - 2]
            row[1 : 1 + len(words)] = words
        return EncodedTexts(ids, ids[..., None].astype(np.float32))

    return READER._replace(encode=read, fits=lambda text: len(word_ids(text)) <= length - 2)


def of_all_six(reader: Reader, legacy: bool) -> dict[int, list[int]]:
    """The ids that stand with each object's box in the region of all six."""
    ((found, tokens),) = read_regions([(NESTED, SENTENCES)], 20, 20, reader, legacy=legacy)
    number = [region.members for region in found.regions].index(tuple(range(6)))
    rows = tokens.region == number
    assert not (tokens.boxes[rows] == -1).any()
    return {
        n: tokens.text[rows][np.isclose(tokens.boxes[rows], box, atol=1e-6).all(1), 0].astype(int).tolist()
        for n, box in enumerate(NESTED)
    }


def test_six_objects_of_twenty_words_keep_all_their_words_and_boxes() -> None:
    words = {n: word_ids(sentence) for n, sentence in enumerate(SENTENCES)}
    assert of_all_six(longer(77), legacy=False) == words
    cut = of_all_six(longer(77), legacy=True)
    assert [len(cut[n]) for n in range(6)] == [20, 20, 20, 75 - 63, 0, 0], "upstream loses those behind the 77th token"
    assert all(words[n][: len(own)] == own for n, own in cut.items())


@pytest.mark.parametrize("length", [2 + 125, 2 + 124])
def test_a_text_may_be_exactly_as_long_as_the_encoder_reads(length: int) -> None:
    """6 sentences of 20 words and 5 separators."""
    counted: list[str] = []
    reader = longer(length)
    watched = reader._replace(encode=lambda texts: (counted.extend(texts), reader.encode(texts))[1])
    assert of_all_six(watched, legacy=False) == {n: word_ids(sentence) for n, sentence in enumerate(SENTENCES)}
    longest = max(len(word_ids(text)) for text in counted)
    assert longest == (125 if length == 127 else 104)


def test_every_text_is_encoded_and_asked_of_once() -> None:
    asked: list[str] = []
    encoded: list[str] = []

    def fits(text: str) -> bool:
        asked.append(text)
        return READER.fits(text)

    def watch(texts: Sequence[str]) -> EncodedTexts:
        encoded.extend(texts)
        return encode(texts)

    pictures = [(random_boxes(6), ["a b c d"] * 6)] * 3 + [(np.zeros((0, 4)), [])]
    made = read_regions(pictures, 16, 16, READER._replace(fits=fits, encode=watch))
    assert len(asked) == len(set(asked)) > 0
    assert len(encoded) == len(set(encoded)) > 0
    first, again = made[0][1], made[2][1]
    assert all(np.array_equal(one, other) for one, other in zip(first, again, strict=True))
    assert made[3][1].text.shape == (LENGTH, WIDTH)
    assert read_regions([], 4, 4, READER) == []


def test_how_much_a_box_weighs_stays_a_regions_own() -> None:
    """Spread over texts or not, a token's bias is that of its object in the region."""
    boxes, labels = NESTED, [f"a{n} b{n}" for n in range(6)]
    ((_, spread),) = read_regions([(boxes, labels)], 20, 20, longer(8), iou_weight=2.0)
    ((_, whole),) = read_regions([(boxes, labels)], 20, 20, longer(77), iou_weight=2.0)
    assert np.array_equal(spread.region, whole.region)
    assert np.array_equal(spread.bias, whole.bias)
    assert np.array_equal(spread.boxes, whole.boxes)
    assert np.array_equal(spread.text, whole.text)
    assert spread.bias.min() < -1
