"""Rich-context's pipelines: their steps, what is refused before anything runs, what the published sizes would take."""

from pathlib import Path

import pytest

from atelier.errors import ConfigError
from atelier.orchestration import cached, catalogue, plan, profile, walk
from atelier.orchestration.step_checks import check_steps

PROJECT = Path(__file__).parents[2]
#: Pipeline: its recipe, its model's name, the trainable parameters of the published size.
PIPELINES = {
    "rich_context_512": ("rich_context", "rich-context", 548_150_848),
    "rich_context_sd15_512": ("rich_context:sd15", "rich-context-sd15", 45_059_008),
}
STEPS = ("base", "predecessor", "source", "download", "preprocess", "train", "convert", "judge", "sample", "evaluate",
         "evaluate_layouts", "register", "report")  # fmt: skip
LABELLED = {"pictures": "s3://b/images/*.jpg", "boxes": "s3://b/labels/label_*.json"}


@pytest.mark.parametrize("name", PIPELINES)
def test_its_steps(name: str) -> None:
    recipe, model, _ = PIPELINES[name]
    dag = catalogue.load(PROJECT, name)
    assert all(parameter.description for parameter in dag.parameters.values())
    called = list(walk.calls(dag, {"eval_batch": 3}))
    assert sorted(call.function for call in called) == sorted(STEPS)
    assert {call.parameters["recipe"] for call in called if "recipe" in call.parameters} == {recipe}
    parameters = {call.function: call.parameters for call in called}
    assert parameters["evaluate_layouts"]["batch"] == 3
    assert parameters["register"]["name"] == model
    assert cached._functions(dag).keys() == set(STEPS), "so that a plan can ask each of them"
    check_steps(dag, {})
    check_steps(dag, {"profile": "paper", **LABELLED})


def test_they_differ_in_their_defaults_alone() -> None:
    first, second = (catalogue.load(PROJECT, name).parameters for name in PIPELINES)
    assert {name for name in first if first[name] != second[name]} == {"model_name"}
    assert list(first) == list(second)


@pytest.mark.parametrize("name", PIPELINES)
def test_what_is_refused_before_anything_runs(name: str, tmp_path: Path) -> None:
    dag = catalogue.load(PROJECT, name)
    with pytest.raises(ConfigError, match="no URI for boxes"):
        check_steps(dag, {"pictures": LABELLED["pictures"]})
    with pytest.raises(ConfigError, match="there is nothing to start from"):
        check_steps(dag, {"start": str(tmp_path / "layers.pth")})
    with pytest.raises(ConfigError, match="a bar for sam_iou"):
        check_steps(dag, {"bars": '{"sam_iou": 0.5}'})


@pytest.mark.parametrize("size", ["paper", "parity"])
@pytest.mark.parametrize("name", PIPELINES)
def test_the_plan(name: str, size: str) -> None:
    given = {**LABELLED, "profile": size}
    made = plan.make(PROJECT, name, given, profile.load(PROJECT, "paper"), look_at_cache=False)
    (training,) = made.trainings
    assert training.recipe == PIPELINES[name][0]
    assert training.footprint.trainable == PIPELINES[name][2]
    assert training.stage is not None
