"""Applies an overlay of k8s/ to the test's server."""

import subprocess
from pathlib import Path
from typing import Any

import yaml

from tests.cluster.kubectl import Kubectl
from tests.documents import documents

K8S = Path(__file__).parents[2] / "k8s"


def known(cluster: Kubectl) -> set[tuple[str, str]]:
    """(apiVersion, kind) of what the server serves."""
    found = set()
    for line in cluster("api-resources", "--no-headers").splitlines():
        *_, version, _namespaced, kind = line.split()
        found.add((version, kind))
    return found


def build(overlay: str) -> list[dict[str, Any]]:
    """The overlay's objects."""
    text = subprocess.run(
        ["kubectl", "kustomize", str(K8S / "overlays" / overlay)], capture_output=True, text=True, check=True
    ).stdout
    return [document for document in documents(text) if document]


def apply(cluster: Kubectl, overlay: str) -> list[str]:
    """Applies what the server knows; returns the rest."""
    served, left = known(cluster), []
    wanted = []
    for item in build(overlay):
        kind = (item["apiVersion"], item["kind"])
        if kind in served:
            wanted.append(item)
        else:
            left.append("/".join(kind))
    # Overlays follow each other here; in a cluster there is one, and storage classes of volumes never change.
    cluster("delete", "statefulset", "mlflow-db", "-n", "atelier", "--ignore-not-found", "--cascade=background")
    # --validate=false: this server is older than the client, whose schema check it does not know; it validates itself.
    cluster("apply", "--validate=false", "-f", "-", given=yaml.safe_dump_all(wanted))
    return left
