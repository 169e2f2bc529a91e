"""Profiles: what is written in them is checked, and every mistake is named."""

from pathlib import Path

import pytest

from atelier.errors import ConfigError
from atelier.orchestration import profile, quantity

PROJECT = Path(__file__).parents[2]


def written(folder: Path, text: str) -> Path:
    path = folder / "own.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", profile.names(PROJECT))
def test_the_shipped_profiles_are_whole(name: str) -> None:
    found = profile.load(PROJECT, name)
    assert found.name == name
    assert found.training is not None
    assert found.training.image == found.images.reference("train")
    assert found.secrets() == {"atelier-s3": {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}}
    known = {path.stem for path in (PROJECT / "components").glob("*.py")}
    assert set(found.steps) <= known, "settings of a component that is not there"


def test_a_step_has_the_defaults_with_its_own_over_them() -> None:
    paper = profile.load(PROJECT)
    assert paper.name == "paper"
    assert paper.step("report") == paper.defaults
    sample = paper.step("sample")
    assert (sample.gpus, sample.shm) == (1, "16Gi")
    assert sample.env == paper.defaults.env
    assert paper.step("train").retry.count == 5
    assert paper.step("train").retry.backoff_s == paper.defaults.retry.backoff_s


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no fields"),
        ("a: [", "is no YAML"),
        ("defaults: {cpus: 4}", "defaults.cpus: Extra inputs"),
        ("defaults: {cpu: lots}", r"defaults.cpu: .*\('lots'\)"),
        ("defaults: {memory: 8Gi, memory_limit: 4Gi}", "memory request 8Gi is above its limit 4Gi"),
        ("steps: {sample: {gpus: -1}}", r"steps.sample.gpus"),
        ("defaults: {env: {AWS_SECRET_ACCESS_KEY: x}}", "looks like a secret"),
        ("defaults: {env: {HF_TOKEN: x}}", "looks like a secret"),
        ("defaults: {env: {A: $(HOME)}}", "Kubernetes and Argo replace"),
        ("defaults: {env: {A: '{{x}}'}}", "Kubernetes and Argo replace"),
        ("defaults: {env: {9A: x}}", "no name of an environment variable"),
        ("defaults: {env: {ATELIER_TRAINJOB: x}}", "from the profile's training section"),
        ("defaults: {env: {A: x}, secret_env: {A: s/k}}", "under env and under secret_env"),
        ("defaults: {secret_env: {A: s3cr3tvalue}}", "secret_env.A"),
        ("artifacts: /mnt/data", "no URI that a pod could reach"),
        ("artifacts: s3://key:secret@host/bucket", "holds credentials"),
        ("namespace: Not_A_Name", "namespace"),
        ("defaults: {image_pull_secrets: [Not_A_Name]}", "image_pull_secrets"),
        ("training: {queue: 'gpu queue'}", "training.queue"),
        ("training: {runtime: ''}", "training.runtime"),
        (f"namespace: {'n' * 64}", "namespace"),
        ("images: {references: {trian: x}}", "no such image: trian"),
        ("training: {nodes: 0}", "training.nodes"),
        ("training: {env: {PET_NNODES: '2'}}", "PET_NNODES"),
        ("training: {env: {A: $(B)}}", "Kubernetes and Argo replace"),
        ("training: {env: {HF_TOKEN: x}}", "training.env.HF_TOKEN looks like a secret"),
        ("training: {secret_env: {A: s3cr3tvalue}}", "training.secret_env.A"),
        ("defaults: {tolerations: [{operator: Exists, value: x}]}", "takes no value"),
        (f"defaults: {{labels: {{a: {'v' * 64}}}}}", "no value of a label"),
        ("defaults: {labels: {'a b': v}}", "no name of a label"),
        ("defaults: {node_selector: {UPPER.example/pool: gpu}}", "no name of a label"),
        (f"defaults: {{annotations: {{{'k' * 64}: v}}}}", "no name of a label"),
        ("training: {labels: {a: 'b c'}}", "no value of a label"),
        ("recipe_profile: huge", "recipe_profile"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        profile.read(written(tmp_path, text))
    assert str(tmp_path / "own.yaml") in str(caught.value)
    assert len(str(caught.value).splitlines()) < 10


def test_a_plain_word_with_token_in_it_is_no_secret(tmp_path: Path) -> None:
    found = profile.read(written(tmp_path, "defaults: {env: {TOKENIZERS_PARALLELISM: 'false'}}"))
    assert found.defaults.env == {"TOKENIZERS_PARALLELISM": "false"}


def test_by_name_and_by_path(tmp_path: Path) -> None:
    path = written(tmp_path, "recipe_profile: laptop")
    assert profile.load(PROJECT, str(path)).recipe_profile == "laptop"
    with pytest.raises(ConfigError, match="did you mean laptop"):
        profile.load(PROJECT, "labtop")
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        profile.load(PROJECT, str(tmp_path / "none.yaml"))


def test_quantities() -> None:
    assert [float(quantity.parse(text)) for text in ("500m", "2", "1.5", "1k", "1Ki", "2Gi")] == [
        0.5, 2, 1.5, 1000, 1024, 2 * 2**30,
    ]  # fmt: skip
    assert float(quantity.parse("100n")) == 1e-7, "as a server may say it"
    assert int(quantity.parse("2Ei")) == 2 * 2**60
    for text in ("two", "16Kim", "5mm"):
        with pytest.raises(ConfigError):
            quantity.parse(text)
