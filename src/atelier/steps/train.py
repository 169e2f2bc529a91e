"""Train: the recipe's objective over the shards, by DeepSpeed under torchrun; resumes where it was ended."""

import json
from typing import Any

from atelier.errors import ConfigError
from atelier.steps.runtime import StepContext, run_step
from atelier.steps.start import Start, starting_point
from atelier.steps.train_place import LOGS, place_for, share
from atelier.storage.inputs import InputFolder
from atelier.storage.manifest import Manifest
from atelier.storage.uri import is_local, join, read_text
from atelier.training.trainjob_settings import from_environment

VERSION = 1
WORKER = "atelier.steps.train_worker"


def run(
    *,
    shards: Manifest,
    base: Manifest,
    recipe: str,
    profile: str,
    artifacts: str,
    steps: int = 0,
    batch_size: int = 0,
    learning_rate: float = 0.0,
    seed: int = 0,
    processes: int = 0,
    zero_stage: int = -1,
    overrides: str = "",
    start: str = "",
) -> Manifest:
    """A manifest of kind ``training``: ``checkpoint/``, the loss log, gauges, previews and ``train.json``.

    Where ``ATELIER_TRAINJOB`` describes a cluster's nodes it trains there, by a TrainJob, else on this machine.

    Args:
        steps, batch_size, learning_rate, processes: 0 is the recipe's own (processes on a cluster: the profile's).
        zero_stage: -1 is the recipe's own.
        overrides: further fields of the training configuration, a JSON object.
        start: the model that the training begins with, see ``starting_point``; "": the recipe's own start.
            Its digest is part of the key and stands, with its version, in the manifest and the MLflow run.

    Raises:
        ConfigError: a setting that does not fit, or a start that does not; nothing was started.
        Preempted: asked to end; the state is saved and the same call goes on from it.
        TrainingError: a rank failed.
    """
    from atelier.recipes.registry import get, module_of

    cluster = from_environment()
    changes = train_overrides(
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        seed=seed,
        processes=processes,
        zero_stage=zero_stage,
        overrides=overrides,
    )
    changes = share(changes, cluster, artifacts)
    chosen = get(recipe, profile, {"train": changes})
    config = chosen.config.train
    chosen.check_features(shards.metadata)
    chosen.check_base(InputFolder(base).fetch)
    origin = starting_point(start, base, chosen) if start else None

    def produce(ctx: StepContext) -> tuple[str, dict[str, Any]]:
        from atelier.training.engine import read_log, read_summary
        from atelier.training.partial_start import REPORT, read_start

        folder = ctx.out.path
        place = place_for(ctx, cluster, recipe, config.threads_per_process)
        if origin is not None:
            ctx.note(start=origin.address)
            ctx.track.set_tags({f"atelier.start.{name}": value for name, value in origin.lineage().items()})
        plan = place.write_plan(
            json.dumps(
                {
                    "recipe": recipe,
                    "profile": profile,
                    "train": changes,
                    "base": base.to_json(),
                    "shards": shards.to_json(),
                    "start": _start(origin) if origin else None,
                    "folder": place.folder,
                    "outputs": place.outputs_at,
                    "watched": place.watched,
                    # Where the outputs go to S3 the checkpoints do too: another machine can take over.
                    "checkpoints": None if is_local(artifacts) else join(artifacts, "checkpoints", ctx.key),
                    "tracking": _tracking(ctx),
                }
            )
        )
        try:
            place.launcher.run(WORKER, [plan], config.processes, folder / LOGS, nodes=config.nodes)
        finally:
            ctx.note(**place.launcher.facts)
            ctx.track.log_metrics(place.launcher.facts)
        place.collect()
        summary = read_summary(folder)
        account = read_start(folder / REPORT).summary() if origin else {}
        if origin:
            ctx.track.log_params({"start": account})
            ctx.track.log_text((folder / REPORT).read_text(), REPORT)
        logged = read_log(folder)
        rates = sorted(line["samples_per_s"] for line in logged)
        ctx.note(
            training_seconds=summary["seconds"],
            samples_per_s=rates[len(rates) // 2],
            data_wait=round(sum(line["data_wait"] for line in logged) / len(logged), 4),
        )
        return "training", {
            "recipe": recipe,
            "profile": profile,
            "config": summary["config"],
            "steps": summary["steps"],
            "samples": summary["samples"],
            "parameters": summary["parameters"],
            "quarantined": summary["quarantined"],
            "metrics": {"train_loss": round(summary["metrics"]["loss"], 6)},
            **({"start": {"weights": origin.weights, "model": origin.model.digest, **account}} if origin else {}),
        }

    return run_step(
        name="train",
        version=VERSION,
        module=__name__,
        produce=produce,
        inputs={"shards": shards, "base": base, **(origin.inputs if origin else {})},
        params={
            "recipe": recipe,
            "profile": profile,
            "config": config.outcome(),
            **({"start": origin.weights} if origin else {}),
        },
        artifacts=artifacts,
        extra_modules=(module_of(recipe), WORKER),
    )


def check(
    *,
    recipe: str,
    profile: str,
    steps: int = 0,
    batch_size: int = 0,
    learning_rate: float = 0.0,
    seed: int = 0,
    processes: int = 0,
    zero_stage: int = -1,
    overrides: str = "",
    here: bool = False,
) -> None:
    """Refuses a training configuration that ``run`` would refuse, before there is anything to train on.

    Args:
        here: the training will run on this machine, which must be able to compute in its precision.

    Raises:
        ConfigError: a setting that does not fit.
    """
    from atelier.recipes.registry import get

    changes = train_overrides(
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        seed=seed,
        processes=processes,
        zero_stage=zero_stage,
        overrides=overrides,
    )
    config = get(recipe, profile, {"train": share(changes, from_environment())}).config.train
    if here and config.precision == "fp16":
        from atelier.training.devices import require_fp16  # asks the accelerator: imports torch

        require_fp16()


def train_overrides(
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    processes: int,
    zero_stage: int,
    overrides: str,
) -> dict[str, Any]:
    """Fields of the training configuration that the parameters change; what stands for "the recipe's own" is left out.

    Raises:
        ConfigError: ``overrides`` is no JSON object.
    """
    try:
        further = json.loads(overrides) if overrides.strip() else {}
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"train_overrides is no JSON: {overrides!r} ({error})", 'give an object, e.g. {"clip_norm": 0.5}'
        ) from error
    if not isinstance(further, dict):
        raise ConfigError(f"train_overrides is no JSON object: {overrides!r}", 'give e.g. {"clip_norm": 0.5}')
    given = {
        "steps": steps or None,
        "batch_size": batch_size or None,
        "lr": learning_rate or None,
        "processes": processes or None,
        "zero_stage": zero_stage if zero_stage >= 0 else None,
    }
    changes = {name: value for name, value in given.items() if value is not None}
    for name in changes.keys() & further.keys():
        raise ConfigError(f"{name} is given twice, as a parameter and in train_overrides", "leave one")
    return {"seed": seed, **changes, **further}


def worker_plan(place: str) -> dict[str, Any]:
    """What ``run`` wrote for the ranks, from a path or S3."""
    plan: dict[str, Any] = json.loads(read_text(place))
    return plan


def _start(origin: Start) -> dict[str, Any]:
    return {"address": origin.address, **{name: found.to_json() for name, found in origin.inputs.items()}}


def _tracking(ctx: StepContext) -> dict[str, str] | None:
    """The MLflow run that rank 0 writes to; None where the server gave none in time (the files hold everything).

    A URI that holds a password is left to the ranks' own MLFLOW_TRACKING_URI: the plan may be an object in a bucket.
    """
    from atelier.tracking.service import shown

    run_id, uri = ctx.track.run_id(), ctx.track.uri
    return {"uri": uri if shown(uri) == uri else "", "run_id": run_id} if run_id else None
