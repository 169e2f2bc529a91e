"""The page of labels: its charts hold the counts, its pictures the boxes, the outlines and what was said."""

import re

import numpy as np
from PIL import Image

from atelier.annotate.rich_page import Labelled, page, tinted
from atelier.annotate.rich_statistics import statistics
from atelier.data.rich_label import make_label, make_object
from atelier.evaluation.figures import histogram


def labelled() -> Labelled:
    mask = np.zeros((40, 60), bool)
    mask[10:20, 30:45] = True
    objects = [
        make_object((30, 10, 45, 20), "cat", 1, 'a cat that says "<b>"', 0.5, mask),
        make_object((0, 0, 6, 8), "dog", 2, "a dog", 0.25),
    ]
    return Labelled(Image.new("RGB", (60, 40), "black"), make_label("a.png", 7, "a cat & a dog", objects, "test"))


def test_the_page() -> None:
    made = statistics({"objects 2": 3, "objects 0": 1, "words 5": 2, "words 90": 1, "fog 3": 4, "outlined": 1234})
    text = page("Labels", "4 pictures", made, [labelled()])
    assert "http" not in text.replace("http-equiv", "")  # nothing is fetched
    assert "a cat that says &quot;&lt;b&gt;&quot;" in text
    assert "a cat &amp; a dog" in text
    assert '<td>outlined</td><td class="number">1,234</td>' in text
    charts = re.findall(r"<figure.*?</figure>", text, re.S)
    assert [re.search(r"<figcaption>(.*?) <", chart)[1] for chart in charts] == [  # type: ignore[index]
        "Words of a description", "Objects of a picture", "Gunning fog of a picture",
    ]  # fmt: skip
    words, objects, fog = charts
    assert re.findall(r"<title>(.*?)</title>", words) == ["3 to 6: 2", "90 to 93: 1"]  # 86 bins are too many bars
    assert re.findall(r"<title>(.*?)</title>", objects) == ["0: 1", "2: 3"]
    assert re.findall(r"<title>(.*?)</title>", fog) == ["1.5 to 2: 4"]
    assert "mean 1.5" in objects
    many = histogram("x", [(0, 15_000), (1, 2_000_000)], 1.0, "y")
    assert {">500k<", ">1.5M<", ">2M<"} <= set(re.findall(r">[\d.kM]+<", many))
    # Boxes as shares of 100 × 66.67.
    assert 'x="50.00" y="16.67" width="25.00" height="16.67" class="box"' in text


def test_an_outline_is_tinted() -> None:
    pixels = np.asarray(tinted(labelled()))
    assert (pixels[10:20, 30:45] > 0).any(axis=2).all()
    assert pixels.any(axis=2).sum() == 150


def test_nothing_was_labelled() -> None:
    text = page("Labels", "no pictures", statistics({}), [])
    assert "<figure" not in text
    assert "The first 0" in text
