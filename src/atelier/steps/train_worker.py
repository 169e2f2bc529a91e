"""One rank of the training: ``python -m atelier.steps.train_worker plan.json`` under torchrun."""

import os
import sys
from pathlib import Path


def main(plan_path: str) -> int:
    """Trains as the plan says; returns the process's exit code."""
    from atelier.data.loader import Loader, ShardDataset
    from atelier.errors import Preempted
    from atelier.recipes.registry import get
    from atelier.steps.train import worker_plan
    from atelier.storage.manifest import Manifest
    from atelier.tracking.runs import attach
    from atelier.training.callbacks import standard_callbacks
    from atelier.training.engine import train

    plan = worker_plan(Path(plan_path))
    recipe = get(plan["recipe"], plan["profile"], {"train": plan["train"]})
    # Rank 0 writes the loss and the pictures; the first process of every other node its system metrics.
    writes = os.environ.get("LOCAL_RANK", "0") == "0"
    tracker = attach(plan["tracking"]["run_id"], plan["tracking"]["uri"]) if writes and plan["tracking"] else None
    try:
        result = train(
            recipe.objective(Path(plan["base"])),
            ShardDataset(Manifest.parse(plan["shards"])),
            recipe.config.train,
            Path(plan["folder"]),
            standard_callbacks(recipe.config.train, tracker),
            loader=Loader,
            checkpoints_at=plan["checkpoints"],
            adapter=Path(plan["adapter"]) if plan["adapter"] else None,
        )
    finally:
        if tracker is not None:
            tracker.close()
    return 0 if result.outcome == "complete" else Preempted.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
