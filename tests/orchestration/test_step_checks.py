"""What a run would fail on later is said before its first step: by the steps' own rules."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from atelier.errors import ConfigError
from atelier.orchestration import catalogue
from atelier.orchestration.step_checks import check_steps
from atelier.recipes.twins import assets

PROJECT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def sdxl() -> catalogue.Pipeline:
    return catalogue.load(PROJECT, "igligen_xl_512")


@pytest.mark.parametrize("name", ["igligen_xl_512", "gligen_coco_512"])
def test_a_pipeline_as_it_is_passes_where_its_base_is_there(name: str) -> None:
    check_steps(catalogue.load(PROJECT, name), {"pretrain": True})


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"processes": 5}, "step train would fail: .*batch_size 48 is not divisible by processes 5"),
        ({"batch_size": 7}, "step train would fail: .*batch_size 7 is not divisible by processes 2"),
        ({"train_overrides": '{"micro_batch": 7}'}, "micro_batch 7: gradient accumulation needs whole micro-batches"),
        ({"train_overrides": '{"precision": "bf16"}', "zero_stage": 0}, "zero_stage 0 with bf16"),
        ({"zero_stage": 4}, "step train would fail: .*zero_stage"),
        ({"train_overrides": '{"lr": 1}', "learning_rate": 0.1}, "lr is given twice"),
        ({"train_overrides": "{"}, "train_overrides is no JSON"),
        ({"sample_steps": -1}, "step sample would fail"),
        ({"images": 0}, "step source would fail"),
        ({"tars": "s3://bucket/a.tar"}, "step source would fail: no URI for captions and boxes"),
        ({"max_quarantined": 1.5}, "step preprocess would fail"),
        ({"pretrain": True, "base_model": "hf://a/b"}, "step base would fail: pretrain=true"),
    ],
)
def test_what_a_step_would_refuse_is_refused_ahead(sdxl: catalogue.Pipeline, given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check_steps(sdxl, given)


def test_crossflow_is_checked_ahead_too() -> None:
    crossflow = catalogue.load(PROJECT, "crossflow_256_clip_dimr")
    check_steps(crossflow, {})
    check_steps(crossflow, {"profile": "paper", "pictures": "s3://b/*.jpg", "captions": "s3://b/list.jsonl"})
    with pytest.raises(ConfigError, match="step source would fail: no URI for captions"):
        check_steps(crossflow, {"pictures": "s3://b/*.jpg"})
    with pytest.raises(ConfigError, match=r"step evaluate-text would fail: .*no captions to draw"):
        check_steps(crossflow, {"clip": "openai/clip-vit-base-patch32"})


def test_a_profile_is_checked_with_its_own_numbers(sdxl: catalogue.Pipeline) -> None:
    check_steps(sdxl, {"profile": "paper", "processes": 32})
    with pytest.raises(ConfigError, match="profile paper: train: batch_size 64 is not divisible by processes 5"):
        check_steps(sdxl, {"profile": "paper", "processes": 5})


def test_a_base_that_is_not_shipped_is_told_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    coco = catalogue.load(PROJECT, "gligen_coco_512")
    monkeypatch.setattr(assets, "files", lambda package: tmp_path)
    with pytest.raises(ConfigError, match="step base would fail: the package ships no base named sd_twin") as caught:
        check_steps(coco, {})
    assert "pretrain=true" in caught.value.fix
    check_steps(coco, {"pretrain": True})
    check_steps(coco, {"base_model": "s3://bucket/sd"})


def test_the_checks_need_no_torch() -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom atelier.orchestration import catalogue, step_checks\n"
        f"step_checks.check_steps(catalogue.load(Path({str(PROJECT)!r}), 'igligen_xl_512'), {{}})\n"
        "print([name for name in ('torch', 'diffusers', 'transformers', 'deepspeed') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PROJECT)
    assert result.stdout.strip() == "[]"


def test_the_command_line_starts_no_run(tmp_path: Path) -> None:
    command = ["run", "igligen_xl_512", "--set", "processes=5", "--artifacts", str(tmp_path / "artifacts")]
    result = subprocess.run(
        [sys.executable, "-m", "atelier.cli", *command],
        env={**os.environ, "ATELIER_PROJECT": str(PROJECT)},
        capture_output=True,
        text=True,
        cwd=PROJECT,
    )
    assert result.returncode == ConfigError.exit_code, result.stderr
    assert "batch_size 48 is not divisible by processes 5" in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""  # a run's first line tells its id
    assert not (tmp_path / "artifacts").exists()
