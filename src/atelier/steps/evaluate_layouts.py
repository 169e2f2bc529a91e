"""Evaluate layouts: adds CropCLIP, CropPick and SAMIoU to what the judge found, where their models are given."""

import json
import shutil
from pathlib import Path
from typing import Any

from atelier.errors import ConfigError
from atelier.evaluation import bars as barred
from atelier.evaluation.regional_yardsticks import METRICS, OBJECTS, Boxed, RegionalYardsticks
from atelier.steps.runtime import StepContext, run_step
from atelier.storage.manifest import Manifest

VERSION = 1
BATCH = 64
KINDS = {"grounded": "", "ungrounded": barred.CONTROL}


def run(
    *,
    samples: Manifest,
    evaluation: Manifest,
    clip: str,
    pick: str,
    pick_tokenizer: str,
    sam: str,
    legacy: bool,
    batch: int,
    bars: str,
    recipe: str,
    profile: str,
    artifacts: str,
) -> Manifest:
    """A manifest of kind ``evaluation``: the judge's ``metrics.json`` with what was measured here, of the samples and
    of their control (``_ungrounded``), ``skipped``, and whether all of it together reaches the bars.

    With a model, also ``grounded.jsonl`` and ``ungrounded.jsonl``: every box's figures.

    Args:
        clip, pick, pick_tokenizer, sam, legacy: see ``regional_yardsticks.RegionalYardsticks``; "" leaves a metric out.
        batch: crops at once; 0 is 64.
        bars: in the place of the recipe's own, a JSON object, see ``evaluation.bars``.

    Raises:
        ConfigError: see ``check``. DataError: samples without boxes.
    """
    from atelier.recipes.registry import module_of

    check(clip=clip, pick=pick, pick_tokenizer=pick_tokenizer, sam=sam, legacy=legacy, batch=batch, bars=bars)
    yardsticks = RegionalYardsticks(clip, pick, pick_tokenizer, sam, legacy)
    params = {
        "clip": clip,
        "pick": pick,
        "pick_tokenizer": pick_tokenizer,
        "sam": sam,
        "legacy": legacy,
        "bars": {name: bar and bar.written for name, bar in barred.changes(bars).items()},
        "recipe": recipe,
        "profile": profile,
        "states": yardsticks.states,
    }

    def produce(ctx: StepContext) -> tuple[str, dict[str, Any]]:
        judged = json.loads(ctx.inputs["evaluation"].fetch("metrics.json").read_text(encoding="utf-8"))
        found = _measured(ctx, yardsticks, batch or BATCH)
        judged["metrics"] = judged["metrics"] | found
        judged["skipped"] = judged.get("skipped", {}) | yardsticks.skipped
        asked = barred.changed(barred.read(judged["bars"]), barred.changes(bars))
        judged["bars"], judged["passed"] = barred.written(asked), barred.passed(asked, judged["metrics"])
        (ctx.out.path / "metrics.json").write_text(json.dumps(judged, indent=1))
        if found:
            ctx.track.log_metrics(found)
        kept = {name: judged[name] for name in ("metrics", "bars", "passed", "skipped")}
        return "evaluation", kept | {"layouts": evaluation.metadata.get("layouts", 0)}

    return run_step(
        name="evaluate_layouts",
        version=VERSION,
        module=__name__,
        produce=produce,
        inputs={"samples": samples, "evaluation": evaluation},
        params=params,
        artifacts=artifacts,
        extra_modules=(module_of(recipe), "atelier.evaluation.regional_evaluation"),
    )


def check(
    *, clip: str, pick: str, pick_tokenizer: str, sam: str, legacy: bool = False, batch: int = 0, bars: str = ""
) -> None:
    """Refuses what cannot be measured.

    Raises:
        ConfigError: half of a yardstick, a negative batch; bars that are none, or of a metric whose model is not given.
    """
    yardsticks = RegionalYardsticks(clip, pick, pick_tokenizer, sam, legacy)
    if clip or pick or sam or pick_tokenizer or legacy:
        yardsticks.check()
    if batch < 0:
        raise ConfigError(f"batch={batch}", f"use 0 for {BATCH}, or a positive number")
    needed = dict(zip(METRICS, ("clip", "pick", "sam"), strict=True))
    for name, bar in barred.changes(bars).items():
        metric = name.removesuffix(barred.CONTROL)
        if bar is not None and metric in yardsticks.skipped:
            raise ConfigError(
                f"a bar for {name}, and nothing to measure it with", f"give {needed[metric]}, or leave it out"
            )


def _measured(ctx: StepContext, yardsticks: RegionalYardsticks, batch: int) -> dict[str, float]:
    """The metrics of the samples and of their control; none without a model."""
    if len(yardsticks.skipped) == len(METRICS):
        return {}

    from atelier.evaluation.regional_evaluation import evaluate

    folder = ctx.inputs["samples"].fetch_all()
    entries = json.loads((folder / "samples.json").read_text(encoding="utf-8"))
    metrics: dict[str, float] = {}
    for kind, suffix in KINDS.items():
        out: Path = ctx.out.path / f".{kind}"
        pictures = [Boxed(folder / entry[kind], entry["boxes"], entry["phrases"]) for entry in entries]
        result = evaluate(out, pictures, yardsticks, batch)
        if result is None:
            raise RuntimeError("a step is one process, and torchrun's variables say otherwise")
        metrics |= {f"{name}{suffix}": value for name, value in result["metrics"].items()}
        shutil.copy(out / OBJECTS, ctx.out.path / f"{kind}.jsonl")
    return metrics
