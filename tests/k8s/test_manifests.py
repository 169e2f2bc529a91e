"""The overlays of k8s/ build, fit every Kubernetes that we name, and keep what docs/kubernetes.md promises."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.documents import documents

K8S = Path(__file__).parents[2] / "k8s"
OVERLAYS = sorted(path.name for path in (K8S / "overlays").iterdir())
VERSIONS = [f"1.{minor}" for minor in range(30, 38)]
# Kinds of others' CRDs, which the schemas of Kubernetes do not hold.
FOREIGN = {
    "trainer.kubeflow.org": "the cluster tests apply it with Trainer's own CRD",
    "kueue.x-k8s.io": "no CRD here",
    "karpenter.sh": "no CRD here",
    "karpenter.k8s.aws": "no CRD here",
    "cloud.google.com": "no CRD here",
}

pytestmark = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")


def build(folder: Path) -> list[dict[str, Any]]:
    done = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [document for document in documents(done.stdout) if document]


@pytest.fixture(scope="module", params=[*OVERLAYS, "eks+kueue"])
def objects(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    name, _, component = request.param.partition("+")
    if not component:
        return build(K8S / "overlays" / name)
    # An overlay of a user, who asks for the queue too.
    copied = tmp_path_factory.mktemp("k8s") / "k8s"
    shutil.copytree(K8S, copied)
    mine = copied / "overlays" / "mine"
    mine.mkdir()
    content = {"resources": [f"../{name}"], "components": [f"../../components/{component}"]}
    (mine / "kustomization.yaml").write_text(yaml.safe_dump(content))
    return build(mine)


def group(item: dict[str, Any]) -> str:
    version: str = item["apiVersion"]
    return version.partition("/")[0] if "/" in version else ""


def pods(items: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, pod spec) of everything that makes pods."""
    for item in items:
        name = f"{item['kind']} {item['metadata']['name']}"
        if item["kind"] in ("Deployment", "StatefulSet"):
            yield name, item["spec"]["template"]["spec"]
        if item["kind"] == "ClusterTrainingRuntime":
            for job in item["spec"]["template"]["spec"]["replicatedJobs"]:
                yield name, job["template"]["spec"]["template"]["spec"]


@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_fits_the_schema(objects: list[dict[str, Any]], version: str) -> None:
    looked_at = 0
    for item in objects:
        if group(item) in FOREIGN:
            continue
        kubernetes_validate.validate(item, version, strict=True)
        looked_at += 1
    assert looked_at > 20


def test_a_wrong_field_is_found() -> None:
    """The test above can fail."""
    wrong = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "x"}, "automount": True}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, "1.33", strict=True)


def test_the_pods_of_the_runtime_fit_the_schema_of_a_pod(objects: list[dict[str, Any]]) -> None:
    """Trainer's CRD takes pod templates as they are; Kubernetes' own schema knows their fields."""
    for name, spec in pods(objects):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": spec}
        for version in VERSIONS:
            kubernetes_validate.validate(pod, version, strict=True)
        assert spec["containers"], name


def test_no_secret_is_written_down(objects: list[dict[str, Any]]) -> None:
    assert not [item for item in objects if item["kind"] == "Secret"]
    text = yaml.safe_dump_all(objects).lower()
    assert "password:" not in text.replace("postgres_password", "")
    assert "secret_access_key: " not in text


def test_pods_run_without_rights(objects: list[dict[str, Any]]) -> None:
    found = list(pods(objects))
    assert len(found) == 3
    for name, spec in found:
        assert spec["securityContext"]["runAsNonRoot"] is True, name
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        for container in spec["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False, name
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}, name
            image, _, tag = container["image"].rpartition(":")
            assert image, f"{name}: {container['image']} names no version"
            assert tag != "latest", name


def test_everything_lies_in_the_namespace_but_what_cannot(objects: list[dict[str, Any]]) -> None:
    everywhere = {
        "Namespace", "ClusterRole", "ClusterRoleBinding", "PriorityClass", "ClusterTrainingRuntime",
        "ClusterQueue", "ResourceFlavor", "NodePool", "EC2NodeClass", "ComputeClass",
    }  # fmt: skip
    for item in objects:
        if item["kind"] not in everywhere:
            assert item["metadata"].get("namespace") == "atelier", f"{item['kind']} {item['metadata']['name']}"


def test_the_runner_may_read_one_secret_and_change_only_trainjobs(objects: list[dict[str, Any]]) -> None:
    rules = [rule for item in objects if item["kind"] in ("Role", "ClusterRole") for rule in item["rules"]]
    for rule in rules:
        assert "*" not in rule["verbs"] + rule["resources"] + rule["apiGroups"]
        if "secrets" in rule["resources"]:
            assert rule["resourceNames"] == ["atelier-s3"]
            assert rule["verbs"] == ["get"]
        if {"create", "patch", "update", "delete"} & set(rule["verbs"]):
            assert set(rule["resources"]) <= {"trainjobs", "workflowtaskresults"}


def test_trainings_have_shared_memory_and_wait_for_a_checkpoint(objects: list[dict[str, Any]]) -> None:
    (spec,) = [spec for name, spec in pods(objects) if name.startswith("ClusterTrainingRuntime")]
    (node,) = spec["containers"]
    assert node["name"] == "node", "Trainer looks for this name"
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in node["volumeMounts"]}
    assert mounts["/dev/shm"]["emptyDir"]["medium"] == "Memory"
    assert spec["terminationGracePeriodSeconds"] >= 60
    names = [variable["name"] for variable in node["env"]]
    assert not [name for name in names if name.startswith("PET_")], "the torch runtime refuses these"
    assert len(names) == len(set(names))


def test_what_names_another_object_names_one_that_is_there(objects: list[dict[str, Any]]) -> None:
    there = {(item["kind"], item["metadata"]["name"]) for item in objects}
    for name, spec in pods(objects):
        assert ("ServiceAccount", spec.get("serviceAccountName", "trainer")) in there, name
        assert ("PriorityClass", spec["priorityClassName"]) in there, name
        for container in spec["containers"]:
            for variable in container.get("env", []):
                source = variable.get("valueFrom", {})
                if "configMapKeyRef" in source:
                    assert ("ConfigMap", source["configMapKeyRef"]["name"]) in there
                if "secretKeyRef" in source:
                    assert source["secretKeyRef"]["name"] in ("atelier-mlflow-db", "atelier-s3")
    for item in objects:
        for subject in item.get("subjects", []):
            assert (subject["kind"], subject["name"]) in there
    labels = [set(spec_labels(item).items()) for item in objects]
    for item in objects:
        selector = item.get("spec", {}).get("selector", {})
        if item["kind"] in ("Service", "PodDisruptionBudget"):
            wanted = set((selector.get("matchLabels") or selector).items())
            assert any(wanted <= found for found in labels), f"{item['kind']} {item['metadata']['name']}"


def spec_labels(item: dict[str, Any]) -> dict[str, str]:
    """Labels of the pods that an object makes."""
    if item["kind"] in ("Deployment", "StatefulSet"):
        return dict(item["spec"]["template"]["metadata"]["labels"])
    if item["kind"] == "ClusterTrainingRuntime":
        (job,) = item["spec"]["template"]["spec"]["replicatedJobs"]
        return dict(job["template"]["spec"]["template"]["metadata"]["labels"])
    return {}


def test_mlflow_is_told_its_own_names(objects: list[dict[str, Any]]) -> None:
    (config,) = [item for item in objects if (item["kind"], item["metadata"]["name"]) == ("ConfigMap", "mlflow")]
    hosts = config["data"]["allowed-hosts"].split(",")
    assert {"mlflow.atelier.svc.cluster.local:5000", "mlflow.atelier", "localhost:5000"} <= set(hosts)
