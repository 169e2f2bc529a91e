"""Filters: every reason, what a missing and an unreadable score mean, and what a pipeline may change."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from atelier.data.filters import Filters, changed, reason
from atelier.data.raw_example import RawExample
from atelier.errors import ConfigError

GOOD = {"NSFW": "UNLIKELY", "similarity": 0.3, "status": "success", "original_width": 641, "original_height": 480}


def example(size: tuple[int, int] = (256, 341), caption: str = "a fox", **facts: Any) -> RawExample:
    stated = {name: value for name, value in {**GOOD, **facts}.items() if value is not ...}
    return RawExample("k", b"no picture", size, caption, np.empty((0, 4)), np.empty(0), (), facts=stated)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (example(), ""),
        (example((256, 512)), ""),
        (example((255, 341)), "too small: 341×255, at least 256"),
        (example((256, 513)), "too long: 513×256"),
        (example((513, 256)), "too long: 256×513"),
        (example(NSFW="UNSURE"), "nsfw: UNSURE"),
        (example(NSFW="NSFW"), "nsfw: NSFW"),
        (example(NSFW=3), "nsfw: 3"),
        (example(similarity=0.299), "similarity: 0.299"),
        (example(similarity=float("nan")), "unreadable score: similarity nan"),
        (example(similarity=float("inf")), "unreadable score: similarity inf"),
        (example(similarity=10**400), f"unreadable score: similarity {10**400!r}"),
        (example(similarity="0.9"), "unreadable score: similarity '0.9'"),
        (example(similarity=True), "unreadable score: similarity True"),
        (example(similarity=None, NSFW=None), ""),
        (example(similarity=..., NSFW=...), ""),
        (example(punsafe=0.1, pwatermark=0.5), ""),
        (example(punsafe=0.11), "punsafe: 0.11"),
        (example(pwatermark=0.51), "pwatermark: 0.51"),
        (example(status="failed_to_resize"), "status: failed_to_resize"),
        (example(status=...), ""),
        (example(caption=" \n"), "empty caption"),
        (example(caption="写真 狐"), ""),
    ],
)
def test_reasons(given: RawExample, why: str) -> None:
    """The picture of none of them can be decoded: nothing is."""
    assert reason(given, Filters(), 256) == why


def test_thresholds() -> None:
    assert reason(example((100, 100)), Filters(min_side=100), 256) == ""
    assert reason(example((100, 100)), Filters(min_side=101), 64) == "too small: 100×100, at least 101"
    assert reason(example(NSFW="UNSURE"), Filters(nsfw=("UNLIKELY", "UNSURE")), 256) == ""
    assert reason(example(caption=""), Filters(empty_captions=True), 256) == ""
    scored = Filters(unscored=False)
    assert reason(example(), scored, 256) == ""
    assert reason(example(similarity=None), scored, 256) == "no score: similarity"
    assert reason(example(NSFW=...), scored, 256) == "no score: NSFW"
    assert reason(example(NSFW=..., punsafe=0.01), scored, 256) == ""


def test_bands_around_a_picture_are_seen_by_its_original() -> None:
    proportions = Filters(same_proportions=True)
    assert reason(example((256, 342)), proportions, 256) == ""  # 641×480 in whole pixels
    assert reason(example((256, 256)), proportions, 256) == "other proportions: 256×256"
    assert reason(example((256, 256)), Filters(), 256) == ""
    assert reason(example((256, 256), original_width=None), proportions, 256) == ""


def test_what_cleaning_leaves_of_a_caption_decides_for_t5() -> None:
    """DeepFloyd's rules, which CrossFlow's T5 models were trained with, take Chinese characters out."""
    t5 = Filters(for_t5=True)
    assert reason(example(caption="写真 狐"), t5, 256) == "nothing left of the caption: 写真 狐"
    assert reason(example(caption="лиса в снегу"), t5, 256) == ""
    assert reason(example(caption="https://example.com/a.jpg"), t5, 256).startswith("nothing left")


def test_a_pipeline_changes_fields() -> None:
    own = Filters(min_similarity=0.28)
    assert changed(own, "") == own
    assert changed(own, '{"min_side": 512, "nsfw": ["UNLIKELY", "UNSURE"]}') == replace(
        own, min_side=512, nsfw=("UNLIKELY", "UNSURE")
    )
    for wrong in ("{", "[1]", '{"min_sides": 1}', '{"min_side": -1}', '{"max_aspect": "wide"}', '{"nsfw": 3}'):
        with pytest.raises(ConfigError, match="filters "):
            changed(own, wrong)
