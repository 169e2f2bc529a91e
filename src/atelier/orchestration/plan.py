"""What a run would do and cost, worked out before anything is spent: no torch, no step, nothing written."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from atelier.errors import ConfigError
from atelier.orchestration import catalogue, params, pods
from atelier.orchestration.cached import Found, look
from atelier.orchestration.catalogue import Pipeline
from atelier.orchestration.gpus import Gpu, gpu
from atelier.orchestration.local import absolute
from atelier.orchestration.profile import Profile, StepSettings
from atelier.orchestration.walk import LATER, Call, calls
from atelier.training.config import TrainConfig
from atelier.training.footprint import Footprint
from atelier.training.memory import Memory, Stage, Workload, choose_stage, memory

MFU = 0.35
"""The share of its peak that a GPU is taken to reach: an assumption, below the 0.40 that the engine aims at."""
TRAIN, PREPROCESS = "train", "preprocess"


@dataclass(frozen=True)
class Options:
    """What a person may ask to be other than the profile says; None leaves it."""

    nodes: int | None = None
    gpus_per_node: int | None = None
    gpu: str | None = None
    price: float | None = None
    mfu: float = MFU


@dataclass(frozen=True)
class StepPlan:
    """One step's pod."""

    task: str
    function: str
    image: str
    settings: StepSettings
    found: Found


@dataclass(frozen=True)
class TrainingPlan:
    """One training.

    Attributes:
        stage: the lowest ZeRO stage that fits; None: none does.
        asked: the stage that the parameters name; None: they leave it to the plan.
        need: a GPU's memory under the stage that is used (or the least there is).
        reason: why this stage, or what would fit.
        samples_per_s, hours, gpu_hours, cost: None where there is no GPU or no price to reckon with.
    """

    task: str
    recipe: str
    nodes: int
    processes_per_node: int
    gpu: str
    config: TrainConfig
    footprint: Footprint
    stage: Stage | None
    asked: Stage | None
    need: Memory
    reason: str
    mfu: float
    samples_per_s: float | None = None
    hours: float | None = None
    gpu_hours: float | None = None
    cost: float | None = None

    @property
    def world(self) -> int:
        """Ranks."""
        return self.nodes * self.processes_per_node


@dataclass(frozen=True)
class DataPlan:
    """Bytes that a training reads and writes; ``examples`` 0: as many as its sources hold, which is not known.

    ``encoded_by`` is the task that makes its shards; ``published``: the paper's data set was put down.
    """

    task: str
    examples: int
    raw_bytes: float
    shard_bytes: float
    checkpoint_bytes: float
    kept: int
    encoding_gpu_hours: float | None
    encoded_by: str = ""
    published: bool = False


@dataclass(frozen=True)
class Plan:
    """Everything that ``atelier plan`` prints."""

    pipeline: str
    profile: str
    arguments: dict[str, Any]
    artifacts: str
    steps: tuple[StepPlan, ...]
    trainings: tuple[TrainingPlan, ...]
    data: tuple[DataPlan, ...]
    cache_note: str = ""

    @property
    def gpu_hours(self) -> float | None:
        """Of all trainings and encodings that are not in the cache; None where none could be reckoned."""
        made = {step.task for step in self.steps if step.found.cached is not True}
        parts = [each.gpu_hours if each.task in made else 0.0 for each in self.trainings]
        parts += [each.encoding_gpu_hours if each.encoded_by in made else 0.0 for each in self.data]
        known = [part for part in parts if part is not None]
        return sum(known) if known else None

    def refuse(self) -> None:
        """Raises where a training cannot fit.

        Raises:
            ConfigError: no ZeRO stage fits, or not the one that was asked for; says what would.
        """
        for each in self.trainings:
            if each.stage is None:
                raise ConfigError(f"{each.task} does not fit: {each.reason}", "change one of these; the rest may stay")
            if each.asked is not None and each.asked < each.stage:
                raise ConfigError(
                    f"{each.task}: ZeRO {each.asked} does not fit: {each.reason}",
                    f"zero_stage={each.stage}, or leave it to the plan: zero_stage=-1",
                )


def make(
    project: Path,
    pipeline: str,
    given: Mapping[str, str],
    profile: Profile,
    options: Options = Options(),
    artifacts: str = "",
    look_at_cache: bool = True,
) -> Plan:
    """Plans a run.

    Args:
        given: parameters as text, as for ``run`` and ``submit``.
        artifacts: where outputs go; "": the profile's, else the project's own folder.
        look_at_cache: ask the artifacts' place which outputs are there.

    Raises:
        ConfigError: an unknown pipeline, parameter or GPU, or sizes that do not go together. A training that does not
            fit is no error here: see ``Plan.refuse``.
    """
    dag = catalogue.load(project, pipeline)
    arguments = _arguments(dag, given, profile, artifacts, project)
    place = str(arguments.get("artifacts", ""))
    found, note = look(dag, arguments) if look_at_cache else ({}, "not looked at")
    steps, trainings, data = [], [], []
    kind = options.gpu if options.gpu is not None else profile.gpu
    device = gpu(kind) if kind else None
    for call in calls(dag, arguments):
        settings = profile.step(call.function)
        target = pods.target_of(call.image)
        image = profile.image(call.function, target) if target else call.image
        steps.append(StepPlan(call.task, call.function, image, settings, found.get(call.task, Found())))
        if call.function == TRAIN and LATER not in (call.parameters["recipe"], call.parameters["profile"]):
            training = _training(call, profile, options, device, kind)
            trainings.append(training)
            shards = call.artifacts.get("shards")
            encoded_by = shards.task if shards else ""
            data.append(_data(training, dag, arguments, profile, device, options.mfu, encoded_by))
    return Plan(
        pipeline,
        profile.name,
        {name: value for name, value in arguments.items() if name in given},
        place,
        tuple(steps),
        tuple(trainings),
        tuple(data),
        note,
    )


def zero_stages(plan: Plan) -> int | None:
    """The ZeRO stage that every training of a run can have: the highest of those chosen; None without a training."""
    return max((each.stage for each in plan.trainings if each.stage is not None), default=None)


def _arguments(
    dag: Pipeline, given: Mapping[str, str], profile: Profile, artifacts: str, project: Path
) -> dict[str, Any]:
    if artifacts and given.get("artifacts", artifacts) != artifacts:
        raise ConfigError(f"artifacts is given twice: {artifacts!r} and {given['artifacts']!r}", "leave one")
    arguments = params.validate(given, dag.parameters)
    if "profile" in dag.parameters:
        arguments.setdefault("profile", profile.recipe_profile)
    if "artifacts" in dag.parameters:
        arguments["artifacts"] = (
            artifacts or arguments.get("artifacts") or profile.artifacts or str(project / ".atelier" / "artifacts")
        )
        arguments["artifacts"] = absolute(str(arguments["artifacts"]))
    return arguments


def _training(call: Call, profile: Profile, options: Options, device: Gpu | None, kind: str) -> TrainingPlan:
    from atelier.recipes.registry import get
    from atelier.steps.train import train_overrides

    known = {name: call.parameters[name] for name in _SETTINGS if call.parameters.get(name) is not LATER}
    changes = train_overrides(**known)
    asked = changes.pop("zero_stage", None)
    recipe = get(call.parameters["recipe"], call.parameters["profile"])
    nodes, each = _shape(profile, options, changes, recipe.config.train)
    changes |= {"nodes": nodes, "processes": nodes * each}
    config: TrainConfig = get(call.parameters["recipe"], call.parameters["profile"], {"train": changes}).config.train
    footprint: Footprint = recipe.footprint
    work = Workload(
        trainable=footprint.trainable,
        frozen=footprint.frozen,
        world=config.processes,
        precision=config.precision,
        ema=config.ema_decay is not None,
        activation_bytes=footprint.activation_bytes,
        micro_batch=config.process_micro_batch,
    )
    if device is None:
        stage = asked if asked is not None else config.zero_stage
        need = memory(work, stage)
        reason = "the recipe's own: the training runs on CPUs, whose memory the profile gives"
        return TrainingPlan(
            call.task, call.parameters["recipe"], nodes, each, "", config, footprint, stage, asked, need, reason, 0.0
        )
    choice = choose_stage(work, device.memory)
    need = choice.memory
    if asked is not None and choice.stage is not None and asked > choice.stage:
        need = memory(work, asked)
    plan = TrainingPlan(
        call.task,
        call.parameters["recipe"],
        nodes,
        each,
        kind,
        config,
        footprint,
        choice.stage,
        asked,
        need,
        choice.reason,
        options.mfu,
    )
    return _timed(plan, device, options.price if options.price is not None else profile.price_per_gpu_hour)


_SETTINGS = (
    "steps", "batch_size", "learning_rate", "seed", "processes", "zero_stage", "overrides",
)  # fmt: skip


def _shape(profile: Profile, options: Options, changes: dict[str, Any], own: TrainConfig) -> tuple[int, int]:
    """(nodes, processes on each): what was asked for, else the profile's, else the recipe's."""
    training = profile.training
    nodes = options.nodes or (training.nodes if training else None) or changes.get("nodes") or own.nodes
    each = options.gpus_per_node or (training.processes_per_node if training else None)
    if each is None:
        each = max((changes.get("processes") or own.processes) // nodes, 1)
    if changes.get("nodes", nodes) != nodes:
        raise ConfigError(
            f"nodes is {changes['nodes']} in train_overrides, the profile or NODES says {nodes}", "leave one"
        )
    processes = changes.get("processes")
    if processes and processes != nodes * each:
        raise ConfigError(
            f"processes={processes} is not the {nodes} nodes × {each} processes of the profile",
            f"leave processes out, or give NODES and GPUS_PER_NODE whose product is {processes}",
        )
    return nodes, each


def _timed(plan: TrainingPlan, device: Gpu, price: float | None) -> TrainingPlan:
    peak = device.peak(plan.config.precision)
    if peak is None:
        raise ConfigError(
            f"{plan.task}: {plan.gpu} has no unit for {plan.config.precision}",
            'take another GPU, or another precision: train_overrides=\'{"precision": "fp16"}\'',
        )
    rate = plan.world * peak * plan.mfu / plan.footprint.training_flops
    hours = plan.config.steps * plan.config.batch_size / rate / 3600
    gpu_hours = hours * plan.world
    cost = None if price is None else gpu_hours * price
    return replace(plan, samples_per_s=rate, hours=hours, gpu_hours=gpu_hours, cost=cost)


def _data(
    training: TrainingPlan,
    dag: Pipeline,
    arguments: Mapping[str, Any],
    profile: Profile,
    device: Gpu | None,
    mfu: float,
    encoded_by: str,
) -> DataPlan:
    footprint, config = training.footprint, training.config
    asked = arguments.get("images", dag.parameters["images"].default if "images" in dag.parameters else 0)
    examples = footprint.examples or int(asked or 0)
    hours = None
    peak = device.peak("bf16") or device.peak("fp16") if device else None
    if peak and profile.step(PREPROCESS).gpus:
        hours = examples * footprint.encoding_flops / (peak * mfu) / 3600
    kept = config.keep_checkpoints + (1 if config.keep_best else 0)
    checkpoint = footprint.checkpoint_bytes(config.ema_decay is not None)
    return DataPlan(
        training.task,
        examples,
        float(examples * footprint.raw_bytes),
        float(examples * footprint.sample_bytes),
        float(checkpoint),
        kept,
        hours,
        encoded_by,
        footprint.examples > 0,
    )
