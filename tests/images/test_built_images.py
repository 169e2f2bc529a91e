"""The images really built, by buildah on a base made by debootstrap, and components run in them as KFP runs them.

``make images-test`` (needs root, buildah and debootstrap; ten minutes). ``ATELIER_TEST_BASE_IMAGE`` names another base.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from atelier.steps.digits import run as draw
from atelier.storage.manifest import Manifest
from tests.tracking.conftest import empty_store, store  # noqa: F401  fixtures

pytestmark = [pytest.mark.images, pytest.mark.timeout(1800)]

PROJECT = Path(__file__).parents[2]
BASE = os.environ.get("ATELIER_TEST_BASE_IMAGE", "localhost/atelier-base")
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
LIMIT = 400_000_000


def buildah(*words: str, check: bool = True) -> str:
    done = subprocess.run(["buildah", *words], capture_output=True, text=True)
    assert done.returncode == 0 or not check, f"buildah {words[0]}: {done.stderr[-2000:]}"
    return done.stdout.strip()


@pytest.fixture(scope="module", autouse=True)
def base() -> None:
    if shutil.which("buildah") is None or os.geteuid() != 0:
        pytest.skip("images are built here by buildah as root")
    os.environ.setdefault("STORAGE_DRIVER", "vfs")
    os.environ.setdefault("BUILDAH_ISOLATION", "chroot")
    if subprocess.run(["buildah", "inspect", "--type", "image", BASE], capture_output=True).returncode:
        if shutil.which("debootstrap") is None:
            pytest.skip(f"there is no image {BASE}, and no debootstrap to make it")
        subprocess.run([str(PROJECT / "images/debootstrap-base"), BASE], check=True)


def build(target: str, folder: Path) -> str:
    """``atelier images`` with this machine's certificates and, where it has some, its wheels; returns the reference."""
    (folder / "pip.conf").write_text(f"[global]\ncert = {CERTIFICATES}\n")
    (folder / "profile.yaml").write_text("images: {registry: localhost/atelier-test, tag: test}\n")
    words = ["--base-image", BASE, "--builder", "buildah", "--profile", str(folder / "profile.yaml")]
    words += ["--pip-config", str(folder / "pip.conf"), "--volume", f"{CERTIFICATES}:{CERTIFICATES}:ro"]
    wheels = os.environ.get("PIP_FIND_LINKS", "")
    words += ["--wheels", wheels] if wheels and Path(wheels).is_dir() else []
    done = subprocess.run(
        [sys.executable, "-m", "atelier.cli", "images", target, *words],
        cwd=PROJECT, capture_output=True, text=True, env={**os.environ, "ATELIER_PROJECT": str(PROJECT)},
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    assert done.stdout.splitlines()[-1].split()[0] == target
    return done.stdout.splitlines()[-1].split()[1]


@pytest.fixture(scope="module")
def ops(tmp_path_factory: pytest.TempPathFactory) -> str:
    return build("ops", tmp_path_factory.mktemp("ops"))


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> str:
    return build("train", tmp_path_factory.mktemp("train"))


@pytest.fixture
def container(request: pytest.FixtureRequest) -> Iterator[str]:
    """A container of the image that the test names by ``@pytest.mark.parametrize(…, indirect)``."""
    name = buildah("from", request.getfixturevalue(request.param))
    yield name
    buildah("rm", name)


def run_in(container: str, work: Path, *words: str) -> str:
    """Runs words in the image as its own user, with ``work`` at /work."""
    os.chown(work, 1000, 1000)
    return buildah(
        "run", "--volume", f"{work}:/work", "--env", "HOME=/work", "--env", "ATELIER_PROJECT=/work",
        "--env", "MLFLOW_TRACKING_URI=http://127.0.0.1:9", "--workingdir", "/work", container, "--", *words,
    )  # fmt: skip


def component(
    container: str, work: Path, name: str, parameters: dict[str, Any], inputs: dict[str, Manifest]
) -> Manifest:
    """Runs a component's own command with the executor input that KFP's launcher hands over."""
    import importlib

    spec = getattr(importlib.import_module(f"components.{name}"), name).component_spec
    folder = work / name
    folder.mkdir()
    os.chown(folder, 1000, 1000)

    def artifact(key: str, manifest: Manifest | None) -> dict[str, Any]:
        if manifest is not None:
            (folder / key).write_text(manifest.to_json())
        schema = {"schemaTitle": "system.Artifact"}
        return {"artifacts": [{"name": key, "type": schema, "uri": f"/work/{name}/{key}", "metadata": {}}]}

    outputs = {key: artifact(key, None) for key in spec.outputs}
    handed = {
        "inputs": {
            "parameterValues": parameters | {"artifacts": "/work/artifacts"},
            "artifacts": {key: artifact(key, manifest) for key, manifest in inputs.items()},
        },
        "outputs": {"artifacts": outputs, "outputFile": f"/work/{name}/output.json"},
    }
    container_spec = spec.implementation.container
    words = [*container_spec.command, *map(str, container_spec.args)]
    run_in(container, work, *[word.replace("{{$}}", json.dumps(handed)) for word in words])
    return Manifest.parse((folder / next(iter(outputs))).read_text())


@pytest.mark.parametrize("container", ["ops"], indirect=True)
def test_ops_is_small_has_no_torch_and_runs_a_component(
    ops: str,
    container: str,
    tmp_path: Path,
    store: str,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    root = Path(buildah("mount", container))
    bytes_held = sum(path.lstat().st_size for path in root.rglob("*") if path.is_file() and not path.is_symlink())
    assert bytes_held < LIMIT, f"{bytes_held / 1e6:.0f} MB"
    assert run_in(container, tmp_path, "id", "-u") == "1000"
    assert "ModuleNotFoundError" in run_in(container, tmp_path, "sh", "-c", "python3 -c 'import torch' 2>&1 || true")
    labels = json.loads(buildah("inspect", "--type", "image", ops))["OCIv1"]["config"]["Labels"]
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert labels["org.opencontainers.image.version"]

    monkeypatch.setenv("ATELIER_PROJECT", str(tmp_path / "project"))
    source = draw(images=12, seed=0, artifacts=str(tmp_path / "artifacts"))
    subprocess.run(["chown", "-R", "1000:1000", str(tmp_path)], check=True)
    moved = Manifest.parse(source.to_json().replace(str(tmp_path), "/work"))
    raw = component(container, tmp_path, "download", {}, {"source": moved})
    assert raw.kind.endswith("raw")
    assert all((tmp_path / raw.uri.split("/work/")[1] / entry.path).is_file() for entry in raw.files)


@pytest.mark.parametrize("container", ["train"], indirect=True)
def test_train_trains_from_raw_data(train: str, container: str, tmp_path: Path) -> None:
    """Its own torch and DeepSpeed, as a user without a name: source, base, shards and two steps on two ranks."""
    of = {"recipe": "igligen_xl", "profile": "laptop"}
    drawn = component(container, tmp_path, "source", {**of, "images": 12, "seed": 0}, {})
    raw = component(container, tmp_path, "download", {}, {"source": drawn})
    frozen = component(container, tmp_path, "base", {**of}, {})
    shards = component(container, tmp_path, "preprocess", {**of}, {"raw": raw, "base": frozen})
    assert shards.metadata["samples"] == 12
    settings = {**of, "steps": 2, "batch_size": 4, "processes": 2}
    training = component(container, tmp_path, "train", settings, {"shards": shards, "base": frozen})
    assert training.metadata["steps"] == 2
    assert any(entry.path.endswith(".safetensors") for entry in training.files)
