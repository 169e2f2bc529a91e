"""What the platform gives a pipeline: a file a profile, read and checked before anything is compiled.

``profiles/<name>.yaml`` of the project, or any path: a platform team brings its own without touching code. It names
secrets and holds none. ``docs/submit.md`` explains the fields by example.
"""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator, model_validator

from atelier.errors import ConfigError
from atelier.orchestration import quantity
from atelier.training.trainjob_settings import VARIABLE, TrainJobSettings

FOLDER = "profiles"
DEFAULT = "paper"
#: The images that ``make images`` builds, and the component's image where a profile says nothing else.
TARGETS = ("ops", "train", "annotate", "evaluate")

Quantity = Annotated[str, StringConstraints(pattern=quantity.PATTERN)]
"""A Kubernetes quantity: ``500m`` of a CPU, ``16Gi`` of memory."""
Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")]
"""A Kubernetes name of at most 63 characters (a DNS label)."""
_KEY_PLACE = r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/[-._a-zA-Z0-9]+$"
SecretKey = Annotated[str, StringConstraints(pattern=_KEY_PLACE)]
"""``secret/key``: where a value lies; never the value."""

SecretName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$")]
"""A secret's name (a DNS subdomain)."""

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SECRET = re.compile(r"(^|_)(SECRET|PASSWORD|PASSWD|TOKEN|CREDENTIALS?|API_?KEY|ACCESS_KEY(_ID)?)(_|$)", re.IGNORECASE)
_LABEL = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_PREFIX = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")
_DIGEST = re.compile(r"^.+@sha256:[0-9a-f]{64}$")


def check_labels(labels: dict[str, str], values: bool = True) -> None:
    """Refuses labels (or, without looking at values, annotations) that Kubernetes would refuse once a run has begun.

    Raises:
        ValueError: too long, or other characters.
    """
    for key, value in labels.items():
        prefix, slash, name = key.rpartition("/")
        if not _LABEL.fullmatch(name) or (slash and (not _PREFIX.fullmatch(prefix) or len(prefix) > 253)):
            raise ValueError(f"{key!r} is no name of a label: at most 63 of letters, digits, - _ . after a prefix/")
        if values and value and not _LABEL.fullmatch(value):
            raise ValueError(f"{key}: {value!r} is no value of a label: at most 63 of letters, digits, - _ .")


def replaced(text: str) -> bool:
    """Whether Argo (``{{…}}``) or Kubernetes (``$(NAME)``, ``$$``) would change it on its way to a pod."""
    return "{{" in text or "$(" in text or "$$" in text


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Retry(_Part):
    """How often Kubeflow starts a failed step again. A training's causes have budgets of their own."""

    count: int = Field(0, ge=0)
    backoff_s: int = Field(30, ge=0, description="before the first retry")
    factor: float = Field(2.0, ge=1, description="each wait is this much longer than the one before")
    within_s: int = Field(
        604800, gt=0, description="no retry later than this after the step's first start (Argo's maxDuration)"
    )


class Toleration(_Part):
    """As in a pod's specification."""

    key: str = ""
    operator: Literal["Exists", "Equal"] = "Equal"
    value: str = ""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute", ""] = ""
    seconds: int | None = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.operator == "Exists" and self.value:
            raise ValueError("operator Exists takes no value")
        return self


class Security(_Part):
    """The step's user; a platform that assigns users itself (OpenShift) sets both to null."""

    user: int | None = Field(1000, ge=0)
    group: int | None = Field(1000, ge=0)
    non_root: bool = True


class StepSettings(_Part):
    """What one step's pod is given."""

    image: str = Field("", description="another image than the one that its component names")
    cpu: Quantity | None = Field(None, description="request")
    cpu_limit: Quantity | None = Field(None, description="null: the request, since a namespace's default may be less")
    memory: Quantity | None = Field(None, description="request")
    memory_limit: Quantity | None = Field(None, description="a step that takes more is killed; null: the request")
    gpus: int = Field(0, ge=0)
    gpu_resource: str = "nvidia.com/gpu"
    node_selector: dict[str, str] = Field(default_factory=dict)
    tolerations: tuple[Toleration, ...] = ()
    shm: Quantity | None = Field(None, description="size of /dev/shm, in memory; null: the node's 64 MB")
    scratch: Quantity | None = Field("10Gi", description="size of /scratch, where a step works; null: the image's /tmp")
    env: dict[str, str] = Field(default_factory=dict)
    secret_env: dict[str, SecretKey] = Field(default_factory=dict, description="variable → secret/key")
    secrets_optional: bool = Field(False, description="true: the step starts where a secret is missing too")
    timeout_s: int | None = Field(None, gt=0)
    retry: Retry = Retry()
    labels: dict[str, str] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)
    image_pull_policy: Literal["", "Always", "IfNotPresent", "Never"] = ""
    image_pull_secrets: tuple[SecretName, ...] = ()
    security: Security = Security()

    @field_validator("env")
    @classmethod
    def _plain(cls, env: dict[str, str]) -> dict[str, str]:
        for name, value in env.items():
            if not _VARIABLE.fullmatch(name):
                raise ValueError(f"{name!r} is no name of an environment variable")
            if name == VARIABLE:
                raise ValueError(f"{name} is written from the profile's training section")
            if _SECRET.search(name):
                raise ValueError(f"{name} looks like a secret: name the secret's key under secret_env instead")
            if replaced(value):
                raise ValueError(f"{name}: Kubernetes and Argo replace $(…) and {{{{…}}}} in values; leave them out")
        return env

    @model_validator(mode="after")
    def _fits_kubernetes(self) -> Self:
        check_labels(self.labels)
        check_labels(self.node_selector)
        check_labels(self.annotations, values=False)
        return self

    @model_validator(mode="after")
    def _once(self) -> Self:
        twice = self.env.keys() & self.secret_env.keys()
        if twice:
            raise ValueError(f"{', '.join(sorted(twice))} given under env and under secret_env")
        for name in ("cpu", "memory"):
            request, limit = getattr(self, name), getattr(self, f"{name}_limit")
            if request and limit and quantity.parse(request) > quantity.parse(limit):
                raise ValueError(f"the {name} request {request} is above its limit {limit}")
        return self


class Images(_Part):
    """Where the images lie."""

    registry: str = Field("", description="registry and folder, e.g. ghcr.io/team/atelier")
    tag: str = Field("", description='"": the package version')
    references: dict[str, str] = Field(
        default_factory=dict, description="target → a whole reference, best with @sha256:…"
    )

    @field_validator("references")
    @classmethod
    def _targets(cls, references: dict[str, str]) -> dict[str, str]:
        unknown = references.keys() - set(TARGETS)
        if unknown:
            raise ValueError(f"no such image: {', '.join(sorted(unknown))}; there are {', '.join(TARGETS)}")
        return references

    def reference(self, target: str) -> str:
        """The image ``target`` (ops, train, annotate, evaluate) as the profile names it."""
        if target in self.references:
            return self.references[target]
        from importlib.metadata import version

        prefix = f"{self.registry.rstrip('/')}/" if self.registry else "atelier/"
        return f"{prefix}python-{target}:{self.tag or version('atelier')}"


class Profile(_Part):
    """One profile.

    Attributes:
        name: the file's name without its ending.
        steps: settings of single components, already merged over ``defaults``; ask ``step``.
        training: a training's nodes; None where the launcher trains in its own pod (the profile then gives the step
            ``train`` what it needs).
    """

    name: str = ""
    recipe_profile: Literal["laptop", "paper", "parity"] = "paper"
    gpu: str = Field("", description="the GPU's kind, e.g. h200, for the plan")
    price_per_gpu_hour: float | None = Field(None, ge=0)
    namespace: Name = "atelier"
    service_account: Name = "pipeline-runner"
    experiment: str = Field("atelier", min_length=1, max_length=100)
    host: str = Field("", description='Kubeflow Pipelines\' address; "": flag, environment, kubeconfig')
    cron_timezone: str = Field("UTC", description="the clock of Kubeflow's schedules (CRON_SCHEDULE_TIMEZONE)")
    artifacts: str = Field("", description="URI of all outputs, the default of the pipelines' parameter")
    pipeline_root: str = Field("", description='where Kubeflow keeps its small artifacts; "": the cluster\'s own')
    images: Images = Images()
    defaults: StepSettings = StepSettings()
    steps: dict[str, StepSettings] = Field(default_factory=dict)
    training: TrainJobSettings | None = None

    @field_validator("artifacts", "pipeline_root")
    @classmethod
    def _remote(cls, uri: str) -> str:
        if uri and "://" not in uri:
            raise ValueError(f"{uri!r} is no URI that a pod could reach, e.g. s3://bucket/prefix")
        if "@" in uri.partition("://")[2].partition("/")[0]:
            raise ValueError("holds credentials; name a secret under secret_env instead")
        return uri.rstrip("/")

    @model_validator(mode="before")
    @classmethod
    def _merge(cls, record: Any) -> Any:
        """Merges each component's settings over the defaults and fills the training's image."""
        if not isinstance(record, dict):
            return record
        record = dict(record)
        defaults, steps = record.get("defaults") or {}, record.get("steps") or {}
        if isinstance(defaults, dict) and isinstance(steps, dict):
            record["steps"] = {
                name: _over(defaults, changes or {}) if isinstance(changes, dict | None) else changes
                for name, changes in steps.items()
            }
        training = record.get("training")
        if isinstance(training, dict) and "image" not in training:
            images = Images.model_validate(record.get("images") or {})
            record["training"] = training | {"image": images.reference("train")}
        return record

    @model_validator(mode="after")
    def _literal(self) -> Self:
        if self.training and replaced(self.training.model_dump_json()):
            raise ValueError("training: Kubernetes and Argo replace $(…) and {{…}} in values; leave them out")
        if self.training:
            for name in self.training.env:
                if _SECRET.search(name):
                    raise ValueError(f"training.env.{name} looks like a secret: name its key under secret_env instead")
            for name, place in self.training.secret_env.items():
                # Never shown: a value may stand there by mistake.
                if not re.match(_KEY_PLACE, place):
                    raise ValueError(f"training.secret_env.{name} is not written secret/key, e.g. atelier-s3/token")
            check_labels(self.training.labels)
            check_labels(self.training.node_selector)
            check_labels(self.training.annotations, values=False)
        return self

    def step(self, component: str) -> StepSettings:
        """What a component's pod is given."""
        return self.steps.get(component, self.defaults)

    def image(self, component: str, target: str) -> str:
        """A component's image.

        Args:
            target: the image that the component itself names.
        """
        return self.step(component).image or self.images.reference(target)

    def secrets(self) -> dict[str, set[str]]:
        """The secrets that it names, with their keys: required ones only."""
        found: dict[str, set[str]] = {}
        places = [self.defaults, *self.steps.values()]
        keys = [key for place in places if not place.secrets_optional for key in place.secret_env.values()]
        keys += list(self.training.secret_env.values()) if self.training else []
        for key in keys:
            secret, _, name = key.partition("/")
            found.setdefault(secret, set()).add(name)
        for place in places:
            for secret in place.image_pull_secrets:
                found.setdefault(secret, set())
        return found


def pinned(reference: str) -> bool:
    """Whether an image reference names its content (``…@sha256:…``)."""
    return bool(_DIGEST.match(reference))


def names(project: Path) -> list[str]:
    """The profiles' names: the files of ``profiles/``."""
    return sorted(path.stem for path in (project / FOLDER).glob("*.yaml"))


def load(project: Path, which: str = "") -> Profile:
    """Reads a profile.

    Args:
        which: a name of ``profiles/``, or the path of a file; "" is ``paper``.

    Raises:
        ConfigError: there is no such profile, or its fields are wrong (each is named).
    """
    from atelier.orchestration.catalogue import nearest

    which = which or DEFAULT
    path = Path(which).expanduser()
    if not (path.suffix in (".yaml", ".yml") or "/" in which):
        known = names(project)
        if which not in known:
            raise ConfigError(
                f"there is no profile {which!r}{nearest(which, known)}",
                f"one of: {', '.join(known)}; or the path of a file of your own: PROFILE=path/to/own.yaml",
            )
        path = project / FOLDER / f"{which}.yaml"
    return read(path)


def read(path: Path) -> Profile:
    """Reads a profile's file.

    Raises:
        ConfigError: it cannot be read, is no YAML, or its fields are wrong.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise ConfigError(
            f"the profile {path} cannot be read: {reason}", "give a name of profiles/ or a path"
        ) from None
    try:
        record = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"the profile {path} is no YAML: {' '.join(str(error).split())}", "mend that line") from None
    if not isinstance(record, dict):
        raise ConfigError(f"the profile {path} holds no fields", "profiles/paper.yaml shows them")
    try:
        return Profile.model_validate({**record, "name": path.stem})
    except ValidationError as error:
        lines = [f"{'.'.join(str(part) for part in each['loc']) or 'it'}: {_said(each)}" for each in error.errors()]
        raise ConfigError(
            f"the profile {path} is wrong: " + "; ".join(lines), "docs/submit.md lists the fields"
        ) from None


def _said(problem: Any) -> str:
    text = str(problem["msg"]).removeprefix("Value error, ")
    value = problem.get("input")
    shown = isinstance(value, str | int | float) and problem["type"] != "value_error"
    return f"{text} ({value!r})" if shown else text


def _over(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """``changes`` over ``base``: mappings key by key (null removes one), everything else replaced."""
    merged = dict(base)
    for name, value in changes.items():
        if isinstance(value, dict) and isinstance(base.get(name), dict):
            inner = {**base[name], **value}
            merged[name] = {key: kept for key, kept in inner.items() if kept is not None}
        else:
            merged[name] = value
    return merged
