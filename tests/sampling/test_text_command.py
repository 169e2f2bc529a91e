"""``atelier paint``, ``interpolate`` and ``arithmetic`` on a tiny CrossFlow."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from atelier.cli import main
from atelier.models.crossflow.configs import CrossFlowConfig
from atelier.sampling.crossflow import CrossFlowPipeline
from tests.models.crossflow.tiny import DIT, TEXT, base, made


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("crossflow") / "model"
    config = CrossFlowConfig("dit", DIT.flow, TEXT | {"width": 128, "tokens": 16}, (4, 8, 8), None)
    CrossFlowPipeline.around(base(), made(config)).save_pretrained(folder)
    return folder


def pixels(path: Path) -> Any:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def test_prompts_a_file_and_shares(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list, a file and two processes give the same pictures."""
    shared = ["--steps", "2", "--count", "2", "--seed", "5"]
    assert main(["paint", str(model), "--prompt", "a two", "--prompt", "a six", *shared, "--out", f"{tmp_path}/a"]) == 0
    (tmp_path / "prompts.txt").write_text("a two\n\na six\n")
    file = ["paint", str(model), "--prompts", f"{tmp_path}/prompts.txt", "--batch", "1", *shared]
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        assert main([*file, "--out", f"{tmp_path}/b"]) == 0
    names = [f"{number:04d}.png" for number in range(4)]
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == names
    for name in names:
        assert np.abs(pixels(tmp_path / "a" / name) - pixels(tmp_path / "b" / name)).max() <= 1
    assert (tmp_path / "a/sheet.png").is_file()
    with Image.open(tmp_path / "a/0003.png") as image:
        note = json.loads(image.info["atelier"])
    assert (note["prompt"], note["seed"], note["solver"]) == ("a six", 6, "ab2")


def test_lines_with_seeds(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a two", "seed": 9, "tag": "counting"}\n')
    asked = ["paint", str(model), "--prompts", str(path), "--steps", "1", "--out", f"{tmp_path}/a"]
    assert main(asked) == 0
    with Image.open(tmp_path / "a/0000.png") as image:
        assert json.loads(image.info["atelier"])["seed"] == 9
    path.write_text('{"prompt": "a two", "seed": "9"}\n')
    assert main(asked) != 0
    assert "line 1: the seed is '9'" in capsys.readouterr().err


def test_interpolation(model: Path, tmp_path: Path) -> None:
    asked = ["interpolate", str(model), "a two", "a six", "--number", "5", "--steps", "2", "--out", str(tmp_path)]
    assert main(asked) == 0
    row = pixels(tmp_path / "strip.png")
    assert row.shape == (32, 160, 3)
    assert (row[:, 128:] == pixels(tmp_path / "0004.png")).all()
    with Image.open(tmp_path / "between.gif") as gif:
        assert gif.n_frames == 5


def test_arithmetic(model: Path, tmp_path: Path) -> None:
    asked = ["arithmetic", str(model), "a two", "--add", "a six", "--remove", "a one", "--steps", "2"]
    assert main([*asked, "--out", str(tmp_path)]) == 0
    assert pixels(tmp_path / "strip.png").shape == (32, 128, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["paint"], "no prompt given"),
        (["paint", "--prompt", "a", "--steps", "0"], "--steps is 0"),
        (["paint", "--prompt", "a", "--solver", "rk4"], "no flow solver 'rk4'"),
        (["paint", "--prompt", "a", "--guidance", "nan"], "a guidance of nan is no number"),
        (["paint", "--prompt", "a", "--seed", str(2**64)], "has more than 64 bits"),
        (["interpolate", "a", "b", "--seed", str(-(2**63) - 1)], "has more than 64 bits"),
        (["paint", "--prompt", "a", "--device", "tpu"], "there is no device 'tpu' here"),
        (["interpolate", "a", "b", "--number", "1"], "at least 2"),
        (["arithmetic", "a"], "nothing to add"),
    ],
)
def test_what_is_refused(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main([arguments[0], str(model), *arguments[1:], "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_another_model_is_refused(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", str(model), "--prompt", "a", "--out", str(tmp_path / "out")]) == 2
    assert "is a CrossFlow, which knows no boxes" in capsys.readouterr().err
    other = shutil.copytree(model, tmp_path / "other")
    (other / "text_encoder" / "config.json").write_text(json.dumps({"model_type": "t5", "d_model": 128}))
    assert main(["paint", str(other), "--prompt", "a", "--out", str(tmp_path / "out")]) == 2
    assert "(t5) gives states of width 128" in capsys.readouterr().err
    bare = shutil.copytree(model, tmp_path / "bare")
    index = json.loads((bare / "model_index.json").read_text()) | {"vae": [None, None], "tokenizer": [None, None]}
    (bare / "model_index.json").write_text(json.dumps(index))
    assert main(["paint", str(bare), "--prompt", "a", "--out", str(tmp_path / "out")]) == 2
    assert "lacks vae, tokenizer: it was converted without a base" in capsys.readouterr().err
    assert main(["paint", str(base()), "--prompt", "a", "--out", str(tmp_path / "out")]) == 2
    assert "is a StableDiffusionPipeline, no CrossFlow" in capsys.readouterr().err
