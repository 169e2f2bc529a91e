"""The step evaluate_layouts: beside a judge's metrics, those of every box, of the samples and of their control."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from atelier.errors import ConfigError
from atelier.evaluation.crop_score import CropScore
from atelier.evaluation.crops import crop, pixels
from atelier.steps import evaluate, evaluate_layouts
from atelier.steps.runtime import StepContext, run_step
from atelier.storage.inputs import InputFolder
from atelier.storage.manifest import Manifest
from tests.annotate import tiny
from tests.evaluation import boxed_models

NOTHING: dict[str, Any] = {
    "clip": "", "pick": "", "pick_tokenizer": "", "sam": "", "legacy": False, "batch": 0, "bars": "",
    "recipe": "igligen_xl", "profile": "laptop",
}  # fmt: skip
BOXES = [[0.1, 0.1, 0.6, 0.6], [0.4, 0.3, 0.9, 0.8]]
PHRASES = ["a big seven", "a tiny two"]


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


def samples(folder: Path) -> None:
    """Two samples and their controls, as the step ``sample`` leaves them."""
    rng, entries = np.random.default_rng(0), []
    for number in range(2):
        entry: dict[str, Any] = {"prompt": "digits", "boxes": BOXES[: number + 1], "phrases": PHRASES[: number + 1]}
        for kind in ("grounded", "ungrounded"):
            entry[kind] = f"{kind}/{number:04d}.png"
            (folder / kind).mkdir(exist_ok=True)
            Image.fromarray(rng.integers(0, 255, (64, 64, 3)).astype(np.uint8)).save(folder / entry[kind])
        entries.append(entry)
    (folder / "samples.json").write_text(json.dumps(entries))


def verdict(folder: Path) -> dict[str, Any]:
    found = {"metrics": {"layout_accuracy": 0.9}, "bars": {"layout_accuracy": 0.8}, "passed": True}
    (folder / "metrics.json").write_text(json.dumps(found | {"per_sample": []}))
    return found | {"layouts": 2}


@pytest.fixture
def drawn(tmp_path: Path) -> dict[str, Any]:
    """Samples, and what a judge found of them."""
    artifacts = str(tmp_path / "artifacts")
    return {
        "samples": made("samples", artifacts, samples),
        "evaluation": made("evaluation", artifacts, verdict),
        "artifacts": artifacts,
    }


def test_without_models_it_passes_on_and_says_so(drawn: dict[str, Any]) -> None:
    found = evaluate_layouts.run(**drawn, **NOTHING)
    assert found.kind == "evaluation"
    assert found.metadata["metrics"] == {"layout_accuracy": 0.9}
    assert found.metadata["passed"] is True
    assert found.metadata["layouts"] == 2
    assert found.metadata["skipped"] == {
        "crop_clip": "no CLIP was given", "crop_pick": "no PickScore was given", "sam_iou": "no SAM was given"
    }  # fmt: skip
    assert [entry.path for entry in found.files] == ["metrics.json"]


def test_photographs_layouts_are_nothing_for_the_digit_judge_and_are_measured_here(
    drawn: dict[str, Any], tmp_path: Path
) -> None:
    """What the published size samples names no classes: after weeks of training the run must not end there."""

    def unlabelled(folder: Path) -> None:
        samples(folder)
        entries = json.loads((folder / "samples.json").read_text())
        (folder / "samples.json").write_text(json.dumps([entry | {"labels": []} for entry in entries]))

    place = {"recipe": "rich_context", "profile": "paper", "artifacts": drawn["artifacts"]}
    photographs = made("photographs", drawn["artifacts"], unlabelled)
    judged = evaluate.run(samples=photographs, judge=photographs, **place)
    assert judged.metadata["skipped"] == {"layout_accuracy": "the layouts name no classes for the digit judge to read"}
    assert (judged.metadata["metrics"], judged.metadata["passed"]) == ({}, True)
    given = NOTHING | place | {"clip": str(tiny.clip(tmp_path / "clip")), "bars": '{"crop_clip": 99}'}
    measured = evaluate_layouts.run(samples=photographs, evaluation=judged, **given)
    assert measured.metadata["metrics"].keys() == {"crop_clip", "crop_clip_ungrounded"}
    assert measured.metadata["passed"] is False
    assert measured.metadata["skipped"].keys() == {"layout_accuracy", "crop_pick", "sam_iou"}


def test_with_models(drawn: dict[str, Any], tmp_path: Path) -> None:
    clip, sam = str(tiny.clip(tmp_path / "clip")), str(boxed_models.sam(tmp_path / "sam"))
    given = NOTHING | {"clip": clip, "sam": sam}
    found = evaluate_layouts.run(**drawn, **given)
    assert found.metadata["metrics"].keys() == {
        "layout_accuracy", "crop_clip", "crop_clip_ungrounded", "sam_iou", "sam_iou_ungrounded"
    }  # fmt: skip
    assert found.metadata["skipped"] == {"crop_pick": "no PickScore was given"}
    assert sorted(entry.path for entry in found.files) == ["grounded.jsonl", "metrics.json", "ungrounded.jsonl"]
    score, folder = CropScore(clip), Path(drawn["samples"].uri)
    for kind, suffix in (("grounded", ""), ("ungrounded", "_ungrounded")):
        means = []
        for number in range(2):
            with Image.open(folder / f"{kind}/{number:04d}.png") as image:
                crops = [crop(image, box) for box in pixels(BOXES[: number + 1], image.size)]
                means.append(score(crops, PHRASES[: number + 1]).mean())
        assert found.metadata["metrics"][f"crop_clip{suffix}"] == pytest.approx(np.mean(means), abs=1e-4)
        rows = InputFolder(found).fetch(f"{kind}.jsonl").read_text().splitlines()
        assert [len(json.loads(row)["sam_iou"]) for row in rows] == [1, 2]
    value = found.metadata["metrics"]["crop_clip"]
    for least, passed in ((value - 1, True), (value + 1, False)):
        gated = evaluate_layouts.run(**drawn, **given | {"bars": json.dumps({"crop_clip": least})})
        assert gated.metadata["passed"] is passed
    assert evaluate_layouts.run(**drawn, **given).made_by["key"] == found.made_by["key"]
    os.utime(tmp_path / "clip/model.safetensors", ns=(1, 1))
    assert evaluate_layouts.run(**drawn, **given).made_by["key"] != found.made_by["key"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"pick_tokenizer": "clip"}, "no CLIP, no PickScore and no SAM is given"),
        ({"clip": "clip", "legacy": True}, "SAM's published box is asked for"),
        ({"clip": "clip", "batch": -1}, "batch=-1"),
        ({"clip": "clip", "bars": '{"sam_iou": 0.5}'}, "a bar for sam_iou, and nothing to measure it with"),
        ({"bars": '{"crop_pick_ungrounded": 1}'}, "a bar for crop_pick_ungrounded"),
        ({"bars": '{"crop": 1}'}, "there is no metric crop"),
    ],
)
def test_bad_parameters_are_refused(drawn: dict[str, Any], given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        evaluate_layouts.run(**drawn, **NOTHING | given)
