"""The TrainJob that runs a training's nodes (trainer.kubeflow.org/v1alpha1, the torch runtime)."""

import os
from dataclasses import dataclass, field
from typing import Any

from atelier.errors import ConfigError
from atelier.training.trainjob import names
from atelier.training.trainjob_settings import TrainJobSettings

GROUP, VERSION = "trainer.kubeflow.org", "v1alpha1"
MANAGER = "atelier.dev/launcher"
GRACE_S = 110
"""For saving after SIGTERM: a little less than the runtime's terminationGracePeriodSeconds (120)."""

_HANDED_ON = (
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_EC2_METADATA_DISABLED",
    "ATELIER_S3_TIMEOUT_S",
    "ATELIER_SHARD_CACHE_GB",
    "ATELIER_SHARD_MEMORY_GB",
    "MLFLOW_TRACKING_INSECURE_TLS",
)
"""Variables of the launcher that its nodes need too; none holds a secret."""


@dataclass(frozen=True)
class Identity:
    """What a training is to the cluster.

    Attributes:
        run: the pipeline run's id; "" outside one.
        key: the step's cache key.
        title: readable, for the name.
        owner: an ``ownerReferences`` entry (the Argo Workflow); None: nobody's.
    """

    run: str
    key: str
    title: str = ""
    owner: dict[str, Any] | None = field(default=None, compare=False)

    @property
    def labels(self) -> dict[str, str]:
        """What its TrainJobs are found by."""
        run = {names.RUN: names.label_value(self.run)} if self.run else {}
        return {**run, names.KEY: names.label_value(self.key)}


def train_job(
    identity: Identity, attempt: int, settings: TrainJobSettings, module: str, arguments: list[str], logs_uri: str
) -> dict[str, Any]:
    """The object to be created.

    Args:
        module, arguments: what each rank runs.
        logs_uri: where the nodes leave their logs, "": nowhere.

    Raises:
        ConfigError: a secret that is not written ``secret/key``.
    """
    labels = {**settings.labels, **identity.labels, names.ATTEMPT: str(attempt)}
    if settings.queue:
        labels["kueue.x-k8s.io/queue-name"] = settings.queue
    name = names.job_name(identity.run, identity.key, attempt, identity.title)
    metadata: dict[str, Any] = {"name": name, "labels": labels}
    if settings.annotations:
        metadata["annotations"] = dict(settings.annotations)
    if identity.owner is not None:
        metadata["ownerReferences"] = [identity.owner]
    logs_uri = f"{logs_uri.rstrip('/')}/{name}" if logs_uri else ""
    spec: dict[str, Any] = {
        "runtimeRef": {"apiGroup": GROUP, "kind": "ClusterTrainingRuntime", "name": settings.runtime},
        "trainer": {
            "image": settings.image,
            "command": ["python", "-m", "atelier.training.trainjob.node"],
            "args": [
                f"--scratch={settings.scratch}", f"--grace={GRACE_S}", *([f"--logs={logs_uri}"] if logs_uri else []),
                module, *arguments,
            ],
            "numNodes": settings.nodes,
            # Trainer's own choice without a GPU would be one process a core.
            "numProcPerNode": settings.processes_per_node,
            "resourcesPerNode": resources(settings),
            "env": environment(settings),
        },
        "runtimePatches": [{"manager": MANAGER, "trainingRuntimeSpec": {"template": {"spec": {"replicatedJobs": [
            {"name": "node", "template": _job_patch(settings, labels)}]}}}}],
    }  # fmt: skip
    if settings.deadline_s is not None:
        spec["activeDeadlineSeconds"] = settings.deadline_s
    return {"apiVersion": f"{GROUP}/{VERSION}", "kind": "TrainJob", "metadata": metadata, "spec": spec}


def resources(settings: TrainJobSettings) -> dict[str, Any]:
    """Requests and limits of a node: the profile's, and one GPU a process."""
    wanted = dict(settings.resources_per_node)
    if settings.gpu_resource:
        wanted[settings.gpu_resource] = str(settings.processes_per_node)
    return {"requests": wanted, "limits": wanted} if wanted else {}


def environment(settings: TrainJobSettings) -> list[dict[str, Any]]:
    """The nodes' variables; Trainer takes them here alone (never by a patch), and none that begins with PET_."""
    plain = {
        "ATELIER_PROJECT": settings.scratch,
        "ATELIER_CACHE": f"{settings.scratch.rstrip('/')}/cache",
        **{name: os.environ[name] for name in _HANDED_ON if os.environ.get(name)},
        **settings.env,
    }
    listed: list[dict[str, Any]] = [{"name": name, "value": value} for name, value in sorted(plain.items())]
    for variable, place in sorted(settings.secret_env.items()):
        secret, _, key = place.partition("/")
        if not secret or not key:
            raise ConfigError(f"secret_env of {variable}: {place!r} is not secret/key", "write e.g. atelier-s3/token")
        listed.append({"name": variable, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}})
    return listed


def _job_patch(settings: TrainJobSettings, labels: dict[str, str]) -> dict[str, Any]:
    pod: dict[str, Any] = {}
    if settings.node_selector:
        pod["nodeSelector"] = dict(settings.node_selector)
    if settings.tolerations:
        pod["tolerations"] = [dict(toleration) for toleration in settings.tolerations]
    shown = {name: value for name, value in labels.items() if not name.startswith("kueue.")}
    metadata: dict[str, Any] = {"labels": shown}
    if settings.annotations:
        metadata["annotations"] = dict(settings.annotations)
    return {"spec": {"template": {"metadata": metadata, **({"spec": pod} if pod else {})}}}
