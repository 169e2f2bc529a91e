"""The numbers of a set of labels, by hand."""

from collections import Counter

import pytest

from atelier.annotate.rich_annotator import DescribedObject, RichAnnotation
from atelier.annotate.rich_statistics import counted, fog, statistics, syllables, words


def test_words() -> None:
    assert words("It's a well-known cat, 3 m tall – a cat_dog!") == [
        "it's", "a", "well-known", "cat", "3", "m", "tall", "a", "cat", "dog",
    ]  # fmt: skip
    assert words(" .;-") == []


@pytest.mark.parametrize(
    ("word", "count"),
    [("cat", 1), ("table", 2), ("stripe", 1), ("umbrella", 3), ("photography", 4), ("the", 1), ("rhythm", 1), ("b", 1)],
)
def test_syllables(word: str, count: int) -> None:
    assert syllables(word) == count


def test_the_fog_index() -> None:
    # Two sentences of three words, one of six hard: 0.4 · (3 + 100 / 6).
    assert fog("A red umbrella. It is open!") == pytest.approx(0.4 * (3 + 100 / 6))
    assert fog("a cat sits on a mat") == pytest.approx(2.4)
    assert fog("... ") == 0


def test_counts_add_up() -> None:
    box = (0, 0, 5, 5)
    first = RichAnnotation(
        ("cat",),
        "written",
        (
            DescribedObject(box, 1.0, "cat", "a black cat", True, fit=27.6),
            DescribedObject(box, 0.5, "", "the cat by day", True, fit=-0.2),
            DescribedObject(box, 0.4, "dog", "dog", False, fit=27.1),
        ),
        2,
    )
    counts = Counter(counted(first, captioned=False))
    assert counts == {
        "objects 3": 1, "words 3": 1, "words 4": 1, "words 1": 1, "written": 2, "called by their tag": 1,
        "fit 27": 2, "fit -1": 1, "unique 7": 1, "fog 2": 1, "captions written": 1,
    }  # fmt: skip
    counts.update(counted(RichAnnotation((), "", (), 0), captioned=True))
    counts.update(counted(RichAnnotation((), "", (), 0), captioned=False))
    made = statistics(counts)
    assert made["counts"] == {
        "written": 2, "called by their tag": 1, "captions written": 1, "captions given": 1, "captions missing": 1
    }  # fmt: skip
    assert made["means"] == {"objects": 1, "words": pytest.approx(2.667), "unique": 7, "fog": 1.25, "fit": 18.167}
    assert made["histograms"]["fit"] == {"step": 1.0, "counts": [[-1.0, 1], [27.0, 2]]}
    assert made["histograms"]["fog"] == {"step": 0.5, "counts": [[1.0, 1]]}
    assert statistics({}) == {"means": {}, "counts": {}, "histograms": {}}
