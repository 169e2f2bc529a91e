"""A plan as a person reads it."""

from collections.abc import Iterator
from typing import Any

from atelier.orchestration.command_line import table
from atelier.orchestration.plan import DataPlan, Plan, StepPlan, TrainingPlan


def lines(plan: Plan) -> Iterator[str]:
    """The plan, a line at a time."""
    yield f"{plan.pipeline} · profile {plan.profile} · artifacts {plan.artifacts}"
    for name, value in plan.arguments.items():
        yield f"  {name}={value}"
    yield ""
    rows: list[tuple[str, ...]] = [("STEP", "IMAGE", "CPU", "MEMORY", "GPUS", "OUTPUT")]
    rows += [_step(each) for each in plan.steps]
    yield from table(rows)
    if plan.cache_note:
        yield f"cache {plan.cache_note}"
    for training in plan.trainings:
        yield ""
        yield from _training(training)
    for data in plan.data:
        yield ""
        yield from _data(data)
    yield ""
    yield _total(plan)


def record(plan: Plan) -> dict[str, Any]:
    """The plan as JSON values."""
    return {
        "pipeline": plan.pipeline,
        "profile": plan.profile,
        "artifacts": plan.artifacts,
        "steps": [
            {
                "task": each.task,
                "image": each.image,
                "cpu": each.settings.cpu,
                "memory": each.settings.memory,
                "gpus": each.settings.gpus,
                "cached": each.found.cached,
                "why": each.found.why,
                "bytes": each.found.bytes,
            }
            for each in plan.steps
        ],
        "trainings": [
            {
                "task": each.task,
                "recipe": each.recipe,
                "nodes": each.nodes,
                "processes_per_node": each.processes_per_node,
                "gpu": each.gpu,
                "steps": each.config.steps,
                "batch_size": each.config.batch_size,
                "micro_batch": each.config.process_micro_batch,
                "accumulation": each.config.accumulation,
                "zero_stage": each.stage,
                "reason": each.reason,
                "gpu_bytes": round(each.need.total),
                "mfu": each.mfu,
                "samples_per_s": each.samples_per_s,
                "hours": each.hours,
                "gpu_hours": each.gpu_hours,
                "cost": each.cost,
            }
            for each in plan.trainings
        ],
        "data": [
            {
                "task": each.task,
                "examples": each.examples,
                "raw_bytes": each.raw_bytes,
                "shard_bytes": each.shard_bytes,
                "checkpoint_bytes": each.checkpoint_bytes,
                "checkpoints_kept": each.kept,
                "encoding_gpu_hours": each.encoding_gpu_hours,
            }
            for each in plan.data
        ],
        "gpu_hours": plan.gpu_hours,
        "cache": plan.cache_note,
    }


def _step(step: StepPlan) -> tuple[str, ...]:
    settings, found = step.settings, step.found
    state = {True: f"cached, {size(found.bytes)}", False: "to make", None: f"unknown: {found.why}"}[found.cached]
    if found.cached is None and not found.why:
        state = ""
    return (step.task, step.image, settings.cpu or "-", settings.memory or "-", str(settings.gpus or "-"), state)


def _training(each: TrainingPlan) -> Iterator[str]:
    config = each.config
    where = f"{each.world} × {each.gpu.upper()}" if each.gpu else f"{each.world} processes on CPUs"
    yield f"{each.task}: {each.recipe}, {each.nodes} nodes × {each.processes_per_node} = {where}"
    yield (
        f"  {config.steps:,} steps of {config.batch_size}: micro-batch {config.process_micro_batch} a process, "
        f"{config.accumulation} a step, {config.precision}"
    )
    stage = "none" if each.stage is None else str(each.asked if each.asked is not None else each.stage)
    yield f"  {each.reason}" if each.reason.startswith(f"ZeRO {stage} ") else f"  ZeRO {stage}: {each.reason}"
    yield (
        f"  {each.footprint.trainable:,} parameters are trained, {each.footprint.frozen:,} are frozen; "
        f"{each.footprint.training_flops / 1e12:.3g} TFLOP a sample"
    )
    if each.samples_per_s is None or each.hours is None:
        yield "  no time and no cost: no GPU is named (GPU=h200), and a CPU's speed is not assumed"
        return
    cost = f", cost {each.cost:,.0f}" if each.cost is not None else ", no price given (PRICE=)"
    yield (
        f"  {each.samples_per_s:,.1f} samples/s at {each.mfu:.0%} of the peak (assumed) → {duration(each.hours)}, "
        f"{each.gpu_hours:,.0f} GPU-hours{cost}"
    )


def _data(each: DataPlan) -> Iterator[str]:
    yield f"{each.task}: data"
    count = f"{each.examples:,} examples" + (", as published" if each.published else "")
    yield f"  {count}: raw {size(each.raw_bytes)}, shards {size(each.shard_bytes)}"
    yield f"  a checkpoint {size(each.checkpoint_bytes)}, {each.kept} kept ({size(each.kept * each.checkpoint_bytes)})"
    if each.encoding_gpu_hours is not None:
        yield f"  encoding takes {each.encoding_gpu_hours:,.0f} GPU-hours, if decoding the images keeps up"


def _total(plan: Plan) -> str:
    made = sum(step.found.cached is True for step in plan.steps)
    text = f"{len(plan.steps)} steps, {made} cached"
    hours = plan.gpu_hours
    costs = [each.cost for each in plan.trainings if each.cost is not None]
    if hours is not None:
        text += f"; {hours:,.0f} GPU-hours for what is not cached, with encoding"
        if costs and all(each.gpu_hours for each in plan.trainings):
            price = costs[0] / (plan.trainings[0].gpu_hours or 1)
            text += f", cost {hours * price:,.0f}"
    return text


def size(count: float) -> str:
    """Bytes for a person: 1.5 TB, 393 kB."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.3g} {unit}"
    return f"{count:.0f} B"


def duration(hours: float) -> str:
    """Hours for a person: 4.2 days, 3.5 hours, 12 minutes."""
    if hours >= 48:
        return f"{hours / 24:.1f} days"
    return f"{hours:.1f} hours" if hours >= 1 else f"{hours * 60:.0f} minutes"
