"""Rich-context's pipeline: its steps, what is refused before anything runs, and what the published size would take."""

from pathlib import Path

import pytest

from atelier.errors import ConfigError
from atelier.orchestration import cached, catalogue, plan, profile, walk
from atelier.orchestration.step_checks import check_steps

PROJECT = Path(__file__).parents[2]
NAME = "rich_context_512"
STEPS = ("base", "predecessor", "source", "download", "preprocess", "train", "convert", "judge", "sample", "evaluate",
         "evaluate_layouts", "register", "report")  # fmt: skip
LABELLED = {"pictures": "s3://b/images/*.jpg", "boxes": "s3://b/labels/label_*.json"}


def test_its_steps() -> None:
    dag = catalogue.load(PROJECT, NAME)
    assert all(parameter.description for parameter in dag.parameters.values())
    called = list(walk.calls(dag, {"eval_batch": 3}))
    assert sorted(call.function for call in called) == sorted(STEPS)
    assert {call.parameters["recipe"] for call in called if "recipe" in call.parameters} == {"rich_context"}
    (measuring,) = [call for call in called if call.function == "evaluate_layouts"]
    assert measuring.parameters["batch"] == 3
    assert cached._functions(dag).keys() == set(STEPS), "so that a plan can ask each of them"
    check_steps(dag, {})
    check_steps(dag, {"profile": "paper", **LABELLED})


def test_what_is_refused_before_anything_runs(tmp_path: Path) -> None:
    dag = catalogue.load(PROJECT, NAME)
    with pytest.raises(ConfigError, match="no URI for boxes"):
        check_steps(dag, {"pictures": LABELLED["pictures"]})
    with pytest.raises(ConfigError, match="there is nothing to start from"):
        check_steps(dag, {"start": str(tmp_path / "layers.pth")})
    with pytest.raises(ConfigError, match="a bar for sam_iou"):
        check_steps(dag, {"bars": '{"sam_iou": 0.5}'})


@pytest.mark.parametrize("size", ["paper", "parity"])
def test_the_plan(size: str) -> None:
    given = {**LABELLED, "profile": size}
    made = plan.make(PROJECT, NAME, given, profile.load(PROJECT, "paper"), look_at_cache=False)
    (training,) = made.trainings
    assert training.footprint.trainable == 548_150_848
    assert training.stage is not None
