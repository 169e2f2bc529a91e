"""A real Kubernetes API server: the one that KUBECONFIG names, else one that is started from ../shared/kube."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.kubectl import Kubectl

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
