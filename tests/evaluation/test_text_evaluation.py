"""``atelier evaluate-text`` on a tiny CrossFlow, a tiny CLIP and Inception's shapes: the whole way, and bad input."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from atelier.cli import main
from atelier.errors import DataError, StorageError
from atelier.evaluation import gaussian
from atelier.evaluation.captions import coco_captions, prompts_of_file
from atelier.evaluation.clip_score import MEAN, ClipScore
from atelier.evaluation.inception_features import (
    at_side,
    features,
    open_inception,
    pictures_in,
    statistics_of_folder,
)
from atelier.evaluation.text_images import wanted
from atelier.evaluation.text_parts import measure
from tests.annotate import tiny
from tests.evaluation import text_models


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model, clip, inception.pth, stats.npz and captions.json."""
    folder = tmp_path_factory.mktemp("evaluation")
    text_models.crossflow(folder / "model")
    tiny.clip(folder / "clip")
    text_models.inception_weights(folder / "inception.pth")
    text_models.captions(folder / "captions.json")
    rng = np.random.default_rng(0)
    rows = rng.normal(0.4, 0.1, (40, 2048))
    gaussian.write(gaussian.Gaussian(rows.mean(0), np.cov(rows, rowvar=False)), folder / "stats.npz")
    return folder


def asked(here: Path, out: Path, *more: str) -> list[str]:
    return [
        "evaluate-text", str(here / "model"), "--captions", str(here / "captions.json"), "--count", "6",
        "--steps", "2", "--batch", "2", "--out", str(out), *more,
    ]  # fmt: skip


def yardsticks(here: Path) -> list[str]:
    return [
        "--fid-weights", str(here / "inception.pth"), "--fid-statistics", str(here / "stats.npz"),
        "--clip", str(here / "clip"),
    ]  # fmt: skip


def test_the_whole(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One process; two, in turn; and what is there is not drawn again: the same figures."""
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    assert main(asked(here, alone, *yardsticks(here))) == 0
    said = capsys.readouterr().out
    result = json.loads((alone / "evaluation.json").read_text())
    assert result["metrics"]["fid"] > 1
    assert 0 <= result["metrics"]["clip_score"] <= 1
    assert f"fid {result['metrics']['fid']:g}" in said
    assert result["skipped"] == {}
    assert "rank-deficient" in result["warnings"][0]
    page = (alone / "evaluation.html").read_text()
    assert page.count("<svg") == 6
    assert "rank-deficient" in page
    drawn = sorted(alone.glob("images/000/*.png"))
    assert [path.name[:6] for path in drawn] == [f"{n:06d}" for n in range(6)]

    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("1", "0"):  # the first waits for the other's part
        monkeypatch.setenv("RANK", rank)
        assert main(asked(here, shared, *yardsticks(here))) == 0
    other = json.loads((shared / "evaluation.json").read_text())
    assert other["metrics"] == pytest.approx(result["metrics"], rel=1e-3)
    assert other["settings"] == result["settings"]

    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.delenv("RANK")
    before = {path: path.stat().st_mtime_ns for path in drawn}
    before.pop(drawn[2])
    drawn[2].unlink()
    assert main(asked(here, alone, "--clip", str(here / "clip"))) == 0
    assert drawn[2].is_file()
    assert all(path.stat().st_mtime_ns == when for path, when in before.items())
    score = json.loads((alone / "evaluation.json").read_text())["metrics"]
    assert score == pytest.approx({"clip_score": result["metrics"]["clip_score"]}, rel=1e-3)


def test_without_yardsticks_it_draws_and_says_so(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(asked(here, tmp_path)) == 0
    assert "fid: not measured, no weights of FID's Inception" in capsys.readouterr().out
    result = json.loads((tmp_path / "evaluation.json").read_text())
    assert result["metrics"] == {}
    assert sorted(result["skipped"]) == ["clip_score", "fid"]
    assert "clip_score: not measured" in (tmp_path / "evaluation.html").read_text()


@pytest.mark.parametrize(
    ("more", "code", "message"),
    [
        (["--fid-weights", "w.pth"], 2, "FID has weights and no reference"),
        (["--fid-statistics", "s.npz"], 2, "FID has a reference and no weights"),
        (["--fid-weights", "w", "--fid-statistics", "s", "--fid-images", "f"], 2, "both FID statistics and a folder"),
        (["--fid-weights", "/none.pth", "--fid-statistics", "s.npz"], 4, "/none.pth: there is no such file"),
        (["--clip", "/none"], 2, "cannot be loaded as CLIPModel"),
        (["--count", "13"], 2, "captions of 12 images, not of 13"),
        (["--count", "-1"], 2, "--count is -1"),
        (["--steps", "0"], 2, "--steps is 0"),
    ],
)
def test_what_is_refused(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], code: int, message: str
) -> None:
    assert main(asked(here, tmp_path / "out", *more)) == code
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("out/images/*"))


def test_other_settings_want_another_folder(here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(asked(here, tmp_path)) == 0
    assert main(asked(here, tmp_path, "--guidance", "2")) == 2
    assert "were drawn with another guidance" in capsys.readouterr().err
    assert main(asked(here, tmp_path, "--dtype", "bfloat16")) == 2
    assert "were drawn with another dtype" in capsys.readouterr().err
    assert json.loads((tmp_path / "settings.json").read_text())["dtype"] == "float32"
    assert main(asked(here, tmp_path, "--dtype", "float32", "--device", "cpu")) == 0  # what it drew in unasked
    assert main(asked(here, tmp_path, "--seed", "1")) == 0  # other pictures, under other names
    assert len(list(tmp_path.glob("images/000/*.png"))) == 12


def test_captions_are_addressed_by_seed(here: Path, tmp_path: Path) -> None:
    path = here / "captions.json"
    twelve = coco_captions(path, 12, seed=3)
    assert coco_captions(path, 5, seed=3) == twelve[:5]
    assert coco_captions(path, 12, seed=4) != twelve
    assert len({caption.split()[-1] for caption in twelve}) == 12  # one an image
    assert len({caption.split()[1] for caption in twelve}) > 1  # not always the first
    assert all(caption == caption.strip() for caption in twelve)
    (tmp_path / "no.json").write_text('{"images": [], "annotations": []}')
    with pytest.raises(DataError, match="no captions"):
        coco_captions(tmp_path / "no.json", 1, 0)


def test_prompts_of_a_file(tmp_path: Path) -> None:
    plain, lines = tmp_path / "p.txt", tmp_path / "p.jsonl"
    plain.write_text("a two\n\n  a six \n")
    lines.write_text('{"prompt": "a two", "tag": "x"}\n{"prompt": "a six"}\n')
    assert prompts_of_file(plain) == prompts_of_file(lines) == ["a two", "a six"]
    assert prompts_of_file(plain, 1) == ["a two"]
    with pytest.raises(DataError, match="has 2 prompts"):
        prompts_of_file(plain, 3)
    for text in ("a two\n", "[1]\n", '{"prompt": 3}\n', '{"text": "a"}\n'):
        lines.write_text(text)
        with pytest.raises(DataError, match=r"p\.jsonl, line 1"):
            prompts_of_file(lines)
    plain.write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="no UTF-8"):
        prompts_of_file(plain)
    plain.write_text("\n")
    with pytest.raises(DataError, match="holds no prompt"):
        prompts_of_file(plain)
    odd = "a two\u2028above\x85a\x0csix"
    lines.write_text(json.dumps({"prompt": odd}, ensure_ascii=False).replace("\\f", "x") + "\n", encoding="utf-8")
    assert prompts_of_file(lines) == [odd.replace("\x0c", "x")]  # lines end at a newline alone
    plain.write_text(f"{odd}\r\na six", encoding="utf-8")
    assert prompts_of_file(plain) == [odd, "a six"]


def test_inceptions_file(here: Path, tmp_path: Path) -> None:
    """Torch's file and safetensors give one network; counters may lie in it; anything else is listed."""
    network = open_inception(here / "inception.pth")
    assert not network.training
    safe = text_models.inception_weights(
        tmp_path / "w.safetensors", **{"Conv2d_1a_3x3.bn.num_batches_tracked": torch.tensor(7)}
    )
    other = open_inception(safe)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), other.parameters(), strict=True))
    torchvisions = text_models.inception_weights(
        tmp_path / "t.pth",
        **{"fc.weight": torch.zeros(1000, 2048), "AuxLogits.fc.bias": torch.zeros(1000), "fc.bias": None},
    )
    with pytest.raises(DataError) as refused:
        open_inception(torchvisions)
    for part in ("missing fc.bias", "unknown AuxLogits.fc.bias", "fc.weight is [1000, 2048], not [1008, 2048]"):
        assert part in str(refused.value)
    (tmp_path / "damaged.pth").write_bytes(b"PK not really")
    with pytest.raises(DataError, match="no file of weights"):
        open_inception(tmp_path / "damaged.pth")


def picture(seed: int, size: tuple[int, int]) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_statistics_of_photographs(here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Centre square, Lanczos to 256, whatever the batch; kept; a folder without pictures or a damaged one is named."""
    monkeypatch.setenv("ATELIER_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "val"
    folder.mkdir()
    for number in range(3):
        picture(number, (300, 280)).save(folder / f"{number}.png")
    network = open_inception(here / "inception.pth")
    found = statistics_of_folder(folder, here / "inception.pth", network, batch=2)
    squares = [
        picture(n, (300, 280)).crop((10, 0, 290, 280)).resize((256, 256), Image.Resampling.LANCZOS) for n in range(3)
    ]
    rows = np.concatenate([features(network, [square]) for square in squares])
    np.testing.assert_allclose(found.mean, rows.mean(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found.covariance, np.cov(rows, rowvar=False), rtol=1e-2, atol=1e-8)
    network.fc = None  # type: ignore[assignment]
    monkeypatch.setattr(network, "forward", None)
    again = statistics_of_folder(folder, here / "inception.pth", network)
    assert (again.mean == found.mean).all()
    os.utime(folder / "1.png", ns=(1, 1))
    with pytest.raises(TypeError):  # a picture written anew: computed, by a network that no longer can
        statistics_of_folder(folder, here / "inception.pth", network)
    (folder / "3.jpg").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"3\.jpg: no picture"):
        statistics_of_folder(folder, here / "inception.pth", open_inception(here / "inception.pth"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no pictures"):
        pictures_in(tmp_path / "empty")
    with pytest.raises(StorageError, match="no such file"):
        pictures_in(tmp_path / "nowhere")


def test_large_pictures_are_compared_at_256() -> None:
    large = picture(0, (512, 512))
    assert at_side(large).tobytes() == large.resize((256, 256), Image.Resampling.BICUBIC).tobytes()
    assert at_side(picture(0, (32, 32))).size == (32, 32)


def test_clip_sees_the_picture_as_it_was_drawn(here: Path, tmp_path: Path) -> None:
    """Not the one that was reduced to 256 px for FID."""
    (one,) = wanted(["a two"], seed=0)
    one.path(tmp_path).parent.mkdir(parents=True)
    large = picture(0, (512, 512))
    large.save(one.path(tmp_path))
    clip = ClipScore(str(here / "clip"))
    found = measure(tmp_path, [one], None, lambda seen, captions: clip.pictures(seen)[:, 0].numpy(), 1)  # type: ignore[arg-type]
    drawn, reduced = (float(clip.pictures([each])[0, 0]) for each in (large, at_side(large)))
    assert found.clip_sum == pytest.approx(drawn, abs=1e-6)
    assert abs(drawn - reduced) > 1e-4


def test_clip_score_is_the_cosine(here: Path) -> None:
    """Against transformers' own forward pass with pixels prepared by hand; below zero counts as zero."""
    clip, pictures, captions = (
        ClipScore(str(here / "clip")),
        [picture(n, (32, 32)) for n in range(6)],
        ["a two", "a six"] * 3,
    )
    found = clip(pictures, captions)
    model = clip._model
    pixels = torch.stack([torch.from_numpy(np.asarray(one).copy()).permute(2, 0, 1) / 255 for one in pictures])
    deviation = torch.tensor([0.26862954, 0.26130258, 0.27577711])
    pixels = (pixels - torch.tensor(MEAN)[:, None, None]) / deviation[:, None, None]
    tokens = clip._tokenizer(captions, padding="max_length", max_length=16, return_tensors="pt")
    with torch.no_grad():
        out: Any = model(pixel_values=pixels, **tokens)
    cosines = (out.image_embeds * out.text_embeds).sum(-1)
    np.testing.assert_allclose(found, cosines.clamp_min(0), atol=1e-5)
    assert (found == 0).any() == bool((cosines < 0).any())
    assert clip.pictures([picture(0, (64, 40))]).shape == (1, 16)
