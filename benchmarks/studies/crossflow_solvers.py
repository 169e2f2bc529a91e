"""What CrossFlow's solvers need: the error of the latent against the converged trajectory, and what a judge reads.

``python -m benchmarks.studies.crossflow_solvers MODEL JUDGE.safetensors RESULTS.jsonl`` appends a line a guidance;
``--train dit`` (or dimr) first trains the twin that MODEL shall hold. Five minutes of one core each.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from atelier.recipes.registry import get
from atelier.sampling.flow_solvers import EVALUATIONS
from benchmarks.studies.crossflow_mended import save
from benchmarks.studies.crossflow_twin import Plan, Reader, canvases, recipe_of, train

GUIDANCES = (1.0, 2.0, 4.0, 7.0)
COMPARED = 16
"""Prompts of which the error is taken; all of the reader's are judged."""
CONVERGED = 200
"""Heun steps of the reference."""
EULER = 50
ASCENDING = (3, 4, 5, 6, 8, 10, 12, 14, 16, 18, 20, 22, 25)
OTHERS = {
    "euler": (12, 25, 50),
    "euler_released": (25, 50),
    "midpoint": (12, 24, 50),
    "heun": (12, 24, 50),
    "ab2": (12, 25, 50),
}
"""Evaluations a solver is shown at."""


def study(pipeline: Any, reader: Reader, guidance: float) -> dict[str, Any]:
    """One guidance's figures: RMS errors by solver and evaluations, and where ab2 first reaches Euler's."""
    whole = reader.starts(pipeline)
    starts = whole[:COMPARED]
    reference = reader.ends(pipeline, starts, CONVERGED, guidance, "heun")
    half = reader.ends(pipeline, starts, CONVERGED // 2, guidance, "heun")

    def error(solver: str, evaluations: int) -> float:
        ends = reader.ends(pipeline, starts, evaluations // EVALUATIONS[solver], guidance, solver)
        return float((ends - reference).square().mean().sqrt())

    errors = {
        solver: {str(evaluations): round(error(solver, evaluations), 6) for evaluations in shown}
        for solver, shown in OTHERS.items()
    }
    bar = errors["euler"][str(EULER)]
    needed = {
        solver: next((count for count in ASCENDING if error(solver, count) <= bar), None)
        for solver in ("ab2", "midpoint", "heun")
    }
    judged = [("euler", EULER), ("ab2", EULER // 2), ("ab2", needed["ab2"] or EULER // 2)]
    accuracy = {
        f"{solver} {count}": round(reader.read(pipeline, reader.ends(pipeline, whole, count, guidance, solver)), 4)
        for solver, count in judged
    }
    return {
        "guidance": guidance,
        "rms_of_latents": round(float(reference.square().mean().sqrt()), 4),
        "reference_error": round(float((half - reference).square().mean().sqrt()), 7),
        "errors": errors,
        "needed_for_euler_50": needed,
        "accuracy": accuracy,
    }


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("judge", type=Path)
    parser.add_argument("results", type=Path)
    parser.add_argument("--train", choices=("dimr", "dit"), default="")
    parser.add_argument("--guidance", type=float, nargs="*", default=list(GUIDANCES))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.backends.cuda.enable_flash_sdp(False)
    if arguments.train:
        plan = Plan(backbone=arguments.train, steps=370 if arguments.train == "dit" else 320)
        made = train(plan, canvases(recipe_of(plan), 4000, seed=0))
        save(made, arguments.model)
        print(f"trained in {made.seconds:.0f} s", flush=True)
    pipeline = get("crossflow", "laptop").pipeline(arguments.model)
    reader = Reader(arguments.judge)
    for guidance in arguments.guidance:
        line = json.dumps({"model": arguments.model.name} | study(pipeline, reader, guidance))
        with arguments.results.open("a") as file:
            file.write(line + "\n")
        print(line, flush=True)


if __name__ == "__main__":
    main()
