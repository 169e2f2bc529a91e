"""Cleaning beyond the golden pairs: tags, text gone wrong on its way, and what must stay."""

import pytest

from atelier.data.t5_captions import clean_caption


@pytest.mark.parametrize(
    ("given", "cleaned"),
    [
        ("<b>A cat</b> on a <i>mat</i>", "a cat on a mat"),
        ("the ﬁnal ﬂight", "the final flight"),
        ("ＦＵＬＬ width", "full width"),
        ("a naïve café, ½ price", "a naïve café, price"),
        ("кошка на окне", "кошка на окне"),
        ("七つの海", "つの"),  # CJK ideographs go, as upstream's rule has it
        ("a < b & c > d", "a < b c > d"),
        ("3 < 4", "3 < 4"),
    ],
)
def test_cleaned(given: str, cleaned: str) -> None:
    assert clean_caption(given) == cleaned


def test_cleaning_is_total() -> None:
    """No text makes it fail, and what is clean stays."""
    for text in (
        "",
        " ",
        "\x00\ud800".encode("utf-8", "surrogatepass").decode("utf-8", "replace"),
        "&#x110000;",
        "<" * 50,
    ):
        again = clean_caption(text)
        assert clean_caption(again) == again
