"""The report step on the outputs of a small made-up run: real digits and manifests, synthetic curves."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from atelier.data import digits
from atelier.data.digits_sa1b import write_sa1b
from atelier.recipes.registry import get
from atelier.steps import report
from atelier.steps.runtime import StepContext, run_step
from atelier.storage.manifest import FileEntry, Manifest


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Manifest]:
    """The manifests that the report is made from, each of a real step."""
    monkeypatch.setenv("ATELIER_PROJECT", str(tmp_path))
    monkeypatch.delenv("ATELIER_RUN_DIR", raising=False)
    artifacts = str(tmp_path / "artifacts")
    rng = np.random.default_rng(0)
    per_sample: list[dict[str, Any]] = []

    def step(name: str, kind: str, inputs: dict[str, Manifest], produce: Any, **params: Any) -> Manifest:
        def work(ctx: StepContext) -> tuple[str, dict[str, Any]]:
            return kind, produce(ctx.out.path) or {}

        return run_step(
            name=name,
            version=1,
            module="atelier.steps.report",
            produce=work,
            inputs=inputs,
            params=params,
            artifacts=artifacts,
        )

    def raw(folder: Path) -> None:
        write_sa1b(folder, images=16, tars=1, seed=0)

    def training(folder: Path) -> dict[str, Any]:
        steps = range(10, 2010, 10)
        (folder / "metrics.jsonl").write_text(
            "".join(
                json.dumps(
                    {
                        "step": s,
                        "loss": 0.08 + 0.9 * math.exp(-s / 300) * (1 + 0.2 * rng.normal()) ** 2,
                        "samples_per_s": 180 + 8 * rng.normal(),
                        "seconds": s / 4,
                    }
                )
                + "\n"
                for s in steps
            )
        )
        (folder / "gauges.jsonl").write_text(
            "".join(
                json.dumps(
                    {
                        "step": s,
                        **{
                            f"{block}.attn": 0.29 + 0.4 * rank * (1 - math.exp(-s / 700))
                            for rank, block in enumerate(
                                ["down_blocks.1.attentions.0", "mid_block", "up_blocks.0.attentions.1"]
                            )
                        },
                    }
                )
                + "\n"
                for s in steps
            )
        )
        (folder / "validation.jsonl").write_text(
            "".join(
                json.dumps({"step": s, "ink_in_boxes": 1 - 0.5 * math.exp(-s / 600), "ink_in_boxes_ungrounded": 0.5})
                + "\n"
                for s in (250, 500, 1000, 2000)
            )
        )
        (folder / "previews").mkdir()
        for number in (1, 250, 500, 1000, 2000):
            noise = rng.normal(0, 90 * math.exp(-number / 400), (64, 256, 3))
            grid = np.concatenate([_canvas(rng, place)[0] for place in range(4)], axis=1)
            Image.fromarray(np.clip(grid + noise, 0, 255).astype(np.uint8)).save(
                folder / f"previews/step-{number:06d}.png"
            )
        return {"parameters": {"trainable": 1_190_000, "frozen": 2_760_000}}

    def samples(folder: Path) -> None:
        for which in ("grounded", "ungrounded"):
            (folder / which).mkdir()
        entries = []
        for number in range(30):
            image, layout = _canvas(rng, number)
            Image.fromarray(image).save(folder / f"grounded/{number:03d}.png")
            Image.fromarray(_canvas(rng, number + 500)[0]).save(folder / f"ungrounded/{number:03d}.png")
            entries.append(
                {
                    "prompt": digits.caption(layout),
                    "boxes": [list(map(float, box)) for box, _ in layout],
                    "phrases": [digits.phrase(label) for _, label in layout],
                    "seed": number,
                    "labels": [int(label) for _, label in layout],
                    "grounded": f"grounded/{number:03d}.png",
                    "ungrounded": f"ungrounded/{number:03d}.png",
                }
            )
            asked = entries[-1]["labels"]
            per_sample.append({"read": asked, "read_ungrounded": [10] * len(asked)})
        (folder / "samples.json").write_text(json.dumps(entries))

    metrics = {
        "layout_accuracy": 0.893,
        "layout_accuracy_ungrounded": 0.021,
        "layout_fill": 0.981,
        "layout_fill_ungrounded": 0.11,
        "ink_in_boxes": 0.986,
        "ink_in_boxes_ungrounded": 0.58,
    }
    bars = {"layout_accuracy": 0.8, "layout_fill": 0.95, "ink_in_boxes": 0.95}

    def evaluation(folder: Path) -> dict[str, Any]:
        (folder / "metrics.json").write_text(
            json.dumps({"metrics": metrics, "bars": bars, "passed": True, "per_sample": per_sample})
        )
        return {"metrics": metrics, "passed": True}

    def marker(folder: Path) -> None:
        (folder / "weights.safetensors").write_bytes(bytes(2000))

    found = {"raw": step("download", "raw", {}, raw)}
    found["base"] = step("base", "base", {}, marker, recipe="igligen_xl", profile="laptop")
    found["shards"] = step(
        "preprocess",
        "shards",
        {"raw": found["raw"], "base": found["base"]},
        lambda folder: {"samples": 1998, "quarantined": {"not a JPEG": 2}, "filtered": {"nsfw": 31}},
    )
    found["training"] = step(
        "train",
        "training",
        {"shards": found["shards"], "base": found["base"]},
        training,
        recipe="igligen_xl",
        profile="laptop",
        steps=2000,
        learning_rate=2e-3,
    )
    found["model"] = step("convert", "model", {"training": found["training"]}, marker)
    found["samples"] = step("sample", "samples", {"model": found["model"]}, samples, seed=0)
    found["evaluation"] = step("evaluate", "evaluation", {"samples": found["samples"]}, evaluation)
    found["registration"] = step(
        "register",
        "registration",
        {"model": found["model"]},
        lambda folder: {"name": "igligen-xl", "version": 1, "aliases": "champion"},
    )
    return found


def _canvas(rng: np.random.Generator, number: int) -> tuple[np.ndarray, Any]:
    layout = digits.layout_random(rng)
    return digits.draw(rng, layout, digits.split().canvas, (64, 64)), layout


def test_page_is_one_self_contained_file_that_shows_everything(made: dict[str, Manifest], tmp_path: Path) -> None:
    artifacts = str(tmp_path / "artifacts")
    manifest = report.run(**made, title="IGLIGEN-XL <512>", artifacts=artifacts)
    page = (Path(manifest.uri) / "report.html").read_text()
    assert len(page) < 3_000_000
    for outside in ("http://", "https://", "<script", "@import", "url("):
        assert outside not in page
    assert "IGLIGEN-XL &lt;512&gt;" in page
    assert "passed its bars" in page
    assert "89.3 %" in page
    assert "without grounding 2.1 %" in page
    assert "igligen-xl" in page
    assert "not a JPEG" in page
    assert "filtered out: nsfw" in page
    assert "1.19 M trained parameters on 2.76 M frozen ones" in page
    assert "1 of 1 right" in page
    assert "0 of 1 right" in page
    assert "gates, attn" in page
    assert "up 0 1" in page
    assert page.count("ink_in_boxes, while training") == 1
    assert '<span><i style="background:var(--hue-1)"></i>without grounding</span>' in page
    assert page.count('class="pair"') == report.PAIRS
    assert page.count('class="single"') == report.CANVASES
    assert page.count("step 2,000") == 1
    assert "What it began with" not in page, "it began by itself"
    for step in ("download", "preprocess", "train", "convert", "sample", "evaluate", "register"):
        assert f"<b>{step}</b>" in page
    assert made["training"].digest.removeprefix("sha256:")[:12] in page
    assert "torch 2.13" in page


def test_what_the_training_began_with_is_on_the_page(made: dict[str, Manifest], tmp_path: Path) -> None:
    account = {
        "origin": "models:/crossflow-256-clip-dimr/3",
        "share": 0.861,
        "taken": ["stages.0.a"],
        "fresh": [],
        "misshapen": ["context_encoder.w (2,) for (3,)"],
        "unused": [f"old.{number}" for number in range(500)],
    }
    (Path(made["training"].uri) / "start.json").write_text(json.dumps(account))
    files = (*made["training"].files, FileEntry("start.json", len(json.dumps(account)), ""))
    training = dataclasses.replace(made["training"], files=files)
    manifest = report.run(**(made | {"training": training}), title="it", artifacts=str(tmp_path / "artifacts"))
    page = (Path(manifest.uri) / "report.html").read_text()
    assert "86.1 % of its numbers are those of <code>models:/crossflow-256-clip-dimr/3</code>" in page
    for said in ("stages.0.a", "context_encoder.w (2,) for (3,)", "old.0<", "and 100 more", ">500<"):
        assert said in page


def test_report_of_a_run_without_curves_or_boxes_is_still_a_page(made: dict[str, Manifest], tmp_path: Path) -> None:
    for name in ("metrics.jsonl", "gauges.jsonl"):
        (Path(made["training"].uri) / name).write_text("")
    bare = Manifest(kind="training", uri=made["training"].uri, files=(), metadata={}, made_by={})
    manifest = report.run(**(made | {"training": bare}), title="bare", artifacts=str(tmp_path / "artifacts"))
    page = (Path(manifest.uri) / "report.html").read_text()
    assert "Curves" not in page
    assert "While it learned" not in page


def test_a_text_models_page_speaks_of_no_boxes_that_went_in(made: dict[str, Manifest], tmp_path: Path) -> None:
    """CrossFlow's control is its null velocity, and it has no gates."""
    made = made | {
        "samples": dataclasses.replace(made["samples"], metadata=made["samples"].metadata | {"control": "null"})
    }
    found = report.run(**made, title="CrossFlow", artifacts=str(tmp_path / "artifacts"))
    page = (Path(found.uri) / "report.html").read_text()
    assert "by the null velocity alone (guidance 0)" in page
    assert "of the null velocity 2.1 %" in page
    assert "boxes and phrases went into the model" not in page
    assert {get(name, "laptop").control for name in ("crossflow", "gligen_coco", "igligen_xl")} == {"null", "grounding"}
