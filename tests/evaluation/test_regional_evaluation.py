"""``atelier layouts`` and ``atelier evaluate-layouts`` on tiny models: the whole way, going on, and bad input."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from atelier.cli import main
from atelier.data.digits_rich import write_rich
from atelier.data.padding import padded_square
from atelier.errors import DataError
from atelier.evaluation import labelled_folder
from atelier.evaluation.crop_score import CropScore
from atelier.evaluation.crops import crop, pixels
from atelier.evaluation.labelled_layouts import labelled_layouts
from atelier.evaluation.regional_evaluation import evaluate, mean_of_means
from atelier.evaluation.regional_yardsticks import Boxed, RegionalYardsticks
from atelier.evaluation.sam_iou import SamIoU
from atelier.sampling.requests import read_requests
from atelier.storage.digest import sha256_file
from tests.annotate import tiny
from tests.evaluation import boxed_models

BOXES = [[[0.1, 0.1, 0.6, 0.6], [0.4, 0.3, 0.9, 0.8]], [[0.0, 0.0, 1.0, 1.0]], [], [[0.5, 0.5, 0.9, 0.7]]]
PHRASES = [["a big seven", "a tiny two"], ["an eight"], [], ["a nine"]]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    tiny.clip(folder / "clip")
    tiny.clip(folder / "pick", width=64)
    boxed_models.sam(folder / "sam")
    return folder


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Four pictures, each noting what it was drawn from, as ``atelier sample`` writes them; and their sheet."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number, (boxes, phrases) in enumerate(zip(BOXES, PHRASES, strict=True)):
        note = PngInfo()
        note.add_text("atelier", json.dumps({"prompt": "digits", "boxes": boxes, "phrases": phrases}))
        image = Image.fromarray(rng.integers(0, 255, (48 + number, 64, 3)).astype(np.uint8))
        image.save(folder / f"{number:04d}.png", pnginfo=note)
    Image.new("RGB", (8, 8)).save(folder / "sheet.png")
    return folder


def asked(pictures: Path, models: Path, out: Path, *more: str) -> list[str]:
    yardsticks = [f"--{name}={models / name}" for name in ("clip", "pick", "sam")]
    return ["evaluate-layouts", str(pictures), "--out", str(out), *yardsticks, *more]


def objects(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "objects.jsonl").read_text().splitlines()]


def test_the_whole(pictures: Path, models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(asked(pictures, models, tmp_path / "out")) == 0
    result, rows = json.loads((tmp_path / "out/evaluation.json").read_text()), objects(tmp_path / "out")
    assert (result["pictures"], result["without_boxes"], result["objects"]) == (3, 1, 4)
    assert result["skipped"] == {}
    assert [row["picture"] for row in rows] == [f"{number:04d}.png" for number in range(4)]
    assert [row["phrases"] for row in rows] == PHRASES
    for name, score in (("crop_clip", "clip"), ("crop_pick", "pick")):
        metric = CropScore(str(models / score))
        means = []
        for row in rows[:2] + rows[3:]:
            with Image.open(pictures / row["picture"]) as opened:
                image = opened.convert("RGB")
            crops = [crop(image, box) for box in pixels(row["boxes"], image.size)]
            assert row[name] == pytest.approx(metric(crops, row["phrases"]).tolist(), abs=1e-4)
            means.append(np.mean(row[name]))
        assert result["metrics"][name] == pytest.approx(np.mean(means), abs=1e-5)
    sam = SamIoU(str(models / "sam"))
    with Image.open(pictures / "0000.png") as image:
        assert rows[0]["sam_iou"] == sam(image, pixels(BOXES[0], image.size)).tolist()
    assert rows[0]["pixels"] == [32 * 24, 32 * 24]
    said = capsys.readouterr().out
    assert f"crop_clip {result['metrics']['crop_clip']:g}" in said
    assert "4 boxes in 3 pictures" in said


def test_a_killed_evaluation_is_gone_on_with(pictures: Path, models: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(asked(pictures, models, out)) == 0
    whole, rows = (out / "evaluation.json").read_bytes(), objects(out)
    rows[1]["crop_clip"] = [1000.0]  # measured already: believed
    lines = [json.dumps(row) for row in rows]
    (out / "objects.jsonl").write_text("\n".join([lines[1], lines[0][:40]]))
    assert main(asked(pictures, models, out)) == 0
    again = objects(out)
    assert again[1]["crop_clip"] == [1000.0]
    for place in (0, 3):
        for name in ("crop_clip", "crop_pick", "sam_iou"):
            assert again[place][name] == pytest.approx(rows[place][name], rel=1e-4)
    with Image.open(pictures / "0001.png") as image:
        image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(pictures / "0001.png", pnginfo=_note(1))
    assert main(asked(pictures, models, out)) == 0
    assert objects(out)[1]["crop_clip"] != [1000.0]
    assert (out / "evaluation.json").read_bytes() != whole


def test_processes_share_the_pictures(
    pictures: Path, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(asked(pictures, models, tmp_path / "alone")) == 0
    alone, out = json.loads((tmp_path / "alone/evaluation.json").read_text()), tmp_path / "out"
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert main(asked(pictures, models, out)) == 0
    assert not (out / "evaluation.json").exists()
    lines = [json.loads(line) for line in (out / "parts/1.jsonl").read_text().splitlines() if line]
    assert [line["picture"] for line in lines] == ["0001.png", "0003.png"]
    # A line cut off by a kill is measured again, by whoever measured it first.
    (out / "parts/1.jsonl").write_text(json.dumps(lines[0]) + "\n" + json.dumps(lines[1])[:30])
    assert main(asked(pictures, models, out)) == 0
    capsys.readouterr()
    monkeypatch.setenv("RANK", "0")
    assert main(asked(pictures, models, out)) == 0
    assert "waiting" not in capsys.readouterr().out
    found = json.loads((out / "evaluation.json").read_text())
    assert found["metrics"] == pytest.approx(alone["metrics"], rel=1e-4)
    assert [row["picture"] for row in objects(out)] == [f"{number:04d}.png" for number in range(4)]
    assert not (out / "parts").exists()


def test_the_first_waits_for_the_others(
    pictures: Path, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, sam = tmp_path / "out", RegionalYardsticks(sam=str(models / "sam"))
    own = [Boxed(pictures / f"{number:04d}.png", BOXES[number], PHRASES[number]) for number in range(4)]
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert evaluate(tmp_path / "other", own, sam) is None

    def laid_down(_: float) -> None:
        shutil.copytree(tmp_path / "other/parts", out / "parts", dirs_exist_ok=True)

    monkeypatch.setattr("atelier.evaluation.regional_parts.time.sleep", laid_down)
    monkeypatch.setenv("RANK", "0")
    result = evaluate(out, own, sam)
    assert result is not None
    assert result["objects"] == 4
    assert all(len(row.get("sam_iou", ())) == len(row["boxes"]) for row in objects(out))


def _note(number: int) -> PngInfo:
    note = PngInfo()
    note.add_text("atelier", json.dumps({"boxes": BOXES[number], "phrases": PHRASES[number]}))
    return note


def test_what_is_not_given_is_skipped(pictures: Path, models: Path, tmp_path: Path) -> None:
    command = ["evaluate-layouts", str(pictures), "--out", str(tmp_path / "out"), "--sam", str(models / "sam")]
    assert main(command) == 0
    plain = json.loads((tmp_path / "out/evaluation.json").read_text())
    assert list(plain["metrics"]) == ["sam_iou"]
    assert sorted(plain["skipped"]) == ["crop_clip", "crop_pick"]
    assert main([*command, "--legacy"]) == 0  # another yardstick: measured anew
    legacy = json.loads((tmp_path / "out/evaluation.json").read_text())
    assert legacy["metrics"]["sam_iou"] != plain["metrics"]["sam_iou"]


def test_layouts_in_the_order_of_names(pictures: Path, models: Path, tmp_path: Path) -> None:
    layouts = tmp_path / "layouts.jsonl"
    lines = [{"prompt": "", "boxes": [[0, 0, 1, 1]], "phrases": [f"number {n}"]} for n in range(2)]
    layouts.write_text("\n".join(map(json.dumps, lines)))
    assert main(asked(pictures, models, tmp_path / "out", "--layouts", str(layouts))) == 0
    # Two pictures of each, one after the other.
    assert [row["phrases"] for row in objects(tmp_path / "out")] == [["number 0"]] * 2 + [["number 1"]] * 2


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        ("no yardstick", 2, "no CLIP, no PickScore and no SAM is given"),
        ("tokenizer alone", 2, "PickScore's tokenizer is given, and no PickScore"),
        ("legacy alone", 2, "SAM's published box is asked for"),
        ("no model", 2, "cannot be loaded as SamModel"),
        ("batch", 2, "--batch is 0"),
        ("three layouts", 3, "4 pictures of 3 layouts"),
        ("no note", 3, "0001.png: nothing in it says what it was drawn from"),
        ("no picture", 3, "0001.png: nothing in it says"),
        ("empty", 3, "has no pictures"),
        ("no folder", 4, "there is no such file or folder"),
        ("box outside", 3, "holds nothing of its picture"),
        ("no boxes", 3, "no picture has a box"),
        ("phrases", 3, "2 boxes and 1 phrases"),
    ],
)
def test_bad_input_is_named(
    change: str,
    code: int,
    message: str,
    pictures: Path,
    models: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, clip, layouts = str(tmp_path / "out"), str(models / "clip"), tmp_path / "layouts.jsonl"
    given = {
        "no yardstick": [],
        "tokenizer alone": ["--clip", clip, "--pick-tokenizer", clip],
        "legacy alone": ["--clip", clip, "--legacy"],
        "no model": ["--sam", str(tmp_path / "none")],
        "batch": ["--clip", clip, "--batch", "0"],
    }.get(change, ["--clip", clip])
    lines: dict[str, list[dict[str, Any]]] = {
        "three layouts": [{"prompt": ""}] * 3,
        "box outside": [{"prompt": "", "boxes": [[1, 1, 2, 2]], "phrases": ["a"]}],
        "no boxes": [{"prompt": "a"}],
        "phrases": [{"prompt": "", "boxes": BOXES[0], "phrases": ["a"]}],
    }
    if change in lines:
        layouts.write_text("\n".join(map(json.dumps, lines[change])))
        given += ["--layouts", str(layouts)]
    if change == "no note":
        Image.new("RGB", (9, 9)).save(pictures / "0001.png")
    if change == "no picture":
        (pictures / "0001.png").write_bytes(b"no picture")
    if change == "empty":
        for path in pictures.glob("0*.png"):
            path.unlink()
    if change == "no folder":
        shutil.rmtree(pictures)
    assert main(["evaluate-layouts", str(pictures), "--out", out, *given]) == code
    assert message in capsys.readouterr().err


def test_a_damaged_picture_is_named(pictures: Path, models: Path, tmp_path: Path) -> None:
    path = pictures / "0001.png"
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(DataError, match=r"0001\.png: not a readable image"):
        evaluate(tmp_path / "out", [Boxed(path, BOXES[1], PHRASES[1])], RegionalYardsticks(clip=str(models / "clip")))


def test_every_picture_weighs_the_same() -> None:
    assert mean_of_means([[1.0, 0.0, 0.5], [], [0.0]]) == 0.25


def test_layouts_of_labelled_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_rich(tmp_path / "raw", 6, seed=0)
    labels = {
        path.stem.removeprefix("label_"): json.loads(path.read_text())
        for path in sorted((tmp_path / "raw/labels").iterdir())
    }
    where = [str(tmp_path / "raw/cc3m-images"), str(tmp_path / "raw/labels"), "--out", str(tmp_path / "all.jsonl")]
    assert main(["layouts", *where]) == 0
    assert "6 layouts in" in capsys.readouterr().out
    requests = read_requests(tmp_path / "all.jsonl")
    for request, label in zip(requests, labels.values(), strict=True):
        assert request.prompt == label["caption"]
        assert request.phrases == [each["caption"] for each in label["annos"]]
    for frame in ("crop", "pad", "whole"):
        found = labelled_layouts(tmp_path / "raw", tmp_path / "raw", frame)
        for request, (width, height), label in zip(found.requests, found.sizes, labels.values(), strict=True):
            x, y, w, h = label["annos"][0]["bbox"]
            side, short = max(width, height), min(width, height)
            x, y = x - (side - width) // 2, y - (side - height) // 2
            sides = {"crop": (short, short), "pad": (side, side), "whole": (width, height)}[frame]
            left, top = ((width - short) // 2, (height - short) // 2) if frame == "crop" else (0, 0)
            expected = [
                (x - left) / sides[0],
                (y - top) / sides[1],
                (x - left + w) / sides[0],
                (y - top + h) / sides[1],
            ]
            # The crop's offset is a whole number of its 1,024 pixels.
            assert request.boxes[0] == pytest.approx(expected, abs=0.009 if frame == "crop" else 1e-9)


def test_of_a_padded_square_the_picture_alone_is_measured(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a model drew as a square with white at one side has the figures of the picture without it."""
    raw, figures = tmp_path / "raw", {}
    write_rich(raw, 4, seed=0)
    for frame in ("whole", "pad"):
        lines, drawn = tmp_path / f"{frame}.jsonl", tmp_path / frame
        drawn.mkdir()
        assert main(["layouts", str(raw), str(raw), "--out", str(lines), "--frame", frame]) == 0
        assert (tmp_path / f"{frame}.sizes.jsonl").is_file() is (frame == "pad")
        found = labelled_layouts(raw, raw, frame)
        for number, (width, height) in enumerate(found.sizes):
            picture = np.random.default_rng(number).integers(0, 255, (height, width, 3)).astype(np.uint8)
            image = Image.fromarray(picture)
            square = image if frame == "whole" else padded_square(image, max(image.size))
            square.save(drawn / f"{number:04d}.png")
        assert main(asked(drawn, models, tmp_path / f"eval-{frame}", "--layouts", str(lines))) == 0
        figures[frame] = objects(tmp_path / f"eval-{frame}")
    assert any(width != height for width, height in found.sizes)
    for padded, whole in zip(figures["pad"], figures["whole"], strict=True):
        assert padded["boxes"] != whole["boxes"] or padded["boxes"] == [[0, 0, 1, 1]]
        assert padded["pixels"] == whole["pixels"]
        for name in ("crop_clip", "crop_pick", "sam_iou"):
            assert padded[name] == pytest.approx(whole[name], abs=1e-4)
    capsys.readouterr()
    again = ["evaluate-layouts", str(tmp_path / "whole"), "--layouts", str(lines), "--clip", str(models / "clip")]
    assert main([*again, "--out", str(tmp_path / "x")]) == 3
    assert "and its layout is of a square with padding" in capsys.readouterr().err
    (tmp_path / "pad.sizes.jsonl").write_text("[64, 64]\n")
    assert main([*again, "--out", str(tmp_path / "x")]) == 3
    assert "pad.sizes.jsonl is not of these 4 layouts" in capsys.readouterr().err
    assert main(["layouts", str(raw), str(raw), "--out", str(lines), "--frame", "crop"]) == 0
    assert not (tmp_path / "pad.sizes.jsonl").exists(), "another frame's"


def test_a_few_layouts_of_many_pictures_read_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw, read = tmp_path / "raw", []
    write_rich(raw, 9, seed=0)
    (raw / "labels/label_000000003.json").unlink()
    monkeypatch.setattr(labelled_folder, "LEAST", 3)
    monkeypatch.setattr(labelled_folder, "sha256_file", lambda path: read.append(path) or sha256_file(path))
    whole = labelled_layouts(raw, raw)
    assert len(read) == 26
    assert len(whole.requests) == 8
    for count, files in ((1, 12), (2, 26), (8, 26)):
        read.clear()
        found = labelled_layouts(raw, raw, count=count)
        assert found.requests == whole.requests[:count]
        assert len(set(read)) == len(read) <= files
    assert whole.unusable == {"000000003": "no label"}
    assert labelled_layouts(raw, raw, count=9).unusable == whole.unusable


def test_only_what_is_held_out(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    write_rich(raw, 6, seed=0)
    (raw / "validation.json").write_text(json.dumps([["cc/000000002.jpg", "label_000000002.json"], "000000005.jpg"]))
    captions = {
        number: json.loads((raw / f"labels/label_{number:09d}.json").read_text())["caption"] for number in range(1, 7)
    }
    assert [each.prompt for each in labelled_layouts(raw, raw).requests] == [
        captions[number] for number in (1, 3, 4, 6)
    ]
    chosen = labelled_layouts(raw, raw, validation=raw / "validation.json").requests
    assert [each.prompt for each in chosen] == [captions[number] for number in (2, 5)]
    assert len(labelled_layouts(raw, raw, count=3).requests) == 3
    assert all(len(each.boxes) == 1 for each in labelled_layouts(raw, raw, "pad", max_boxes=1).requests)
    (raw / "labels/label_000000001.json").write_text("{}")
    assert labelled_layouts(raw, raw).unusable == {"000000001": "its label lists no objects (annos)"}


@pytest.mark.parametrize(
    ("more", "code", "message"),
    [
        (["--frame", "square"], 2, "there is no frame 'square'"),
        (["--count", "-1"], 2, "--count -1"),
        (["--validation", "none.json"], 4, "none.json: there is no such file"),
    ],
)
def test_layouts_that_cannot_be_made(
    more: list[str], code: int, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_rich(tmp_path / "raw", 1, seed=0)
    command = ["layouts", str(tmp_path / "raw"), str(tmp_path / "raw"), "--out", str(tmp_path / "x.jsonl")]
    assert main([*command, *more]) == code
    assert message in capsys.readouterr().err
    assert not (tmp_path / "x.jsonl").exists()
