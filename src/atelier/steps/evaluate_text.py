"""Evaluate text: adds FID and CLIP score to what the judge found, where their yardsticks are given."""

import json
import shutil
from pathlib import Path
from typing import Any

from atelier.errors import ConfigError
from atelier.evaluation import bars as barred
from atelier.evaluation.yardsticks import Yardsticks
from atelier.steps.runtime import StepContext, run_step
from atelier.storage.manifest import Manifest
from atelier.storage.state import state_of, state_of_model

VERSION = 1
_DRAWN = "drawn"


def run(
    *,
    model: Manifest,
    evaluation: Manifest,
    captions: str,
    count: int,
    fid_weights: str,
    fid_statistics: str,
    clip: str,
    steps: int,
    guidance: float,
    batch: int,
    bars: str,
    seed: int,
    recipe: str,
    profile: str,
    artifacts: str,
) -> Manifest:
    """A manifest of kind ``evaluation``: the judge's ``metrics.json`` with what was measured here, ``skipped``, and
    whether all of it together reaches the bars.

    With a yardstick, ``evaluation.json`` and ``evaluation.html`` too (``evaluation.text_evaluation``). The pictures
    themselves are not kept: some ten thousand files that a model and a seed give again.

    Args:
        captions: COCO's captions file, or a file of prompts; its place.
        count: pictures; 0 is 30,000 of COCO's captions, or the whole file of prompts.
        fid_weights, fid_statistics, clip: see ``evaluation.yardsticks.Yardsticks``; "" leaves them out.
        steps, guidance: of sampling; 0 is the recipe's own.
        batch: pictures at once; 0 is the recipe's own.
        bars: in the place of the recipe's own, a JSON object, see ``evaluation.bars``.

    Raises:
        ConfigError: see ``check``. StorageError, ServiceError: a file's place cannot be looked at.
    """
    from atelier.recipes.registry import get, module_of

    given = {"captions": captions, "fid_weights": fid_weights, "fid_statistics": fid_statistics, "clip": clip}
    check(**given, count=count, bars=bars)
    config = get(recipe, profile).config
    steps, guidance = steps or config.sample_steps, guidance or config.guidance
    params = {
        "captions": captions,
        "count": count,
        "fid_weights": fid_weights,
        "fid_statistics": fid_statistics,
        "clip": clip,
        "steps": steps,
        "guidance": guidance,
        "seed": seed,
        "bars": {name: bar and bar.written for name, bar in barred.changes(bars).items()},
        "recipe": recipe,
        "profile": profile,
        "states": _states(captions, fid_weights, fid_statistics, clip) if fid_weights or clip else {},
    }

    def produce(ctx: StepContext) -> tuple[str, dict[str, Any]]:
        judged = json.loads(ctx.inputs["evaluation"].fetch("metrics.json").read_text(encoding="utf-8"))
        found = _measured(ctx, params, config.solver, batch or config.sample_batch)
        judged["metrics"] = judged["metrics"] | found["metrics"]
        judged["skipped"] = judged.get("skipped", {}) | found["skipped"]
        judged["warnings"] = found["warnings"]
        asked = barred.changed(barred.read(judged["bars"]), barred.changes(bars))
        judged["bars"], judged["passed"] = barred.written(asked), barred.passed(asked, judged["metrics"])
        (ctx.out.path / "metrics.json").write_text(json.dumps(judged, indent=1))
        if found["metrics"]:
            ctx.track.log_metrics(found["metrics"])
        kept = {name: judged[name] for name in ("metrics", "bars", "passed", "skipped")}
        return "evaluation", kept | {"layouts": evaluation.metadata.get("layouts", 0)}

    return run_step(
        name="evaluate_text",
        version=VERSION,
        module=__name__,
        produce=produce,
        inputs={"model": model, "evaluation": evaluation},
        params=params,
        artifacts=artifacts,
        extra_modules=(module_of(recipe),),
    )


def check(*, captions: str, count: int, fid_weights: str, fid_statistics: str, clip: str, bars: str = "") -> None:
    """Refuses what cannot be measured.

    Raises:
        ConfigError: half of what FID needs, a yardstick and nothing to draw, a negative count; bars that are none, or
            of a metric whose yardstick is not given.
    """
    Yardsticks(fid_weights, fid_statistics, clip=clip).check()
    if (fid_weights or clip) and not captions:
        raise ConfigError(
            "fid_weights or clip is given and no captions to draw", "give eval_captions, e.g. captions_val2014.json"
        )
    if count < 0:
        raise ConfigError(f"count={count}", "use 0 for all, or a positive number")
    missing = {"fid": not fid_weights, "clip_score": not clip}
    for name, bar in barred.changes(bars).items():
        if bar is not None and missing.get(name):
            needed = "fid_weights and fid_statistics" if name == "fid" else "clip"
            raise ConfigError(f"a bar for {name}, and nothing to measure it with", f"give {needed}, or leave it out")


def _states(captions: str, fid_weights: str, fid_statistics: str, clip: str) -> dict[str, str]:
    """Marks of what lies at the places now: a file that was replaced is another one."""
    files = {"captions": captions, "fid_weights": fid_weights, "fid_statistics": fid_statistics}
    marks = {name: state_of([place]) for name, place in files.items() if place} | {"clip": state_of_model(clip)}
    return {name: mark for name, mark in marks.items() if mark}


def _measured(ctx: StepContext, params: dict[str, Any], solver: str, batch: int) -> dict[str, Any]:
    """What ``evaluation.json`` holds; without a yardstick nothing is drawn."""
    if not (params["fid_weights"] or params["clip"]):
        why = "no FID statistics and no CLIP were given (fid_weights, fid_statistics, clip)"
        return {"metrics": {}, "skipped": {"fid": why, "clip_score": why}, "warnings": []}

    from atelier.evaluation.captions import read_prompts
    from atelier.evaluation.text_evaluation import PAGE, RESULT, evaluate
    from atelier.sampling.text_drawing import Drawing
    from atelier.storage.cache import fetched

    prompts = read_prompts(fetched(params["captions"]), params["count"], params["seed"])
    drawing = Drawing(ctx.inputs["model"].fetch_all(), params["steps"], params["guidance"], solver, batch)
    yardsticks = Yardsticks(params["fid_weights"], params["fid_statistics"], clip=params["clip"])
    folder: Path = ctx.out.path / _DRAWN
    found = evaluate(folder, drawing, prompts, yardsticks, params["seed"])
    if found is None:
        raise RuntimeError("a step is one process, and torchrun's variables say otherwise")
    for name in (RESULT, PAGE):
        (folder / name).replace(ctx.out.path / name)
    shutil.rmtree(folder)
    return found
