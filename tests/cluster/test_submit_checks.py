"""What a submit asks a real API server: as an administrator, and as the runner, who may not see everything."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from atelier.errors import ConfigError
from atelier.orchestration import cluster as subject
from atelier.orchestration import profile as profiles
from tests.cluster.kubectl import Kubectl
from tests.cluster.test_manifests_applied import apply

PROJECT = Path(__file__).parents[2]
COMPONENTS = {"train", "preprocess", "report"}

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def ready(cluster: Kubectl) -> Iterator[Kubectl]:
    apply(cluster, "gke")
    made = cluster(
        "create", "secret", "generic", "atelier-s3", "-n", "atelier", "--from-literal=AWS_ACCESS_KEY_ID=k",
        "--from-literal=AWS_SECRET_ACCESS_KEY=geheim123", "--dry-run=client", "-o", "yaml",
    )  # fmt: skip
    there = cluster.run("get", "secret", "atelier-s3", "-n", "atelier").returncode == 0
    if not there:
        cluster("apply", "--validate=false", "-f", "-", given=made)
    yield cluster
    if not there:
        cluster("delete", "secret", "atelier-s3", "-n", "atelier", "--ignore-not-found")


def asking(kubectl: Kubectl, monkeypatch: pytest.MonkeyPatch, folder: Path) -> Callable[..., Any]:
    """The real client by a kubeconfig; with a service account's token where there is one."""
    config = yaml.safe_load(
        subprocess.run(
            ["kubectl", "--kubeconfig", str(kubectl.kubeconfig), "config", "view", "--raw"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    )
    if kubectl.token:
        for user in config["users"]:
            user["user"] = {"token": kubectl.token}
    path = folder / "kubeconfig"
    path.write_text(yaml.safe_dump(config))
    monkeypatch.setenv("KUBECONFIG", str(path))
    return subject.connect()


def test_all_is_there_and_no_secret_is_read(ready: Kubectl, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ask = asking(ready, monkeypatch, tmp_path)
    found = subject.check(profiles.load(PROJECT, "paper"), "atelier", COMPONENTS, ask)
    found.refuse()
    assert {"namespace atelier", "service account pipeline-runner", "secret atelier-s3"} <= set(found.good)
    assert "training runtime atelier-torch" in found.good
    assert any("quota atelier: 16 of 64 nvidia.com/gpu" in line for line in found.good)
    assert not found.unseen
    assert any("16 (8 on one)" in note for note in found.notes), "there are no nodes"
    seen = ask("/api/v1/namespaces/atelier/secrets/atelier-s3", subject.METADATA_ONLY)
    assert seen["kind"] == "PartialObjectMetadata"
    assert "data" not in seen


def test_what_is_missing_is_named_all_at_once(ready: Kubectl, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ask = asking(ready, monkeypatch, tmp_path)
    own = tmp_path / "own.yaml"
    own.write_text(
        """
service_account: nobody
defaults: {secret_env: {HF_TOKEN: no-such-secret/token}}
training: {runtime: no-such-runtime, queue: no-such-queue, nodes: 9, processes_per_node: 8}
"""
    )
    found = subject.check(profiles.read(own), "atelier", COMPONENTS, ask)
    with pytest.raises(ConfigError) as caught:
        found.refuse()
    for name in (
        "service account nobody",
        "secret no-such-secret",
        "training runtime no-such-runtime",
        "queue no-such-queue",
    ):
        assert f"{name} is not there" in str(caught.value)
    assert "the quota atelier allows 64 of nvidia.com/gpu, the pipeline needs 72" in str(caught.value)
    found = subject.check(profiles.load(PROJECT, "paper"), "no-such-namespace", COMPONENTS, ask)
    assert [what for what, _ in found.bad] == ["namespace no-such-namespace is not there"]


def test_the_runner_sees_less_and_that_is_said(ready: Kubectl, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    runner = ready.as_account("atelier", "pipeline-runner")
    found = subject.check(profiles.load(PROJECT, "paper"), "atelier", COMPONENTS, asking(runner, monkeypatch, tmp_path))
    found.refuse()
    assert "secret atelier-s3" in found.good
    assert any("quota atelier" in line for line in found.good)
    assert "namespace atelier (not permitted)" in found.unseen
    assert "GPUs of the nodes (not permitted)" in found.unseen


def test_no_cluster_is_no_fault(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    nowhere = {
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:1"}}],
        "users": [{"name": "u", "user": {}}], "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
    }  # fmt: skip
    path = tmp_path / "kubeconfig"
    path.write_text(yaml.safe_dump(nowhere))
    monkeypatch.setenv("KUBECONFIG", str(path))
    found = subject.check(profiles.load(PROJECT, "paper"), "atelier", COMPONENTS)
    assert not found.bad
    assert any("does not answer" in line for line in found.unseen)
