"""Compiled pipelines: the same bytes every time, readable by Kubeflow, what a profile says, nothing of this machine."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format
from kfp.kubernetes import kubernetes_executor_config_pb2 as kubernetes
from kfp.pipeline_spec import pipeline_spec_pb2 as ir

from atelier.errors import ConfigError
from atelier.orchestration import catalogue, profile
from atelier.orchestration.compile import compile_pipeline, slug, version_name
from atelier.training.trainjob_settings import VARIABLE, TrainJobSettings
from tests.documents import documents

PROJECT = Path(__file__).parents[2]
DIGEST = "sha256:" + "ab" * 32


def compile_once(folder: Path, seed: str) -> dict[str, bytes]:
    code = (
        "from pathlib import Path; from atelier.orchestration import catalogue, profile, compile as c\n"
        f"project = Path({str(PROJECT)!r})\n"
        "for name in catalogue.names(project):\n"
        "    for each in profile.names(project):\n"
        "        made = c.compile_pipeline(catalogue.load(project, name), profile.load(project, each))\n"
        f"        (Path({str(folder)!r}) / f'{{name}}-{{each}}.yaml').write_text(made.text)\n"
    )
    env = {**os.environ, "PYTHONHASHSEED": seed, "AWS_SECRET_ACCESS_KEY": "geheim123", "HF_TOKEN": "hf_geheim123"}
    subprocess.run([sys.executable, "-c", code], check=True, env=env, cwd="/")
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.yaml"))}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return compile_once(tmp_path_factory.mktemp("first"), "1")


def read(content: bytes) -> tuple[Any, dict[str, Any]]:
    """The pipeline as KFP's message, and each executor's configuration as kfp-kubernetes's."""
    first, second = documents(content)
    spec = json_format.ParseDict(first, ir.PipelineSpec())
    json_format.ParseDict(first["deploymentSpec"], ir.PipelineDeploymentConfig())
    platform = json_format.ParseDict(second, ir.PlatformSpec()).platforms["kubernetes"]
    pods = {
        name: json_format.ParseDict(json_format.MessageToDict(each), kubernetes.KubernetesExecutorConfig())
        for name, each in platform.deployment_spec.executors.items()
    }
    return spec, pods


def container(content: bytes, name: str) -> dict[str, Any]:
    found: dict[str, Any] = documents(content)[0]["deploymentSpec"]["executors"][f"exec-{name}"]["container"]
    return found


def environment(content: bytes, name: str) -> dict[str, str]:
    return {each["name"]: each["value"] for each in container(content, name)["env"]}


def test_the_same_bytes_every_time(compiled: dict[str, bytes], tmp_path: Path) -> None:
    assert len(compiled) == len(catalogue.names(PROJECT)) * len(profile.names(PROJECT))
    assert compile_once(tmp_path, "2") == compiled


def test_no_secret_and_no_path_of_this_machine(compiled: dict[str, bytes]) -> None:
    for name, content in compiled.items():
        text = content.decode()
        for forbidden in ("geheim123", str(PROJECT), str(Path.home()) + "/", sys.prefix, os.uname().nodename):
            assert forbidden not in text, f"{name} holds {forbidden}"


def test_kubeflow_reads_both_documents_and_shows_a_form(compiled: dict[str, bytes]) -> None:
    for name, content in compiled.items():
        spec, pods = read(content)
        inputs = spec.root.input_definitions.parameters
        assert all(parameter.description for parameter in inputs.values())
        assert all(parameter.HasField("default_value") for parameter in inputs.values()), "started from the page alone"
        chosen = [value.string_value for value in inputs["profile"].literals]
        assert inputs["profile"].default_value.string_value in chosen
        assert inputs["profile"].default_value.string_value == name.rsplit("-", 1)[1].removesuffix(".yaml")
        assert inputs["artifacts"].default_value.string_value.startswith("s3://")
        labels = {c.executor_label for c in spec.components.values() if c.executor_label}
        assert labels == set(pods)
        for label in labels:
            command = " ".join(container(content, label.removeprefix("exec-"))["command"])
            assert "pip install" not in command


def test_kfp_caches_nothing_and_retries_what_the_profile_says(compiled: dict[str, bytes]) -> None:
    spec, _ = read(compiled["igligen_xl_1024-paper.yaml"])
    dags = [spec.root.dag, *(each.dag for each in spec.components.values() if each.HasField("dag"))]
    tasks = {name: task for dag in dags for name, task in dag.tasks.items()}
    assert {"train", "train-2", "report", "condition-2"} <= set(tasks)
    assert not any(task.caching_options.enable_cache for task in tasks.values())
    assert tasks["report"].retry_policy.max_retry_count == 2
    assert tasks["train-2"].retry_policy.max_retry_count == 5
    assert tasks["report"].retry_policy.backoff_duration.seconds == 60
    assert tasks["condition-2"].retry_policy.max_retry_count == 0


def test_the_launcher_needs_no_gpu_and_is_told_of_its_nodes(compiled: dict[str, bytes]) -> None:
    paper = compiled["igligen_xl_512-paper.yaml"]
    launcher = container(paper, "train")["resources"]
    assert "accelerator" not in launcher
    assert launcher["resourceCpuRequest"] == "500m"
    assert launcher["cpuRequest"] == 0.5
    settings = TrainJobSettings.model_validate_json(environment(paper, "train")[VARIABLE])
    assert settings == profile.load(PROJECT, "paper").training
    assert (settings.nodes, settings.processes, settings.gpu_resource) == (2, 16, "nvidia.com/gpu")
    assert settings.image == container(paper, "train")["image"]
    assert VARIABLE not in environment(paper, "preprocess")
    small = TrainJobSettings.model_validate_json(environment(compiled["igligen_xl_512-laptop.yaml"], "train")[VARIABLE])
    assert (small.gpu_resource, small.processes) == ("", 2)


def test_a_step_on_a_gpu(compiled: dict[str, bytes]) -> None:
    paper = compiled["gligen_coco_512-paper.yaml"]
    resources = container(paper, "preprocess")["resources"]
    assert resources["accelerator"] == {
        "type": "nvidia.com/gpu",
        "count": "8",
        "resourceType": "nvidia.com/gpu",
        "resourceCount": "8",
    }
    assert resources["resourceMemoryLimit"] == "512Gi"
    _, pods = read(paper)
    pod = pods["exec-preprocess"]
    mounts = {each.mount_path: (each.medium, each.size_limit) for each in pod.empty_dir_mounts}
    assert mounts == {"/dev/shm": ("Memory", "64Gi"), "/scratch": ("", "500Gi")}
    assert [(each.key, each.operator, each.effect) for each in pod.tolerations] == [
        ("nvidia.com/gpu", "Exists", "NoSchedule")
    ]
    assert container(paper, "sample")["resources"]["accelerator"]["count"] == "1"
    assert not any("accelerator" in container(paper, name)["resources"] for name in ("download", "convert", "report"))


def test_every_pod_knows_its_run_where_to_work_and_which_secret_to_read(compiled: dict[str, bytes]) -> None:
    for name, content in compiled.items():
        spec, pods = read(content)
        for label, pod in pods.items():
            assert {f.name: f.field_path for f in pod.field_path_as_env} == {
                "ATELIER_RUN_ID": "metadata.labels['pipeline/runid']"
            }, (name, label)
            variables = environment(content, label.removeprefix("exec-"))
            assert variables["ATELIER_PROJECT"] == variables["HOME"] == variables["TMPDIR"] == "/scratch"
            assert variables["MLFLOW_EXPERIMENT_NAME"] == spec.pipeline_info.name
            (secret,) = pod.secret_as_env
            assert secret.secret_name == "atelier-s3"
            assert {each.env_var for each in secret.key_to_env} == {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
            assert pod.security_context.run_as_user == 1000
            assert pod.security_context.run_as_non_root
            assert pod.pod_metadata.labels["app.kubernetes.io/part-of"] == "atelier"
    _, pods = read(compiled["igligen_xl_512-paper.yaml"])
    assert pods["exec-download"].active_deadline_seconds == 172800
    assert pods["exec-train"].active_deadline_seconds == 0


def test_a_profile_of_ones_own_reaches_every_field(tmp_path: Path) -> None:
    own = tmp_path / "Team Own.yaml"
    own.write_text(
        """
recipe_profile: laptop
namespace: team
artifacts: s3://team/x
images: {registry: "r.example:5000/t", tag: v7}
defaults:
  cpu: "1"
  memory: 1Gi
  env: {A: "1", B: "2"}
  scratch: null
steps:
  report:
    image: other/report@sha256:%s
    env: {B: null, C: "3"}
    node_selector: {pool: cpu}
    tolerations: [{key: spot, value: "true", effect: NoExecute, seconds: 60}]
    annotations: {sidecar.istio.io/inject: "false"}
    image_pull_policy: Always
    image_pull_secrets: [pull]
    secret_env: {HF_TOKEN: hub/token}
    secrets_optional: true
    security: {user: null, group: null, non_root: true}
"""
        % ("cd" * 32)
    )
    mine = profile.read(own)
    made = compile_pipeline(catalogue.load(PROJECT, "igligen_xl_512"), mine, {"ops": f"pinned/ops@{DIGEST}"})
    content = made.text.encode()
    _, pods = read(content)
    pod = pods["exec-report"]
    assert dict(pod.node_selector.labels) == {"pool": "cpu"}
    assert (pod.tolerations[0].value, pod.tolerations[0].toleration_seconds) == ("true", 60)
    assert dict(pod.pod_metadata.annotations) == {"sidecar.istio.io/inject": "false"}
    assert (pod.image_pull_policy, pod.image_pull_secret[0].secret_name) == ("Always", "pull")
    assert (pod.secret_as_env[0].secret_name, pod.secret_as_env[0].optional) == ("hub", True)
    assert not pod.security_context.HasField("run_as_user")
    assert not pod.empty_dir_mounts
    variables = environment(content, "report")
    assert ("B" in variables, variables["A"], variables["C"]) == (False, "1", "3")
    assert variables["ATELIER_PROJECT"] == "/tmp"
    assert container(content, "report")["image"].startswith("other/report@")
    assert container(content, "download")["image"] == f"pinned/ops@{DIGEST}"
    assert container(content, "train")["image"] == "r.example:5000/t/python-train:v7"
    assert VARIABLE not in environment(content, "train"), "no training section: the step trains in its own pod"
    assert made.targets == {"ops", "train", "evaluate"}
    name = version_name(made, mine)
    assert name == f"igligen-xl-512-team-own-{made.digest[:12]}"


def test_a_trainings_image_is_the_pinned_one() -> None:
    paper = profile.load(PROJECT, "paper")
    made = compile_pipeline(catalogue.load(PROJECT, "igligen_xl_512"), paper, {"train": f"r/train@{DIGEST}"})
    settings = json.loads(environment(made.text.encode(), "train")[VARIABLE])
    assert settings["image"] == f"r/train@{DIGEST}"
    other = compile_pipeline(catalogue.load(PROJECT, "igligen_xl_512"), paper)
    assert other.digest != made.digest


def test_a_recipe_profile_that_a_pipeline_does_not_know_is_refused() -> None:
    parity = profile.load(PROJECT, "paper").model_copy(update={"recipe_profile": "parity"})
    with pytest.raises(ConfigError, match=r"parity.*paper"):
        compile_pipeline(catalogue.load(PROJECT, "igligen_xl_512"), parity)


def test_names_fit_kubernetes() -> None:
    assert slug("Ä long_Name." * 20) == slug("Ä long_Name." * 20)
    assert len(slug("x" * 100)) == 63
    assert slug("--A__b--") == "a-b"
