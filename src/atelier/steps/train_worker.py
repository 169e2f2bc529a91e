"""One rank of the training: ``python -m atelier.steps.train_worker <plan>`` under torchrun."""

import contextlib
import fcntl
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from atelier.training.warm_start import StartWeights


def main(plan_place: str) -> int:
    """Trains as the plan (a path or an ``s3://`` object) says; returns the process's exit code."""
    from atelier.data.loader import Loader, ShardDataset
    from atelier.errors import Preempted
    from atelier.recipes.registry import get
    from atelier.steps.train import worker_plan
    from atelier.storage.manifest import Manifest
    from atelier.tracking.runs import attach, tracking_uri
    from atelier.training.callbacks import standard_callbacks
    from atelier.training.callbacks.end_unwatched import EndUnwatched
    from atelier.training.delivery import delivered
    from atelier.training.engine import train

    plan = worker_plan(plan_place)
    outputs = plan["outputs"]
    if outputs and delivered(outputs) is not None:
        return 0  # a node that was started again after the end
    recipe = get(plan["recipe"], plan["profile"], {"train": plan["train"]})
    base, begin = _inputs(plan, recipe)
    # Rank 0 writes the loss and the pictures; the first process of every other node its system metrics.
    writes = os.environ.get("LOCAL_RANK", "0") == "0"
    tracker = (
        attach(plan["tracking"]["run_id"], plan["tracking"]["uri"] or tracking_uri())
        if writes and plan["tracking"]
        else None
    )
    try:
        objective, shards = recipe.objective(base), Manifest.parse(plan["shards"])
        # A recipe that reads some of the fields alone says which.
        fields = getattr(objective, "fields", None)
        result = train(
            objective,
            ShardDataset(shards, only=fields(shards.metadata.get("fields", {})) if fields else None),
            recipe.config.train,
            Path(plan["folder"]),
            [
                *standard_callbacks(recipe.config.train, tracker, outputs),
                *([EndUnwatched(**plan["watched"])] if plan["watched"] else []),
            ],
            loader=Loader,
            checkpoints_at=plan["checkpoints"],
            start=begin,
            outputs_at=outputs,
        )
    finally:
        if tracker is not None:
            tracker.close()
    return 0 if result.outcome == "complete" else Preempted.exit_code


def _inputs(plan: dict[str, Any], recipe: Any) -> "tuple[Path, StartWeights | None]":
    """The frozen base and what to start from, here; one rank of each machine fetches what is remote."""
    from atelier.steps.start_weights import start_weights
    from atelier.storage.inputs import InputFolder
    from atelier.storage.manifest import Manifest
    from atelier.training.partial_start import start_partly
    from atelier.training.warm_start import start_from

    given, starting = plan["start"], recipe.starting
    with _one_at_a_time():
        base = InputFolder(Manifest.parse(plan["base"])).fetch_all()
        if not given:
            return base, None
        read = {name: InputFolder(Manifest.parse(given[name])) for name in given if name != "address"}
        found = start_weights(read["start"], read.get("start_training"), starting)
    write = start_partly if starting.partial else start_from
    return base, lambda state: write(state, found, given["address"])


@contextlib.contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Lets the ranks of a machine through one by one: the first fetches, the others find it fetched."""
    from atelier.storage.atomic import os_errors
    from atelier.storage.cache import default_cache

    path = default_cache() / ".fetching"
    with os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = path.open("w")
    with handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
