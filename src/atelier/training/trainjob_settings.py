"""What the platform decides about a training on a cluster: where its nodes run, with what, and what is tried again.

A profile (orchestration) fills it, the train step's pod is handed it as JSON in ``ATELIER_TRAINJOB``, the TrainJob
launcher reads it. It names secrets and holds none.
"""

import os
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from atelier.errors import ConfigError

VARIABLE = "ATELIER_TRAINJOB"


class Retries(BaseModel):
    """How often a training is started again, by the cause of its end."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    preempted: int = Field(1000, ge=0, description="its nodes were taken away: costs nothing but waiting")
    node_lost: int = Field(10, ge=0)
    nccl: int = Field(3, ge=0, description="a collective timed out or a link broke")
    out_of_memory: int = Field(0, ge=0, description="the same sizes would not fit the second time either")
    bad_config: int = Field(0, ge=0)
    bad_data: int = Field(0, ge=0)
    unknown: int = Field(1, ge=0)


_NAME = r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$"
"""A Kubernetes name."""
_NAME_OR_NONE = r"^([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?)?$"


class TrainJobSettings(BaseModel):
    """Frozen settings of the TrainJobs of one profile."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    image: str = Field(min_length=1, description="of the training nodes, by digest")
    runtime: str = Field("atelier-torch", pattern=_NAME, description="the ClusterTrainingRuntime")
    namespace: str = Field("", pattern=_NAME_OR_NONE, description='"": the one that the launcher runs in')
    nodes: int = Field(1, gt=0)
    processes_per_node: int = Field(8, gt=0, description="one a GPU")
    gpu_resource: str = Field("nvidia.com/gpu", description='one a process; "": the training runs on CPU')
    resources_per_node: dict[str, str] = Field(
        default_factory=dict, description="further requests and limits of a node, e.g. cpu and memory"
    )
    env: dict[str, str] = Field(default_factory=dict, description="more variables of the ranks")
    secret_env: dict[str, str] = Field(
        default_factory=dict, description="variable → secret/key; keys that the runtime does not give already"
    )
    node_selector: dict[str, str] = Field(default_factory=dict)
    tolerations: tuple[dict[str, Any], ...] = ()
    labels: dict[str, str] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)
    queue: str = Field("", pattern=_NAME_OR_NONE, description='a Kueue LocalQueue; "": none')
    deadline_s: int | None = Field(None, gt=0, description="the TrainJob is ended after this long")
    pending_s: int = Field(
        86400, gt=0, description="how long its nodes may wait for a place before the launcher gives up"
    )
    unwatched_s: int = Field(
        1800,
        gt=0,
        description="after so long without a launcher (which is killed or never came back) the ranks save and end",
    )
    retries: Retries = Retries()
    scratch: str = Field("/scratch", min_length=1, description="a folder of the nodes with room, of this pod alone")

    @model_validator(mode="after")
    def _no_reserved_environment(self) -> Self:
        for name in {**self.env, **self.secret_env}:
            if name.startswith("PET_"):
                raise ValueError(f"{name}: variables that begin with PET_ belong to the torch runtime")
        return self

    @property
    def processes(self) -> int:
        """Ranks in all."""
        return self.nodes * self.processes_per_node

    @property
    def gpus_per_node(self) -> int:
        """0 where the training runs on CPU."""
        return self.processes_per_node if self.gpu_resource else 0


def from_environment() -> TrainJobSettings | None:
    """The settings in ``ATELIER_TRAINJOB``; None where there are none: the training runs on this machine.

    Raises:
        ConfigError: they are no JSON, or do not fit.
    """
    text = os.environ.get(VARIABLE, "").strip()
    if not text:
        return None
    try:
        return TrainJobSettings.model_validate_json(text)
    except ValidationError as error:
        found = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'it'}: {e['msg']}" for e in error.errors())
        raise ConfigError(f"{VARIABLE} does not describe a TrainJob: {found}", "correct the profile") from error
