"""Names and objects of TrainJobs: what Kubernetes and the Trainer allow, the same every time, no secret in them."""

import json
import re

import pytest

from atelier.errors import ConfigError
from atelier.training.trainjob import names
from atelier.training.trainjob.manifest import Identity, train_job
from atelier.training.trainjob_settings import VARIABLE, TrainJobSettings, from_environment

LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
VALUE = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?")

HARD = ["igligen_xl:1024", "", "Größe", "x" * 300, "-a-", '$(rm -rf /)"\n', "123"]


@pytest.mark.parametrize("title", HARD)
def test_a_name_is_a_label_with_room_for_the_pods_own(title: str) -> None:
    for attempt in (1, 9999):
        name = names.job_name("run", "key", attempt, title)
        assert LABEL.fullmatch(name)
        assert len(f"{name}-node-0-9999-abcde") <= 63
        assert name.endswith(f"-{attempt}")


def test_a_name_is_the_same_again_and_another_for_another() -> None:
    parts = [("a", "k", 1), ("b", "k", 1), ("a", "l", 1), ("a", "k", 2), ("", "k", 1), ("ak", "", 1)]
    made = [names.job_name(*part, "igligen_xl") for part in parts]
    assert len(set(made)) == len(parts)
    assert made == [names.job_name(*part, "igligen_xl") for part in parts]


@pytest.mark.parametrize("text", ["", "6d0c4ab4-5b5e-4b0e-9d0c-0d8f3f4b7a55", "2026-11-21-tiny_ab", *HARD])
def test_a_label_value_is_one_kubernetes_takes(text: str) -> None:
    value = names.label_value(text)
    assert len(value) <= 63
    assert not value or VALUE.fullmatch(value)
    if VALUE.fullmatch(text) and len(text) <= 63:
        assert value == text


def test_long_values_that_begin_alike_stay_apart() -> None:
    assert names.label_value("x" * 100) != names.label_value("x" * 101)


SETTINGS = TrainJobSettings(
    image="registry/train@sha256:" + "0" * 64,
    nodes=3,
    processes_per_node=4,
    resources_per_node={"cpu": "32", "memory": "400Gi"},
    env={"NCCL_DEBUG": "INFO", "AWS_REGION": "eu-central-1"},
    secret_env={"AWS_ACCESS_KEY_ID": "atelier-s3/AWS_ACCESS_KEY_ID"},
    node_selector={"gpu": "h200"},
    tolerations=({"key": "spot", "operator": "Exists"},),
    labels={"team": "layout"},
    annotations={"note": "x"},
    queue="gpus",
    deadline_s=3600,
)


def test_the_object_says_all_that_the_profile_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://store:9000")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "never-shown")
    owner = {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "name": "w", "uid": "u"}
    job = train_job(Identity("run-1", "abc", "igligen", owner), 2, SETTINGS, "module", ["plan"], "s3://b/logs")
    metadata, spec = job["metadata"], job["spec"]
    assert metadata["labels"] == {
        "team": "layout", "atelier/run": "run-1", "atelier/key": "abc", "atelier/attempt": "2",
        "kueue.x-k8s.io/queue-name": "gpus",
    }  # fmt: skip
    assert metadata["ownerReferences"] == [owner]
    assert spec["runtimeRef"]["name"] == "atelier-torch"
    assert spec["activeDeadlineSeconds"] == 3600
    trainer = spec["trainer"]
    assert (trainer["numNodes"], trainer["numProcPerNode"], trainer["image"]) == (3, 4, SETTINGS.image)
    assert trainer["resourcesPerNode"]["limits"] == {"cpu": "32", "memory": "400Gi", "nvidia.com/gpu": "4"}
    env = {entry["name"]: entry for entry in trainer["env"]}
    assert env["AWS_REGION"]["value"] == "eu-central-1", "the profile's own wins"
    assert env["AWS_ENDPOINT_URL"]["value"] == "http://store:9000"
    assert env["AWS_ACCESS_KEY_ID"]["valueFrom"]["secretKeyRef"]["key"] == "AWS_ACCESS_KEY_ID"
    assert not [name for name in env if name.startswith("PET_")]
    assert "never-shown" not in json.dumps(job)
    assert trainer["args"][-2:] == ["module", "plan"]
    (patch,) = spec["runtimePatches"]
    (replicated,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    pod = replicated["template"]["spec"]["template"]
    assert pod["spec"] == {"nodeSelector": {"gpu": "h200"}, "tolerations": [{"key": "spot", "operator": "Exists"}]}
    assert "containers" not in pod["spec"], "node's environment is the trainer's alone"
    assert patch["manager"]
    assert "podSpecOverrides" not in json.dumps(job)


def test_a_training_on_cpu_asks_for_no_gpu() -> None:
    settings = TrainJobSettings(image="i", processes_per_node=2, gpu_resource="")
    job = train_job(Identity("", "abc"), 1, settings, "m", [], "")
    assert job["spec"]["trainer"]["resourcesPerNode"] == {}
    assert job["spec"]["trainer"]["numProcPerNode"] == 2
    assert "ownerReferences" not in job["metadata"]
    assert "atelier/run" not in job["metadata"]["labels"]


def test_a_secret_without_its_key_is_refused() -> None:
    settings = TrainJobSettings(image="i", secret_env={"TOKEN": "atelier-s3"})
    with pytest.raises(ConfigError, match="TOKEN"):
        train_job(Identity("", "abc"), 1, settings, "m", [], "")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "Invalid JSON"),
        ('{"nodes": 2}', "image"),
        ('{"image": "i", "node": 2}', "node"),
        ('{"image": "i", "nodes": 0}', "greater than 0"),
        ('{"image": "i", "env": {"PET_NNODES": "3"}}', "PET_NNODES"),
    ],
)
def test_settings_that_do_not_fit_are_named(monkeypatch: pytest.MonkeyPatch, text: str, said: str) -> None:
    monkeypatch.setenv(VARIABLE, text)
    with pytest.raises(ConfigError, match=said):
        from_environment()


def test_without_settings_a_training_is_local(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert from_environment() is None
    monkeypatch.setenv(VARIABLE, SETTINGS.model_dump_json())
    assert from_environment() == SETTINGS
    assert SETTINGS.processes == 12
