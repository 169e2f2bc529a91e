"""Bars: at least or at most, what is refused, and what a page says of them."""

import math

import pytest

from atelier.errors import ConfigError
from atelier.evaluation import bars
from atelier.evaluation.bars import Bar
from atelier.evaluation.report import Report, page
from atelier.recipes.crossflow import PROFILES, Config


def test_a_number_means_the_metrics_own_direction() -> None:
    found = bars.read({"layout_accuracy": 0.8, "fid": 12, "clip_score": {"min": 0.25, "max": 0.4}})
    assert found == {"layout_accuracy": Bar(min=0.8), "fid": Bar(max=12), "clip_score": Bar(min=0.25, max=0.4)}
    assert bars.read(bars.written(found)) == found
    assert bars.written(found)["fid"] == {"max": 12.0}, "whoever reads it needs not know what FID is"
    good = {"layout_accuracy": 0.8, "fid": 12.0, "clip_score": 0.3}
    assert bars.passed(found, good)
    for worse in ({"fid": 12.01}, {"layout_accuracy": 0.79}, {"clip_score": 0.41}, {"fid": math.nan}):
        assert not bars.passed(found, good | worse), worse
    assert not bars.passed(found, {name: value for name, value in good.items() if name != "fid"}), "not measured"
    assert bars.passed({}, {})


def test_a_recipe_has_them_and_a_run_changes_them() -> None:
    own = PROFILES["laptop"].bars
    assert own == {"layout_accuracy": Bar(min=0.8)}
    assert Config.model_validate(PROFILES["laptop"].model_dump()).bars == own
    assert bars.changed(own, bars.changes('{"fid": 30}')) == own | {"fid": Bar(max=30)}
    assert bars.changed(own, bars.changes('{"layout_accuracy": null}')) == {}
    assert bars.changes(" ") == {}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"fid": {"min": 12}}', "fid is better when it is lower"),
        ('{"fidd": 12}', "there is no metric fidd"),
        ('{"fid": {}}', "has neither min nor max"),
        ('{"clip_score": {"min": 0.4, "max": 0.3}}', "min 0.4 is above max 0.3"),
        ('{"fid": {"most": 12}}', "Extra inputs"),
        ('{"fid": "low"}', "fid"),
        ('{"fid": true}', "fid"),
        ('{"fid": NaN}', "bars"),
        ("[1]", "should be an object"),
        ("fid=12", "Invalid JSON"),
    ],
)
def test_what_is_no_bar(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        bars.changes(text)
    assert said in str(caught.value)


def test_the_page_says_in_which_direction() -> None:
    report = Report(
        "t", "s", {"fid": 30.5, "layout_accuracy": 0.9}, bars.read({"fid": 12, "layout_accuracy": 0.8}), passed=False
    )
    text = page(report)
    assert '<span class="verdict bad">&gt; 12</span>' in text
    assert '<span class="verdict good">≥ 80.0 %</span>' in text
    assert '<td class="number">≤ 12</td>' in text
    assert "misses its bars" in text
    assert '<span class="verdict bad">&gt; 1</span>' in page(
        Report("t", "s", {"fid": 30.5}, bars.read({"fid": 1.0}), passed=False)
    ), "a distance is no share"
