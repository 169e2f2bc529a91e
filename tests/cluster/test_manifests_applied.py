"""The manifests of k8s/ on a real API server: taken as they are, and the accounts may do what they must and no more."""

import json
from typing import Any

import pytest

from tests.cluster.kubectl import Kubectl
from tests.cluster.overlays import K8S, apply

OVERLAYS = sorted(path.name for path in (K8S / "overlays").iterdir())

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def runner(cluster: Kubectl) -> Kubectl:
    apply(cluster, "kind")
    return cluster.as_account("atelier", "pipeline-runner")


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_is_applied(cluster: Kubectl, overlay: str) -> None:
    left = set(apply(cluster, overlay))
    # Kubernetes 1.20 serves budgets as policy/v1beta1; Karpenter's and GKE's own kinds are not installed here.
    assert left <= {
        "policy/v1/PodDisruptionBudget",
        "karpenter.sh/v1/NodePool",
        "karpenter.k8s.aws/v1/EC2NodeClass",
        "cloud.google.com/v1/ComputeClass",
    }
    runtime = cluster.get("clustertrainingruntime", "atelier-torch")
    (job,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    pod = job["template"]["spec"]["template"]["spec"]
    assert pod["containers"][0]["name"] == "node"


def job(name: str) -> dict[str, Any]:
    return {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": {"name": name, "namespace": "atelier"},
        "spec": {
            "runtimeRef": {"name": "atelier-torch", "kind": "ClusterTrainingRuntime"},
            "trainer": {"numNodes": 2, "numProcPerNode": 8, "command": ["torchrun", "-m", "x"]},
        },
    }


def test_the_runner_runs_trainings(cluster: Kubectl, runner: Kubectl) -> None:
    made = job("by-the-runner")
    runner("create", "--validate=false", "-f", "-", given=json.dumps(made))
    assert runner.get("trainjob", "by-the-runner", "-n", "atelier")["spec"]["trainer"]["numNodes"] == 2
    runner("get", "clustertrainingruntime", "atelier-torch")
    runner("get", "pods,events,resourcequotas", "-n", "atelier")
    runner("delete", "trainjob", "by-the-runner", "-n", "atelier", "--wait=false")
    assert cluster.get("trainjobs", "-n", "atelier")["items"] == []


def test_a_wrong_training_is_refused_by_the_server(runner: Kubectl) -> None:
    wrong = job("wrong")
    wrong["spec"]["trainer"]["numNodes"] = "two"
    done = runner.run("create", "--validate=false", "-f", "-", given=json.dumps(wrong))
    assert done.returncode != 0
    assert "numNodes" in done.stderr


@pytest.mark.parametrize(
    "wanted",
    [
        ["get", "secrets", "-n", "atelier"],
        ["get", "secret", "atelier-mlflow-db", "-n", "atelier"],
        ["get", "secrets", "-n", "kube-system"],
        ["get", "trainjobs", "-n", "default"],
        ["get", "clustertrainingruntime", "torch-distributed"],
        ["delete", "deployment", "mlflow", "-n", "atelier"],
        ["create", "serviceaccount", "x", "-n", "atelier"],
        ["delete", "resourcequota", "atelier", "-n", "atelier"],
        ["get", "nodes"],
    ],
    ids=" ".join,
)
def test_the_runner_may_not(runner: Kubectl, wanted: list[str]) -> None:
    done = runner.run(*wanted)
    assert done.returncode != 0
    assert "forbidden" in done.stderr.lower(), done.stderr


def test_the_runner_reads_the_one_secret_that_it_needs(cluster: Kubectl, runner: Kubectl) -> None:
    cluster.run("delete", "secret", "atelier-s3", "-n", "atelier")
    cluster("create", "secret", "generic", "atelier-s3", "-n", "atelier", "--from-literal=AWS_ACCESS_KEY_ID=x")
    assert runner.get("secret", "atelier-s3", "-n", "atelier")["data"]
    cluster("delete", "secret", "atelier-s3", "-n", "atelier")


def test_the_trainer_may_nothing(cluster: Kubectl, runner: Kubectl) -> None:
    trainer = cluster.as_account("atelier", "trainer")
    for wanted in (["get", "pods", "-n", "atelier"], ["get", "trainjobs", "-n", "atelier"], ["get", "secrets"]):
        assert "forbidden" in trainer.run(*wanted).stderr.lower()
