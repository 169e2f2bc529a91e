"""Whether each rule that CrossFlow's recipe mends is worth it: twins that differ by one rule, same seeds.

``python -m benchmarks.studies.crossflow_mended JUDGE.safetensors RESULTS.jsonl`` makes the next run that RESULTS lacks
and appends a line; ``--all`` goes on to the last; ``--table`` prints what is there as a Markdown table. A run takes
about two minutes of one core. The log-variance's bounds need no run: where none of ``log_variance`` reaches them, a
training without them is the same to the bit.
"""

import argparse
import json
import statistics
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.studies.crossflow_twin import Plan, Reader, Trained, canvases, held_out_losses, recipe_of, train

SEEDS = (0, 1)
STEPS, SMALL_STEPS, SMALL_BATCH, SMALL_LR = 320, 1200, 4, 7e-4
GUIDANCES = (1.0, 3.0)

_WHOLE, _SMALL = Plan(steps=STEPS), Plan(steps=SMALL_STEPS, batch=SMALL_BATCH, lr=SMALL_LR)
RUNS: dict[str, Plan] = {
    "ours, batch 4": _SMALL,
    "null_text, batch 4": replace(_SMALL, released=("null_text",)),
    "null_partners and null_text, batch 4": replace(_SMALL, released=("null_partners", "null_text")),
    "ours": _WHOLE,
    "null_text": replace(_WHOLE, released=("null_text",)),
    "temperature": replace(_WHOLE, released=("temperature",)),
    "image_tower=pixels": replace(_WHOLE, pixels=True),
    "text_layers": replace(_WHOLE, released=("text_layers",)),
    "padding": replace(_WHOLE, released=("padding",)),
    "first step at rate 0": replace(_WHOLE, first_step_lost=True),
}
"""By what of the published training is kept; each is compared with ``ours`` of its batch."""


def run(name: str, seed: int, reader: Reader, keep: Path | None = None) -> dict[str, Any]:
    """Trains and judges one twin; a line of the results."""
    plan = replace(RUNS[name], seed=seed)
    made = train(plan, canvases(recipe_of(plan), 4000, seed=0))
    if keep is not None:
        save(made, keep)
    return {"run": name, "seed": seed, **judged(made, reader, grids=name.startswith("ours")), "plan": asdict(plan)}


def judged(made: Trained, reader: Reader, grids: bool = True) -> dict[str, Any]:
    """What is asked of every twin; ``grids``: also Euler on our grid and on the released one."""
    from atelier.recipes.twins.assets import shipped

    pipeline = made.recipe.pipeline(shipped("sd_twin"), made.model)
    starts = reader.starts(pipeline)
    read = {
        f"{guidance:g}": round(reader.read(pipeline, reader.ends(pipeline, starts, 20, guidance, "ab2")), 4)
        for guidance in GUIDANCES
    }
    euler = {
        f"accuracy_{solver}": round(reader.read(pipeline, reader.ends(pipeline, starts, 20, 1.0, solver)), 4)
        for solver in ("euler", "euler_released")
        if grids
    }
    loss, null_loss = held_out_losses(made, canvases(made.recipe, 512, seed=999))
    return {
        "accuracy": read,
        **euler,
        "held_out_loss": round(loss, 5),
        "held_out_null_loss": round(null_loss, 5),
        "null_share": round(made.null_share, 4),
        "log_variance": [round(value, 2) for value in made.log_variance],
        "seconds": round(made.seconds, 1),
    }


def save(made: Trained, folder: Path) -> None:
    """The twin as an exported model."""
    from atelier.recipes.twins.assets import shipped
    from atelier.storage.atomic import new_folder

    with new_folder(folder) as scratch:
        state = made.recipe.objective(shipped("sd_twin")).trainable_state(made.model)
        made.recipe.export(shipped("sd_twin"), state, scratch)


def table(lines: list[dict[str, Any]]) -> str:
    """Mean ± half the range over the seeds, as Markdown."""
    head = ("kept of the published training", "seeds", "digits, guidance 1", "guidance 3", "held-out loss")
    head = (*head, "its null velocity's", "null samples")
    rows = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name in RUNS:
        own = [line for line in lines if line["run"] == name]
        if own:
            cells = [
                _spread([100 * line["accuracy"][f"{guidance:g}"] for line in own], 1, " %") for guidance in GUIDANCES
            ]
            cells += [_spread([line[key] for line in own], 4) for key in ("held_out_loss", "held_out_null_loss")]
            cells.append(f"{100 * statistics.mean(line['null_share'] for line in own):.1f} %")
            rows.append(f"| {name} | {len(own)} | {' | '.join(cells)} |")
    return "\n".join(rows)


def _spread(values: list[float], digits: int, unit: str = "") -> str:
    half = (max(values) - min(values)) / 2
    return f"{statistics.mean(values):.{digits}f} ± {half:.{digits}f}{unit}"


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("judge", type=Path)
    parser.add_argument("results", type=Path)
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--keep", type=Path, help="a folder for the first seed's models of `ours`")
    arguments = parser.parse_args()

    def lines() -> list[dict[str, Any]]:
        text = arguments.results.read_text() if arguments.results.exists() else ""
        return [json.loads(line) for line in text.splitlines()]

    if arguments.table:
        print(table(lines()))
        return
    import torch

    torch.set_num_threads(1)
    torch.backends.cuda.enable_flash_sdp(False)
    done = {(line["run"], line["seed"]) for line in lines()}
    missing = [(name, seed) for name in RUNS for seed in SEEDS if (name, seed) not in done]
    for name, seed in missing if arguments.all else missing[:1]:
        keep = arguments.keep if (name, seed) == ("ours", SEEDS[0]) else None
        found = run(name, seed, Reader(arguments.judge), keep)
        with arguments.results.open("a") as file:
            file.write(json.dumps(found) + "\n")
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
