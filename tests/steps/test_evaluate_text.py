"""The step evaluate_text: beside a judge's metrics, FID and CLIP score where their yardsticks are given."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from atelier.errors import ConfigError
from atelier.evaluation import gaussian
from atelier.steps import evaluate_text, register
from atelier.steps.runtime import StepContext, run_step
from atelier.storage.inputs import InputFolder
from atelier.storage.manifest import Manifest
from atelier.tracking import service as tracking
from tests.annotate import tiny
from tests.evaluation import text_models

NOTHING: dict[str, Any] = {
    "captions": "", "count": 0, "fid_weights": "", "fid_statistics": "", "clip": "", "steps": 1, "guidance": 1.0,
    "batch": 4, "bars": "", "seed": 0, "recipe": "crossflow", "profile": "laptop",
}  # fmt: skip


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("ATELIER_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("ATELIER_PROJECT", str(tmp_path / "project"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")


def made(name: str, artifacts: str, produce: Any) -> Manifest:
    def work(ctx: StepContext) -> tuple[str, dict[str, Any]]:
        return name, produce(ctx.out.path) or {}

    return run_step(
        name=name, version=1, module="atelier.steps.judge", produce=work, inputs={}, params={}, artifacts=artifacts
    )


@pytest.fixture
def judged(tmp_path: Path) -> dict[str, Any]:
    """A model and what a judge found of it."""
    artifacts = str(tmp_path / "artifacts")

    def verdict(folder: Path) -> dict[str, Any]:
        found = {"metrics": {"layout_accuracy": 0.9}, "bars": {"layout_accuracy": 0.8}, "passed": True}
        (folder / "metrics.json").write_text(json.dumps(found | {"per_sample": []}))
        return found | {"layouts": 4}

    return {
        "model": made("model", artifacts, lambda folder: text_models.crossflow(folder) and None),
        "evaluation": made("evaluation", artifacts, verdict),
        "artifacts": artifacts,
    }


def test_without_yardsticks_it_passes_on_and_says_so(judged: dict[str, Any]) -> None:
    found = evaluate_text.run(**judged, **NOTHING)
    assert found.kind == "evaluation"
    assert found.metadata["metrics"] == {"layout_accuracy": 0.9}
    assert found.metadata["passed"] is True
    assert sorted(found.metadata["skipped"]) == ["clip_score", "fid"]
    assert [entry.path for entry in found.files] == ["metrics.json"]
    written = json.loads(InputFolder(found).fetch("metrics.json").read_text())
    assert "no FID statistics" in written["skipped"]["fid"]
    assert written["per_sample"] == []


def test_with_yardsticks(judged: dict[str, Any], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    gaussian.write(gaussian.Gaussian(rng.normal(size=2048), np.eye(2048)), tmp_path / "stats.npz")
    tiny.clip(tmp_path / "clip")
    given = NOTHING | {
        "captions": str(text_models.captions(tmp_path / "captions.json")), "count": 4, "clip": str(tmp_path / "clip"),
        "fid_weights": str(text_models.inception_weights(tmp_path / "w.safetensors")),
        "fid_statistics": f"file://{tmp_path}/stats.npz",
    }  # fmt: skip
    found = evaluate_text.run(**judged, **given)
    assert found.metadata["metrics"].keys() == {"layout_accuracy", "fid", "clip_score"}
    assert found.metadata["skipped"] == {}
    assert sorted(entry.path for entry in found.files) == ["evaluation.html", "evaluation.json", "metrics.json"]
    written = json.loads(InputFolder(found).fetch("metrics.json").read_text())
    assert "rank-deficient" in written["warnings"][0]
    fid = found.metadata["metrics"]["fid"]
    assert (found.metadata["passed"], found.metadata["bars"]) == (True, {"layout_accuracy": 0.8})
    for bar, passed in ((fid + 1, True), (fid - 1, False)):
        gated = evaluate_text.run(**judged, **given | {"bars": json.dumps({"fid": bar})})
        assert gated.metadata["passed"] is passed
        assert gated.metadata["bars"] == {"layout_accuracy": 0.8, "fid": {"max": bar}}
        register.run(model=judged["model"], evaluation=gated, training=judged["model"], name="gated",
                     artifacts=judged["artifacts"])  # fmt: skip
        version = tracking.client().get_model_version("gated", "1")
        assert version.tags["atelier.passed"] == str(passed).lower()
        assert json.loads(version.tags["atelier.bars"])["fid"] == {"max": bar}


def test_edited_prompts_and_another_clip_are_measured_anew(judged: dict[str, Any], tmp_path: Path) -> None:
    prompts, weights = tmp_path / "prompts.txt", tmp_path / "clip/model.safetensors"
    prompts.write_text("a two\na six\n")
    tiny.clip(weights.parent)
    given = NOTHING | {"captions": str(prompts), "clip": str(weights.parent)}
    keys = [evaluate_text.run(**judged, **given).made_by["key"]]
    assert evaluate_text.run(**judged, **given).made_by["key"] == keys[0]
    prompts.write_text("a one\n")
    found = evaluate_text.run(**judged, **given)
    assert json.loads(InputFolder(found).fetch("evaluation.json").read_text())["settings"]["pictures"] == 1
    keys.append(found.made_by["key"])
    os.utime(weights, ns=(1, 1))
    keys.append(evaluate_text.run(**judged, **given).made_by["key"])
    assert len(set(keys)) == 3


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"fid_weights": "w.pth"}, "FID has weights and no reference"),
        ({"fid_statistics": "s.npz"}, "FID has a reference and no weights"),
        ({"clip": "org/clip"}, "no captions to draw"),
        ({"count": -1}, "count=-1"),
        ({"bars": '{"fid": 12}'}, "a bar for fid, and nothing to measure it with"),
        ({"bars": '{"fid": {"min": 12}}'}, "fid is better when it is lower"),
    ],
)
def test_what_is_refused_before_anything_runs(judged: dict[str, Any], given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        evaluate_text.run(**judged, **NOTHING | given)
    assert said in str(caught.value)
