"""Compiled pipelines: the same bytes every time, readable by Kubeflow, without secrets or paths of this machine."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2

PROJECT = Path(__file__).parents[2]


def compile_once(folder: Path, seed: str) -> dict[str, bytes]:
    code = (
        "from pathlib import Path; from atelier.orchestration import catalogue, compile as c\n"
        f"project = Path({str(PROJECT)!r})\n"
        "for name in catalogue.names(project):\n"
        f"    c.compile_pipeline(catalogue.load(project, name), Path({str(folder)!r}) / (name + '.yaml'))\n"
    )
    env = {**os.environ, "PYTHONHASHSEED": seed, "AWS_SECRET_ACCESS_KEY": "geheim123", "HF_TOKEN": "hf_geheim123"}
    subprocess.run([sys.executable, "-c", code], check=True, env=env, cwd="/")
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.yaml"))}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return compile_once(tmp_path_factory.mktemp("first"), "1")


def test_the_same_bytes_every_time(compiled: dict[str, bytes], tmp_path: Path) -> None:
    assert compiled
    assert compile_once(tmp_path, "2") == compiled


def test_no_secret_and_no_path_of_this_machine(compiled: dict[str, bytes]) -> None:
    for name, content in compiled.items():
        text = content.decode()
        for forbidden in ("geheim123", str(PROJECT), str(Path.home()) + "/", sys.prefix, os.uname().nodename):
            assert forbidden not in text, f"{name} holds {forbidden}"


def test_kubeflow_can_read_it_and_shows_a_select_box(compiled: dict[str, bytes]) -> None:
    document = next(yaml.safe_load_all(compiled["igligen_xl_512.yaml"]))
    spec = json_format.ParseDict(document, pipeline_spec_pb2.PipelineSpec())
    profile = spec.root.input_definitions.parameters["profile"]
    assert [value.string_value for value in profile.literals] == ["laptop", "paper"]
    assert profile.description
    assert all(parameter.description for parameter in spec.root.input_definitions.parameters.values())
    for executor in document["deploymentSpec"]["executors"].values():
        assert "python" in executor["container"]["image"]
        assert "pip install" not in " ".join(executor["container"]["command"])
