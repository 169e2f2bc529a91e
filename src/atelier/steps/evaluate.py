"""Evaluate: a judge reads every asked-for box, in the grounded pictures and in the control; bars decide."""

import json
from pathlib import Path
from typing import Any

from atelier.steps.runtime import StepContext, run_step
from atelier.storage.manifest import Manifest

VERSION = 1


def run(*, samples: Manifest, judge: Manifest, recipe: str, profile: str, artifacts: str) -> Manifest:
    """A manifest of kind ``evaluation``: ``metrics.json`` with metrics, bars, passed and what was read in each picture.

    Prompts without boxes (a published text-to-image model's) have nothing that the judge could read: its metrics are
    then ``skipped``, and pass where the recipe has no bars. A bar of a metric that is not measured here is not reached;
    ``evaluate_text``, which measures others, decides anew.

    Layouts that name no classes (those of photographs) are left to other steps, which is said under ``skipped``.
    """

    from atelier.recipes.registry import module_of

    def produce(ctx: StepContext) -> tuple[str, dict[str, Any]]:
        from atelier.evaluation import bars as barred
        from atelier.evaluation import judge as judges
        from atelier.evaluation import layout
        from atelier.recipes.registry import get

        asked = get(recipe, profile).config.bars
        bars = barred.written(asked)
        folder = ctx.inputs["samples"].fetch_all()
        entries = json.loads((folder / "samples.json").read_text())
        if not all(entry["labels"] for entry in entries):
            lacking = "name no classes" if any(entry["boxes"] for entry in entries) else "have no boxes"
            why = f"the layouts {lacking} for the digit judge to read"
            result = {"metrics": {}, "bars": bars, "passed": not asked, "skipped": {"layout_accuracy": why}}
            (ctx.out.path / "metrics.json").write_text(json.dumps(result, indent=1))
            return "evaluation", result | {"layouts": len(entries)}
        reader = judges.load(ctx.inputs["judge"].fetch("judge.safetensors"))
        boxes, labels = [entry["boxes"] for entry in entries], [entry["labels"] for entry in entries]
        progress = ctx.progress("judging", 2 * len(entries), "pictures")
        metrics: dict[str, float] = {}
        scores = {}
        for kind, suffix in (("grounded", ""), ("ungrounded", "_ungrounded")):
            pictures = [_pixels(folder / entry[kind]) for entry in entries]
            scores[kind] = layout.score(reader, pictures, boxes, labels)
            metrics |= layout.summary(scores[kind], suffix)
            progress.advance(len(entries))
        metrics = {name: round(value, 4) for name, value in metrics.items()}
        passed = barred.passed(asked, metrics)
        per_sample = [
            {"read": list(g.read), "read_ungrounded": list(u.read), "ink_in_boxes": round(g.ink_in_boxes, 4)}
            for g, u in zip(scores["grounded"], scores["ungrounded"], strict=True)
        ]
        result = {"metrics": metrics, "bars": bars, "passed": passed, "per_sample": per_sample}
        (ctx.out.path / "metrics.json").write_text(json.dumps(result, indent=1))
        ctx.track.log_metrics(metrics)
        return "evaluation", {"metrics": metrics, "bars": bars, "passed": passed, "layouts": len(entries)}

    return run_step(
        name="evaluate",
        version=VERSION,
        module=__name__,
        produce=produce,
        inputs={"samples": samples, "judge": judge},
        params={"recipe": recipe, "profile": profile},
        artifacts=artifacts,
        extra_modules=(module_of(recipe),),
    )


def _pixels(path: Path) -> Any:
    import numpy as np
    from PIL import Image

    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))
