"""What a submit asks the Kubernetes API before anything is spent; what it may not see it says, and goes on.

No secret's value is ever asked for: secrets are read as ``PartialObjectMetadata``, which holds no more than names.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from atelier.errors import ConfigError
from atelier.orchestration import quantity
from atelier.orchestration.connection import first_line, kubeconfig
from atelier.orchestration.profile import Profile, StepSettings

TIMEOUT = (4.0, 8.0)
METADATA_ONLY = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
TRAINER, KUEUE = "trainer.kubeflow.org", "kueue.x-k8s.io"


class NotSeen(Exception):
    """The API refuses or does not answer: nothing is known."""


@dataclass
class Findings:
    """What was looked at.

    Attributes:
        good: what is there.
        unseen: what could not be checked, and why.
        notes: what is no fault and worth knowing.
        bad: (what, fix) of what is missing.
    """

    good: list[str] = field(default_factory=list)
    unseen: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    bad: list[tuple[str, str]] = field(default_factory=list)

    def refuse(self) -> None:
        """Raises what is bad.

        Raises:
            ConfigError: something that the run needs is missing or too small.
        """
        if self.bad:
            fixes = list(dict.fromkeys(fix for _, fix in self.bad))
            raise ConfigError(
                "in the kubeconfig's cluster: " + "; ".join(what for what, _ in self.bad),
                "; ".join([*fixes, "NO_CLUSTER_CHECK=1 where Kubeflow runs in another cluster than that"]),
            )


def check(profile: Profile, namespace: str, components: set[str], api: Callable[..., Any] | None = None) -> Findings:
    """Looks whether a namespace has what a pipeline's pods name.

    Args:
        components: the pipeline's components; the largest of them counts against the quota.
        api: asks the server; None connects by the kubeconfig or the pod's account.
    """
    found = Findings()
    try:
        ask = api or connect()
    except NotSeen as error:
        found.unseen.append(f"the cluster ({error})")
        return found
    if not _there(found, ask, f"namespace {namespace}", f"/api/v1/namespaces/{namespace}", _SETUP):
        return found
    inside = f"/api/v1/namespaces/{namespace}"
    account = profile.service_account
    _there(found, ask, f"service account {account}", f"{inside}/serviceaccounts/{account}", _SETUP)
    for secret in sorted(profile.secrets()):
        _there(
            found,
            ask,
            f"secret {secret}",
            f"{inside}/secrets/{secret}",
            f"make the secret (docs/kubernetes.md), or take {secret} out of the profile",
            accept=METADATA_ONLY,
        )
    training = profile.training if "train" in components else None
    if training is not None:
        _there(
            found,
            ask,
            f"training runtime {training.runtime}",
            f"/apis/{TRAINER}/v1alpha1/clustertrainingruntimes/{training.runtime}",
            f"{_SETUP}; Kubeflow Trainer 2 must be installed",
        )
        if training.queue:
            _there(
                found,
                ask,
                f"queue {training.queue}",
                f"/apis/{KUEUE}/v1beta1/namespaces/{training.namespace or namespace}/localqueues/{training.queue}",
                "apply k8s/components/kueue, or take the queue out of the profile",
            )
    wanted = needs(profile, components)
    _quota(found, ask, inside, wanted)
    _capacity(found, ask, profile, components)
    return found


_SETUP = "set the cluster up first: docs/kubernetes.md; or give another NAMESPACE= or profile"


def connect() -> Callable[..., Any]:
    """A function (path, Accept) → JSON over the Kubernetes API of the kubeconfig or the pod.

    Raises:
        NotSeen: there is no way to it.
    """
    import urllib3
    from kubernetes import client, config

    configuration = client.Configuration()
    try:
        if kubeconfig():
            config.load_kube_config(config_file=kubeconfig(), client_configuration=configuration)
        else:
            config.load_incluster_config(client_configuration=configuration)
    except Exception as error:  # plugins of the kubeconfig raise anything
        raise NotSeen(f"no kubeconfig that can be used: {first_line(error)}") from None
    configuration.retries = urllib3.Retry(0)
    connected = client.ApiClient(configuration)

    def ask(path: str, accept: str = "application/json") -> Any:
        try:
            return connected.call_api(
                path,
                "GET",
                header_params={"Accept": accept},
                auth_settings=["BearerToken"],
                response_type="object",
                _return_http_data_only=True,
                _request_timeout=TIMEOUT,
            )
        except client.ApiException as error:
            if error.status == 404:
                return None
            raise NotSeen(
                "not permitted" if error.status in (401, 403) else f"HTTP {error.status} {error.reason or ''}".strip()
            ) from None
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            raise NotSeen(f"the Kubernetes API does not answer: {first_line(error)}") from None

    return ask


def needs(profile: Profile, components: set[str]) -> dict[str, Decimal]:
    """What the pipeline asks for at its largest moment, by resource: a training's nodes, or its largest step."""
    largest: dict[str, Decimal] = {}

    def count(requests: dict[str, Decimal]) -> None:
        for name, value in requests.items():
            largest[name] = max(largest.get(name, Decimal(0)), value)

    for component in components:
        count(_requests(profile.step(component)))
    if profile.training is not None and "train" in components:
        training = profile.training
        node = {name: quantity.parse(value) for name, value in training.resources_per_node.items()}
        if training.gpu_resource:
            node[training.gpu_resource] = Decimal(training.processes_per_node)
        launcher = _requests(profile.step("train"))
        count({name: value * training.nodes + launcher.get(name, Decimal(0)) for name, value in node.items()})
    return largest


def _requests(settings: StepSettings) -> dict[str, Decimal]:
    found = {name: quantity.parse(value) for name in ("cpu", "memory") if (value := getattr(settings, name))}
    return found | ({settings.gpu_resource: Decimal(settings.gpus)} if settings.gpus else {})


def _there(
    found: Findings, ask: Callable[..., Any], name: str, path: str, fix: str, accept: str = "application/json"
) -> bool:
    """Whether an object is there; True too where that could not be seen."""
    try:
        if ask(path, accept) is None:
            found.bad.append((f"{name} is not there", fix))
            return False
        found.good.append(name)
    except NotSeen as error:
        found.unseen.append(f"{name} ({error})")
    return True


def _quota(found: Findings, ask: Callable[..., Any], inside: str, wanted: dict[str, Decimal]) -> None:
    try:
        listed = ask(f"{inside}/resourcequotas")
    except NotSeen as error:
        found.unseen.append(f"quotas ({error})")
        return
    for item in (listed or {}).get("items", ()):
        hard = item.get("spec", {}).get("hard", {})
        used = item.get("status", {}).get("used", {})
        for resource, need in sorted(wanted.items()):
            limit = next((hard[key] for key in (f"requests.{resource}", resource) if key in hard), None)
            if limit is None:
                continue
            key = f"requests.{resource}" if f"requests.{resource}" in hard else resource
            taken = quantity.parse(used.get(key, "0"))
            name = item["metadata"]["name"]
            if need > quantity.parse(limit):
                found.bad.append(
                    (
                        f"the quota {name} allows {limit} of {resource}, the pipeline needs {shown(need, resource)}",
                        "fewer nodes or GPUs in the profile, or a larger quota",
                    )
                )
            elif need > quantity.parse(limit) - taken:
                found.notes.append(
                    f"{shown(taken, resource)} of the quota {name}'s {limit} {resource} are taken: the run will wait"
                )
            else:
                found.good.append(f"quota {name}: {shown(need, resource)} of {limit} {resource}")


def _capacity(found: Findings, ask: Callable[..., Any], profile: Profile, components: set[str]) -> None:
    """GPUs on the nodes that are there now. Node pools grow on demand, so too few is a note."""
    training = profile.training if "train" in components else None
    steps = [profile.step(each) for each in components if profile.step(each).gpus]
    per_node = max([step.gpus for step in steps] + ([training.processes_per_node] if training else []), default=0)
    names = {step.gpu_resource for step in steps} | ({training.gpu_resource} if training else set()) - {""}
    if not names - {""} or not per_node:
        return
    resource = sorted(names - {""})[0]
    total = max(int(needs(profile, components).get(resource, 0)), per_node)
    try:
        nodes = (ask("/api/v1/nodes") or {}).get("items", ())
    except NotSeen as error:
        found.unseen.append(f"GPUs of the nodes ({error})")
        return
    sizes = [int(quantity.parse(n.get("status", {}).get("allocatable", {}).get(resource, "0"))) for n in nodes]
    if sum(sizes) < total or max(sizes, default=0) < per_node:
        found.notes.append(
            f"the nodes that are there have {sum(sizes)} {resource} (at most {max(sizes, default=0)} on one), the "
            f"pipeline needs {total} ({per_node} on one): it waits until a node pool grows"
        )
    else:
        found.good.append(f"{sum(sizes)} {resource} on the nodes, {total} needed")


def shown(value: Decimal, resource: str) -> str:
    """A number as people write it: memory in GiB."""
    if resource == "memory":
        return f"{value / 2**30:.4g}Gi"
    return f"{value.normalize():f}"
