"""A profile put into a compiled pipeline: each step's image, resources, place, secrets, limits and retries.

Through KFP's and kfp-kubernetes's own messages, so that nothing is written that the backend could not read. What the
pipeline and component files say of such things is nothing: they are the same on every platform.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from atelier.errors import ConfigError
from atelier.orchestration import quantity
from atelier.orchestration.profile import TARGETS, Profile, StepSettings
from atelier.training.trainjob_settings import VARIABLE

SCRATCH, SHM = "/scratch", "/dev/shm"  # noqa: S108 (a mount, not a file that we make)
#: Kubeflow labels each pod with its run's id.
RUN_LABEL = "metadata.labels['pipeline/runid']"
TRAIN = "train"
FUNCTION = "--function_to_execute"

_IMAGE = re.compile(r"atelier/python-(\w+)")


def apply(spec: Any, platforms: Any, profile: Profile, references: Mapping[str, str] | None = None) -> None:
    """Changes both documents of a pipeline in place.

    Args:
        spec: a ``PipelineSpec``.
        platforms: its ``PlatformSpec``.
        references: target → image reference, in the place of the profile's (the ones by digest).

    Raises:
        ConfigError: the profile has settings for a component that no pipeline could have.
    """
    from google.protobuf import json_format

    images = {target: profile.images.reference(target) for target in TARGETS} | dict(references or {})
    deployment = deployment_of(spec)
    kubernetes = platforms.platforms["kubernetes"].deployment_spec
    functions: dict[str, str] = {}
    for label, executor in deployment.executors.items():
        function = function_of(executor.container)
        if function is None:
            continue
        functions[label] = function
        settings = profile.step(function)
        _container(executor.container, settings, images)
        if function == TRAIN and profile.training is not None:
            ours = profile.training.image == profile.images.reference(TRAIN)
            training = profile.training.model_copy(update={"image": images[TRAIN]} if ours else {})
            _variable(executor.container, VARIABLE, training.model_dump_json())
        _variable(executor.container, "MLFLOW_EXPERIMENT_NAME", spec.pipeline_info.name)
        json_format.ParseDict(json_format.MessageToDict(_executor_config(settings)), kubernetes.executors[label])
    spec.deployment_spec.Clear()
    json_format.ParseDict(json_format.MessageToDict(deployment), spec.deployment_spec)
    for component, task in tasks(spec):
        label = spec.components[component].executor_label
        # Ours is by content and looks whether the outputs still exist; KFP's would hide it.
        task.caching_options.Clear()
        task.caching_options.SetInParent()
        if label in functions:
            _retry(task, profile.step(functions[label]))


def function_of(container: Any) -> str | None:
    """The function that an executor runs, which is its component's name; None for a container of its own."""
    words = list(container.args)
    return words[words.index(FUNCTION) + 1] if FUNCTION in words else None


def tasks(spec: Any) -> Iterator[tuple[str, Any]]:
    """(component, task) for every task of every DAG of a pipeline."""
    for dag in (spec.root.dag, *(component.dag for component in spec.components.values() if component.HasField("dag"))):
        for task in dag.tasks.values():
            yield task.component_ref.name, task


def deployment_of(spec: Any) -> Any:
    """A pipeline's executors as KFP's own message; the pipeline holds them as a plain structure."""
    from google.protobuf import json_format
    from kfp.pipeline_spec import pipeline_spec_pb2 as ir

    return json_format.ParseDict(json_format.MessageToDict(spec.deployment_spec), ir.PipelineDeploymentConfig())


def functions(spec: Any) -> set[str]:
    """The components (by function) of a pipeline."""
    executors = deployment_of(spec).executors.values()
    return {name for each in executors if (name := function_of(each.container))}


def targets(spec: Any) -> set[str]:
    """The images (by target) that a pipeline's components name."""
    executors = deployment_of(spec).executors.values()
    return {target for each in executors if (target := target_of(each.container.image)) in TARGETS and target}


def target_of(image: str) -> str | None:
    """The image (ops, train, …) that a component names; None for a container of its own."""
    match = _IMAGE.fullmatch(image)
    return match[1] if match else None


def _container(container: Any, settings: StepSettings, images: Mapping[str, str]) -> None:
    match = _IMAGE.fullmatch(container.image)
    if settings.image:
        container.image = settings.image
    elif match:
        if match[1] not in images:
            raise ConfigError(f"there is no image for {container.image}", f"one of: {', '.join(TARGETS)}")
        container.image = images[match[1]]
    resources = container.resources
    # Each quantity twice: KFP before 2.4 reads the numbers, later ones the texts.
    for name in ("cpu", "memory"):
        request = getattr(settings, name)
        for what, value in (("request", request), ("limit", getattr(settings, f"{name}_limit") or request)):
            if value is not None:
                number = quantity.parse(value)
                setattr(resources, f"resource_{name}_{what}", value)
                setattr(resources, f"{name}_{what}", float(number if name == "cpu" else number / 10**9))
    if settings.gpus:
        accelerator = resources.accelerator
        accelerator.type = accelerator.resource_type = settings.gpu_resource
        accelerator.count, accelerator.resource_count = settings.gpus, str(settings.gpus)
    place = SCRATCH if settings.scratch else "/tmp"  # noqa: S108
    ours = {"ATELIER_PROJECT": place, "HOME": place, "TMPDIR": place, "PYTHONUNBUFFERED": "1"}
    for name, value in {**ours, **settings.env}.items():
        _variable(container, name, value)


def _variable(container: Any, name: str, value: str) -> None:
    """Sets an environment variable, unless the component or profile has set it."""
    if all(each.name != name for each in container.env):
        container.env.add(name=name, value=value)


def _executor_config(settings: StepSettings) -> Any:
    """What kfp-kubernetes's functions would write for a task with these settings."""
    from google.protobuf import json_format
    from kfp.kubernetes import kubernetes_executor_config_pb2 as pb

    config = pb.KubernetesExecutorConfig(
        field_path_as_env=[pb.FieldPathAsEnv(name="ATELIER_RUN_ID", field_path=RUN_LABEL)],
        pod_metadata=pb.PodMetadata(labels=settings.labels, annotations=settings.annotations),
        image_pull_policy=settings.image_pull_policy,
        active_deadline_seconds=settings.timeout_s or 0,
    )
    if settings.node_selector:
        config.node_selector.labels.update(settings.node_selector)
    for each in settings.tolerations:
        toleration = config.tolerations.add(key=each.key, operator=each.operator, value=each.value, effect=each.effect)
        if each.seconds is not None:
            toleration.toleration_seconds = each.seconds
    by_secret: dict[str, list[tuple[str, str]]] = {}
    for variable, place in sorted(settings.secret_env.items()):
        secret, _, key = place.partition("/")
        by_secret.setdefault(secret, []).append((variable, key))
    for secret, keys in by_secret.items():
        entry = config.secret_as_env.add(secret_name=secret, optional=settings.secrets_optional)
        entry.secret_name_parameter.runtime_value.constant.string_value = secret
        for variable, key in keys:
            entry.key_to_env.add(secret_key=key, env_var=variable)
    for secret in settings.image_pull_secrets:
        pull = config.image_pull_secret.add(secret_name=secret)
        pull.secret_name_parameter.runtime_value.constant.string_value = secret
    if settings.shm:
        config.empty_dir_mounts.add(volume_name="shm", mount_path=SHM, medium="Memory", size_limit=settings.shm)
    if settings.scratch:
        config.empty_dir_mounts.add(volume_name="scratch", mount_path=SCRATCH, size_limit=settings.scratch)
    security = settings.security
    numbers = {"runAsUser": security.user, "runAsGroup": security.group, "runAsNonRoot": security.non_root}
    json_format.ParseDict({k: v for k, v in numbers.items() if v is not None}, config.security_context)
    return config


def _retry(task: Any, settings: StepSettings) -> None:
    """As ``set_retry``; nothing where a step is tried once."""
    from google.protobuf import json_format

    task.ClearField("retry_policy")
    retry = settings.retry
    if retry.count:
        json_format.ParseDict(
            {
                "maxRetryCount": retry.count,
                "backoffDuration": f"{retry.backoff_s}s",
                "backoffFactor": retry.factor,
                "backoffMaxDuration": f"{retry.within_s}s",
            },
            task.retry_policy,
        )
