"""A real Kubernetes API server: the one that KUBECONFIG names, else one that is started from ../shared/kube."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.kubectl import Kubectl
from tests.cluster.kubelet import Kubelet
from tests.cluster.overlays import apply
from tests.cluster.trainer import Trainer

UP = Path(__file__).parents[3] / "shared" / "kube" / "up"
FOLDER = Path("/tmp/kube-api")
"""Its own default: ``up`` goes on with a server that runs there."""


@pytest.fixture(scope="session")
def cluster() -> Iterator[Kubectl]:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")
    named = os.environ.get("KUBECONFIG")
    if named:
        yield Kubectl(Path(named))
        return
    if not UP.exists():
        pytest.skip(f"no API server: KUBECONFIG is not set and {UP} is not there")
    running = (FOLDER / "api.pid").exists()
    started = subprocess.run([str(UP), str(FOLDER)], capture_output=True, text=True)
    if started.returncode:
        pytest.skip(f"{UP} failed: {started.stderr.strip()[-300:]}")
    yield Kubectl(FOLDER / "kubeconfig")
    if not running:
        subprocess.run([str(UP.with_name("down")), str(FOLDER)], check=False)


@pytest.fixture(scope="session")
def runner_config(cluster: Kubectl, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A kubeconfig of the pipeline's own account, in a cluster with our manifests."""
    apply(cluster, "kind")
    token = cluster.as_account("atelier", "pipeline-runner").token
    return cluster.write_config(tmp_path_factory.mktemp("runner") / "kubeconfig", {"token": token})


@pytest.fixture(scope="session")
def kubelet(cluster: Kubectl, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kubelet]:
    served = Kubelet(tmp_path_factory.mktemp("kubelet"))
    yield served
    served.shutdown()


@pytest.fixture
def trainer(cluster: Kubectl, runner_config: Path, kubelet: Kubelet) -> Iterator[Trainer]:
    """The rest of the cluster, with nothing in it."""
    played = Trainer(cluster.kubeconfig, kubelet)
    played.register_node()
    played.clear()
    yield played
    played.clear()
