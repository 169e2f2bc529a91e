"""The whole passage without a cluster's machines: the compiled pipeline's train step, as KFP's launcher would start it,
with the TrainJob launcher against a real API server; the test's controller starts what the TrainJob says as two nodes
with a disk each and S3 between them, and takes one node away in the middle."""

import base64
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from atelier.orchestration import catalogue, profile
from atelier.orchestration.compile import compile_pipeline
from atelier.storage import s3
from atelier.storage.folder import existing
from atelier.storage.manifest import Manifest
from atelier.training.trainjob_settings import VARIABLE, TrainJobSettings
from tests.cluster.kubectl import Kubectl
from tests.cluster.kubelet import Kubelet
from tests.cluster.launching import RUN
from tests.cluster.test_trainjob_launcher import in_workflow
from tests.cluster.trainer import RunningTrainer, Trainer, wait_for
from tests.documents import documents
from tests.servers import S3Server, moto_server
from tests.tracking.conftest import empty_store, store  # noqa: F401  fixtures

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
SEED = 5
OVERRIDES = json.dumps(
    {
        "nodes": 2, "checkpoint_every_steps": 2, "checkpoint_every_s": None, "preview_every": 8, "validate_every": 16,
        "log_every": 4, "loader_workers": 0,
    }
)  # fmt: skip
PARAMETERS: dict[str, Any] = {
    "recipe": "igligen_xl", "profile": "laptop", "steps": 16, "batch_size": 4, "learning_rate": 0.0, "seed": SEED,
    "processes": 2, "zero_stage": -1, "overrides": OVERRIDES, "start": "",
}  # fmt: skip


@pytest.fixture
def storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    for name in [name for name in os.environ if name.startswith(("AWS_", "ATELIER_"))]:
        monkeypatch.delenv(name)
    with moto_server(tmp_path) as server:
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        yield server


@pytest.fixture
def inputs(storage: S3Server, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Manifest, Manifest]:  # noqa: F811
    """(shards, base) on S3, made by their own steps."""
    from atelier.steps import base, digits, download, preprocess

    monkeypatch.setenv("ATELIER_PROJECT", str(tmp_path / "project"))
    artifacts = f"{storage.uri}/artifacts"
    place: dict[str, Any] = {"recipe": "igligen_xl", "profile": "laptop", "artifacts": artifacts}
    raw = download.run(source=digits.run(images=16, seed=0, artifacts=artifacts), artifacts=artifacts)
    frozen = base.run(pretrain=False, uri="", seed=0, **place)
    shards = preprocess.run(raw=raw, base=frozen, samples_per_shard=0, batch_size=0, max_quarantined=0, **place)
    return shards, frozen


@pytest.fixture
def cluster_machines(cluster: Kubectl, trainer: Trainer, kubelet: Kubelet, tmp_path: Path) -> Iterator[RunningTrainer]:
    with RunningTrainer(cluster.kubeconfig, kubelet, tmp_path / "disks", tmp_path / "scratch") as machines:
        yield machines


def executor() -> list[str]:
    """Command and arguments of the compiled pipeline's train step."""
    compiled = compile_pipeline(catalogue.load(ROOT, "igligen_xl_512"), profile.load(ROOT, "laptop"))
    spec = documents(compiled.text)[0]
    label = spec["components"]["comp-train"]["executorLabel"]
    container = spec["deploymentSpec"]["executors"][label]["container"]
    return [*container["command"], *container["args"]]


def executor_input(folder: Path, shards: Manifest, base: Manifest, artifacts: str) -> dict[str, Any]:
    """What KFP's driver hands a step, with the input artifacts as KFP's launcher has fetched them."""

    def artifact(name: str, kind: str, manifest: Manifest | None) -> dict[str, Any]:
        path = folder / name
        if manifest is not None:
            path.write_text(manifest.to_json())
        return {"artifacts": [{"name": name, "type": {"schemaTitle": kind}, "uri": str(path), "metadata": {}}]}

    return {
        "inputs": {
            "parameterValues": {**PARAMETERS, "artifacts": artifacts},
            "artifacts": {
                "shards": artifact("shards", "system.Dataset", shards),
                "base": artifact("base", "system.Model", base),
            },
        },
        "outputs": {
            "artifacts": {"training": artifact("training", "system.Model", None)},
            "outputFile": str(folder / "executor-output.json"),
        },
    }


def variables(machines: RunningTrainer, server: S3Server, runner_config: Path, pod: dict[str, str]) -> dict[str, str]:
    """The step's environment in its pod: what the profile gives it, and KFP."""
    keys = {name: f"atelier-s3/{name}" for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
    encoded = {name: base64.b64encode(server.env[name].encode()).decode() for name in keys}
    machines.core.create_namespaced_secret("atelier", {"metadata": {"name": "atelier-s3"}, "data": encoded})
    settings = TrainJobSettings(
        image="atelier-train@sha256:" + "0" * 64,
        namespace="atelier",
        nodes=2,
        processes_per_node=1,
        gpu_resource="",
        env={
            "PYTHONPATH": str(ROOT / "src"), "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1",
            "OMP_WAIT_POLICY": "PASSIVE",
        },
        secret_env=keys,
        scratch=str(machines.scratch),
    )  # fmt: skip
    return {
        **os.environ, **server.env, **pod,
        VARIABLE: settings.model_dump_json(),
        "KUBECONFIG": str(runner_config),
        "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }  # fmt: skip


def test_the_compiled_step_on_two_nodes_ends_as_the_local_launcher_does(
    inputs: tuple[Manifest, Manifest],
    storage: S3Server,
    cluster: Kubectl,
    cluster_machines: RunningTrainer,
    runner_config: Path,
    store: str,  # noqa: F811
    tmp_path: Path,
) -> None:
    from atelier.steps import train

    machines, (shards, base), artifacts = cluster_machines, inputs, f"{storage.uri}/cluster"
    given = executor_input(tmp_path, shards, base, artifacts)
    command = [word.replace("{{$}}", json.dumps(given)) for word in executor()]
    cluster.run("delete", "secret", "atelier-s3", "-n", "atelier")
    environment = variables(machines, storage, runner_config, in_workflow(machines, cluster))
    step = subprocess.Popen(
        command, env=environment, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        (first,) = wait_for(lambda: list(machines.processes), 120)
        checkpoints = f"{artifacts}/checkpoints"
        wait_for(lambda: any(name.endswith("manifest.json") for name in s3.sizes(checkpoints)) or step.poll(), 120)
        # A spot node goes: its container is asked to end.
        machines.processes[first][1].send_signal(signal.SIGTERM)
        shown, _ = step.communicate(timeout=240)
    except subprocess.TimeoutExpired as error:
        pytest.fail(f"the step does not end: {(error.stdout or b'')[-6000:]!r}")
    finally:
        step.kill()
        cluster.run("delete", "secret", "atelier-s3", "-n", "atelier")
    assert step.returncode == 0, shown
    made = Manifest.parse((tmp_path / "training").read_text())

    here = train.run(shards=shards, base=base, artifacts=f"{storage.uri}/here", **PARAMETERS)
    weights = {entry.path: entry.sha256 for entry in here.files if entry.path.endswith(".safetensors")}
    assert sorted(weights) == ["checkpoint/rank-00000.safetensors", "checkpoint/rank-00001.safetensors"]
    assert {entry.path: entry.sha256 for entry in made.files if entry.path in weights} == weights
    assert [entry.path for entry in made.files] == [entry.path for entry in here.files]
    assert made.metadata == here.metadata
    assert made.made_by["key"] == here.made_by["key"]
    previews = {entry.path: entry.sha256 for entry in here.files if entry.path.startswith("previews/")}
    assert len(previews) == 2
    assert {entry.path: entry.sha256 for entry in made.files if entry.path in previews} == previews

    # How it came there: two TrainJobs, the second from where the first saved.
    jobs = machines.jobs()
    assert [job["metadata"]["labels"]["atelier/run"] for job in jobs] == [RUN, RUN]
    assert jobs[0]["metadata"]["annotations"]["atelier/cause"] == "preempted"
    assert "resuming from step" in shown
    assert "training: 64/64 samples 100%" in shown, "rank 0's output is the step's"
    assert made.made_by["notes"]["attempts"] == 2
    assert made.made_by["notes"]["node_hours"] > 0
    disks = sorted((tmp_path / "disks").glob("*/cache"))
    if os.geteuid() == 0:
        assert len(disks) == 4, "each node fetched the base onto a disk of its own"
    assert existing(made.uri) == made
    assert not s3.sizes(checkpoints)
    assert any(name.startswith(f".logs/{jobs[0]['metadata']['name']}/rank-00") for name in s3.sizes(made.uri))

    from atelier.tracking.service import client

    connected = client(store)
    runs = connected.search_runs([e.experiment_id for e in connected.search_experiments()])
    (tracked,) = [run for run in runs if run.data.metrics.get("attempts") == 2]
    assert tracked.data.metrics["loss"] == pytest.approx(made.metadata["metrics"]["train_loss"], rel=1e-4)
