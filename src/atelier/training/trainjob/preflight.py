"""What can be refused before a TrainJob is made: a runtime that is not there, a quota that never fits."""

from atelier.errors import ConfigError, ServiceError
from atelier.training.trainjob.api import Api
from atelier.training.trainjob.manifest import GROUP, VERSION
from atelier.training.trainjob_settings import TrainJobSettings


def check(api: Api, settings: TrainJobSettings) -> None:
    """Looks at the cluster.

    Raises:
        ConfigError: the runtime is missing, or a quota of the namespace is below what the nodes ask for.
        ServiceError: the API server does not answer.
    """
    try:
        runtime = api.get("clustertrainingruntimes", settings.runtime, f"{GROUP}/{VERSION}", namespaced=False)
    except ServiceError as error:
        # The runner may read our own runtime alone; of another the Trainer itself will say that it is missing.
        if "refuses" not in error.what:
            raise
        return
    if runtime is None:
        raise ConfigError(
            f"the cluster has no ClusterTrainingRuntime {settings.runtime!r}",
            "kubectl apply -k k8s/overlays/…, or name one that is there (kubectl get clustertrainingruntimes)",
        )
    wanted = {
        f"requests.{settings.gpu_resource}": settings.nodes * settings.gpus_per_node,
        f"limits.{settings.gpu_resource}": settings.nodes * settings.gpus_per_node,
        "pods": settings.nodes,
        "count/pods": settings.nodes,
    }
    for quota in api.find("resourcequotas"):
        for name, hard in quota.get("spec", {}).get("hard", {}).items():
            if name in wanted and hard.isdigit() and int(hard) < wanted[name]:
                raise ConfigError(
                    f"the namespace {api.namespace} may have {hard} of {name}, the training asks for {wanted[name]}",
                    f"raise the ResourceQuota {quota['metadata']['name']}, or take fewer nodes",
                )
