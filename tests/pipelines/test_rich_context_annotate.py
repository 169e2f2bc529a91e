"""The pipeline that labels for Rich-context: its steps, and what is refused before anything runs."""

from pathlib import Path

import pytest

from atelier.errors import ConfigError
from atelier.orchestration import cached, catalogue, walk
from atelier.orchestration.step_checks import check_steps
from tests.annotate import tiny

PROJECT = Path(__file__).parents[2]
NAME = "rich_context_annotate"
STEPS = ("annotators", "source", "download", "annotate", "label_report")


def test_its_steps() -> None:
    dag = catalogue.load(PROJECT, NAME)
    assert all(parameter.description for parameter in dag.parameters.values())
    called = {call.function: call for call in walk.calls(dag, {"caption_batch_size": 3})}
    assert sorted(called) == sorted(STEPS)
    for step in ("annotators", "annotate"):
        assert called[step].parameters["recipe"] == "rich_context"
    assert called["annotate"].parameters["caption_batch_size"] == 3
    assert called["source"].parameters["form"] == "rich-context-images"
    assert cached._functions(dag).keys() == set(STEPS), "so that a plan can ask each of them"
    given = {role: tiny.folders()[role] for role in ("tagger", "detector", "captioner")}
    check_steps(dag, given)
    check_steps(dag, {**given, "profile": "paper", "pictures": "s3://b/images/*.jpg"})


def test_what_is_refused_before_anything_runs() -> None:
    dag = catalogue.load(PROJECT, NAME)
    given = {role: tiny.folders()[role] for role in ("tagger", "detector", "captioner")}
    with pytest.raises(ConfigError, match="no URI for pictures"):
        check_steps(dag, {**given, "captions": "s3://b/captions.json"})
