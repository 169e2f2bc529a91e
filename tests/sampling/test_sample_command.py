"""``atelier sample``: pictures, folders and sheets from a prompt, a preset and a file of layouts."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from atelier.cli import main
from atelier.sampling.drawing import draw_boxes, sheet
from atelier.sampling.requests import PRESETS
from tests.sampling import tiny_sd, tiny_sdxl


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {
        "sd": tiny_sd.write(tmp_path_factory.mktemp("sd")),
        "sdxl": tiny_sdxl.write(tmp_path_factory.mktemp("sdxl")),
    }


def sample(model: Path, *arguments: object) -> int:
    return main(["sample", str(model), "--steps", "3", *map(str, arguments)])


def pixels(path: Path) -> Any:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_one_picture(models: dict[str, Path], kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "made" / "picture.png"
    asked = ("--prompt", "a seven", "--box", "0.1,0.2,0.5,0.6=a seven", "--box", "0.5,0.5,1,1=a one", "--seed", 7)
    assert sample(models[kind], *asked, "--size", "96x64", "--beta", 1, "--out", out) == 0
    printed = capsys.readouterr()
    assert printed.out.strip() == str(out)
    assert "sampling: 3/3 steps" in printed.err
    with Image.open(out) as image:
        assert image.size == (96, 64)
        note = json.loads(image.info["atelier"])
    assert note["seed"] == 7
    assert note["boxes"] == [[0.1, 0.2, 0.5, 0.6], [0.5, 0.5, 1.0, 1.0]]
    plain = tmp_path / "plain.png"
    assert sample(models[kind], *asked, "--size", "96x64", "--ungrounded", "--out", plain) == 0
    assert np.abs(pixels(out) - pixels(plain)).max() > 0
    assert (
        sample(models[kind], *asked, "--size", "96x64", "--beta", 1, "--draw-boxes", "--out", tmp_path / "b.png") == 0
    )
    assert tuple(pixels(tmp_path / "b.png")[13, 30]) == (0xFF, 0x5D, 0x5D)  # the first box's upper edge


def test_a_file_of_layouts(models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layouts = [
        {"prompt": "a one", "boxes": [[0.1, 0.1, 0.6, 0.6]], "phrases": ["a one"]},
        {"prompt": "a two", "negative": "a three", "seed": 40},
        {"prompt": "", "boxes": [[0.5, 0.5, 1, 1]], "phrases": [""]},
    ]
    file = tmp_path / "layouts.jsonl"
    file.write_text("\n\n".join(json.dumps(layout) for layout in layouts))
    assert sample(models["sdxl"], "--layouts", file, "--count", 2, "--batch", 4, "--out", tmp_path / "many") == 0
    assert sorted(path.name for path in (tmp_path / "many").iterdir()) == [f"{n:04d}.png" for n in range(6)] + [
        "sheet.png"
    ]
    assert sample(models["sdxl"], "--layouts", file, "--count", 2, "--batch", 1, "--out", tmp_path / "single") == 0
    for number in range(6):  # whatever the batch
        name = f"{number:04d}.png"
        assert np.abs(pixels(tmp_path / "many" / name) - pixels(tmp_path / "single" / name)).max() <= 1
    with Image.open(tmp_path / "many" / "0003.png") as image:
        assert json.loads(image.info["atelier"])["seed"] == 41
    assert "6 pictures and sheet.png in" in capsys.readouterr().out


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_the_readmes_examples(models: dict[str, Path], name: str, tmp_path: Path) -> None:
    model = models["sd" if name == "landscape" else "sdxl"]
    assert sample(model, "--preset", name, "--out", tmp_path / "x.png") == 0
    with Image.open(tmp_path / "x.png") as image:
        note = json.loads(image.info["atelier"])
    preset = PRESETS[name]
    assert note["phrases"] == preset.request.phrases
    assert (note["beta"], note["guidance"], note["steps"]) == (preset.beta, preset.guidance, 3)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--prompt", "a", "--box", "0.1,0.2,0.5=a dog"), "--box '0.1,0.2,0.5=a dog' is not four numbers and a phrase"),
        (("--prompt", "a", "--box", "0.5,0.2,0.1,0.6=a dog"), "is reversed"),
        (("--prompt", "a", "--size", "100x64"), "--size 100x64 is not a picture's size"),
        (("--prompt", "a", "--count", "0"), "--count is 0"),
        (("--prompt", "a", "--count", "2"), "is one file, 2 pictures are asked for"),
        (("--prompt", "a", "--preset", "landscape"), "--prompt and --preset given"),
        ((), "no prompt given"),
        (("--preset", "landscape", "--box", "0,0,1,1=a"), "--box with --preset"),
    ],
)
def test_arguments_that_cannot_be(
    models: dict[str, Path], arguments: tuple[str, ...], named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sample", str(models["sd"]), *arguments, "--out", str(tmp_path / "x.png")]) == 2
    assert named in capsys.readouterr().err
    assert not (tmp_path / "x.png").exists()


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('{"prompt": "a"}\n{"prompt": ', "layouts.jsonl, line 2"),
        ('{"prompt": "a", "bbox": []}', "line 1: unknown field bbox"),
        ('{"boxes": []}', "line 1: no prompt"),
        ('{"prompt": "a", "seed": true}', "line 1: seed is True"),
        ("[1]", "line 1: not an object"),
        ("\n", "holds no layout"),
        (None, "there is no such file"),
    ],
)
def test_layout_files_that_cannot_be_read(
    models: dict[str, Path], text: str | None, named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "layouts.jsonl"
    if text is not None:
        file.write_text(text)
    assert main(["sample", str(models["sd"]), "--layouts", str(file), "--out", str(tmp_path / "out")]) != 0
    assert named in capsys.readouterr().err


def test_a_folder_that_is_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", str(tmp_path), "--prompt", "a", "--out", str(tmp_path / "x.png")]) == 2
    assert "has no model_index.json" in capsys.readouterr().err


def test_drawing_leaves_the_picture_alone_and_keeps_its_aspect() -> None:
    image = Image.new("RGB", (300, 100), "white")
    drawn = draw_boxes(image, [[0.0, 0.0, 0.5, 1.0]], ["a green car"])
    assert image.getcolors() == [(30000, (255, 255, 255))]
    assert drawn.size == (300, 100)
    assert drawn.getpixel((75, 0)) == (0xFF, 0x5D, 0x5D)
    assert sheet([drawn] * 5, columns=4, side=30).size == (4 * 36 + 6, 2 * 16 + 6)
