"""CrossFlow's data from source to batch: the twin's canvases as img2dataset's tars, and captions of every kind."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from atelier.data import bfloat16
from atelier.data.loader import Loader, ShardDataset
from atelier.data.raw_example import RawExample
from atelier.errors import ConfigError, DataError
from atelier.recipes.registry import get
from atelier.steps import download, preprocess, source
from atelier.steps.canvases import canvases
from atelier.storage import s3
from atelier.storage.folder import OutputFolder
from atelier.storage.inputs import InputFolder
from atelier.storage.manifest import Manifest
from tests.data import web_tars
from tests.models.crossflow.tiny import base as twin


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("ATELIER_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("ATELIER_PROJECT", str(tmp_path / "project"))


@pytest.fixture
def base(tmp_path: Path) -> Manifest:
    out = OutputFolder(str(tmp_path / "artifacts" / "base"), tmp_path / "base-work")
    shutil.copytree(twin(), out.path, dirs_exist_ok=True)
    return out.finish("base", {}, {})


def raw_of(artifacts: str, **given: str | int) -> Manifest:
    named = {"tars": "", "captions": "", "boxes": "", "images": 50, "seed": 1, "recipe": "crossflow", **given}
    return download.run(source=source.run(artifacts=artifacts, **named), artifacts=artifacts)  # type: ignore[arg-type]


def shards_of(raw: Manifest, base: Manifest, artifacts: str, recipe: str = "crossflow", **given: str) -> Manifest:
    return preprocess.run(
        raw=raw, base=base, recipe=recipe, profile="laptop", samples_per_shard=0, batch_size=16, max_quarantined=0.0,
        artifacts=artifacts, **given,
    )  # type: ignore[arg-type]  # fmt: skip


def test_from_drawn_tars_to_a_batch(tmp_path: Path, base: Manifest, capsys: pytest.CaptureFixture[str]) -> None:
    """The source draws two canvases that must go among fifty; both resolutions are made, a training reads its own."""
    artifacts = str(tmp_path / "artifacts")
    raw = raw_of(artifacts, form="img2dataset")
    assert raw.kind == "img2dataset-raw"
    assert raw.metadata == {"tars": 1, "images": 52}
    shown = canvases(InputFolder(raw), 3)
    assert [picture.image.size for picture in shown] == [(32, 32)] * 3
    assert all(" above " in picture.caption for picture in shown)
    made = shards_of(raw, base, artifacts, filters='{"min_side": 32}', resolutions="64,32")
    assert made.metadata["samples"] == 50
    assert made.metadata["filtered"] == {"nsfw": 1, "similarity": 1}
    assert (made.metadata["resolution"], made.metadata["resolutions"]) == (32, [32, 64])
    assert (made.metadata["language_model"], made.metadata["text_width"]) == ("clip", 128)
    assert made.metadata["fields"] == {
        "moments_32": ["bfloat16", [8, 8, 8]],
        "moments_64": ["bfloat16", [8, 16, 16]],
        "text": ["bfloat16", [11, 128]],  # all captions here are of one length
        "tokens": ["<i4", []],
    }
    assert "filtered: 1 × nsfw, 1 × similarity" in capsys.readouterr().out
    for resolution in (32, 64):
        objective = get("crossflow", "laptop", {"resolution": resolution}).objective(twin())
        fields = objective.fields(made.metadata["fields"])
        assert fields == {f"moments_{resolution}", "text", "tokens"}
        with Loader(ShardDataset(made, only=fields), 8, collate=objective.collate) as loader:
            batch = next(loader)
        assert batch["moments"].shape[2:] == (resolution // 4, resolution // 4)
        assert batch["text"].isfinite().all()
    objective = get("crossflow", "laptop").objective(twin())
    with pytest.raises(ConfigError, match="the features are of 64 px, the model reads 32"):
        objective.fields({"moments_64", "text", "tokens"})


def test_tars_on_s3_by_their_addresses(
    s3_bucket: str, tmp_path: Path, base: Manifest, capsys: pytest.CaptureFixture[str]
) -> None:
    """A pattern of tars without captions is read as img2dataset's; tables and counts beside them are left out."""
    for number in range(2):
        path = web_tars.tar(tmp_path / f"{number:05d}.tar", [web_tars.sample(4 * number + n) for n in range(4)])
        s3.upload(path, f"{s3_bucket}/laion/{path.name}")
        (tmp_path / "table").write_bytes(b"PAR1")
        s3.upload(tmp_path / "table", f"{s3_bucket}/laion/{number:05d}.parquet")
        s3.upload(tmp_path / "table", f"{s3_bucket}/laion/{number:05d}_stats.json")
    ranged = raw_of(s3_bucket, pictures=f"{s3_bucket}/laion/{{00000..00001}}.tar")
    starred = raw_of(s3_bucket, pictures=f"{s3_bucket}/laion/*")
    assert "download: 4 files of no use left out (.parquet, _stats.json)" in capsys.readouterr().out
    assert [entry.path for entry in ranged.files] == ["tars/00000.tar", "tars/00001.tar"]
    assert starred.files == ranged.files
    made = shards_of(ranged, base, s3_bucket)
    assert made.metadata["samples"] == 8
    assert made.metadata["filtered"] == {}
    assert ShardDataset(made, tmp_path / "cache").sample(7)["json"]["caption"] == "picture 7"
    with pytest.raises(ConfigError, match="no URI for pictures"):
        raw_of(s3_bucket, captions=f"{s3_bucket}/list.jsonl")


def test_captions_of_every_kind(tmp_path: Path, base: Manifest, capsys: pytest.CaptureFixture[str]) -> None:
    """400 words are cut and counted, an empty prompt is dropped, other scripts are read."""
    said = ["a fox", "fox " * 400, "", "  \n", "写真 狐", "лиса", "ثعلب", "🦊", "a\0b", "﷽" * 20]
    samples = [web_tars.sample(number, caption=caption) for number, caption in enumerate(said)]
    web_tars.tar(tmp_path / "raw" / "tars" / "00000.tar", samples)
    raw = web_tars.manifest(tmp_path / "raw")
    made = shards_of(raw, base, str(tmp_path / "artifacts"))
    assert made.metadata["filtered"] == {"empty caption": 2}
    assert made.metadata["quarantined"] == {}
    dataset = ShardDataset(made)
    kept = {s["json"]["caption"]: s for s in (dataset.sample(number) for number in range(len(dataset)))}
    assert list(kept) == [caption for caption in said if caption.strip()]
    limit = get("crossflow", "laptop").config.model().text["tokens"]
    assert kept[said[1]]["tokens"].item() == limit == len(kept[said[1]]["text"])
    assert kept["a fox"]["tokens"].item() == len(kept["a fox"]["text"]) < limit
    assert made.metadata["counts"]["captions_cut"] >= 1
    assert made.metadata["counts"]["tokens_cut"] > 300
    assert "captions are longer than the model reads" in capsys.readouterr().out
    assert all(bfloat16.tensor(sample["text"]).isfinite().all() for sample in kept.values())


def test_what_the_filters_drop_is_not_shown(tmp_path: Path, base: Manifest) -> None:
    """The report's pictures are of the samples that are trained on, by the filters that preprocess was given."""
    changes: list[dict[str, Any]] = [{"NSFW": "NSFW"}] * 30 + [{}, {"similarity": 0.31}, {"size": (48, 48)}, {}]
    samples = [web_tars.sample(number, **changed) for number, changed in enumerate(changes)]
    web_tars.tar(tmp_path / "raw" / "tars" / "00000.tar", samples)
    raw, artifacts = web_tars.manifest(tmp_path / "raw"), str(tmp_path / "artifacts")

    def shown(most: int, **given: str) -> list[str]:
        found = canvases(InputFolder(raw), most, shards_of(raw, base, artifacts, **given))
        return [picture.caption for picture in found]

    assert shown(12) == [f"picture {number}" for number in (30, 31, 32, 33)]
    assert shown(2) == ["picture 30", "picture 31"]
    assert shown(12, filters='{"min_similarity": 0.32}') == [f"picture {number}" for number in (30, 32, 33)]
    assert shown(12, resolutions="32,48") == ["picture 32"]
    assert len(canvases(InputFolder(raw), 12)) == 12


CLIP = ("crossflow", "crossflow:512_clip_dimr", "crossflow:256_clip_dit", "crossflow:512_clip_dit")


def test_two_resolutions_are_encoded_once_for_all_that_read_them(
    tmp_path: Path, base: Manifest, capsys: pytest.CaptureFixture[str]
) -> None:
    web_tars.tar(tmp_path / "raw" / "tars" / "00000.tar", [web_tars.sample(n, (64, 64)) for n in range(3)])
    raw, artifacts = web_tars.manifest(tmp_path / "raw"), str(tmp_path / "artifacts")
    made = shards_of(raw, base, artifacts, "crossflow:512_clip_dimr", resolutions="32,64")
    assert made.made_by["notes"]["recipe"] == "crossflow:512_clip_dimr"
    for recipe in CLIP:
        assert shards_of(raw, base, artifacts, recipe, resolutions="64,32").uri == made.uri
    # What is shared is what each would have made itself.
    for number, recipe in enumerate(CLIP[:2]):
        assert shards_of(raw, base, str(tmp_path / f"alone-{number}"), recipe, resolutions="32,64").files == made.files
    assert capsys.readouterr().out.count("preprocess: cached") == 4


def test_what_is_encoded_otherwise_is_not_shared() -> None:
    def params(recipe: str = "crossflow", profile: str = "laptop", **given: str | int) -> str:
        own = {"samples_per_shard": 0, "batch_size": 0, "max_quarantined": 0.0, "resolutions": "32,64", **given}
        return json.dumps(preprocess.check(recipe=recipe, profile=profile, **own), sort_keys=True)  # type: ignore[arg-type]

    paper = {"profile": "paper", "resolutions": "256,512"}
    assert params(**paper) == params("crossflow:512_clip_dimr", **paper)
    assert params("crossflow:256_t5_dimr", **paper) == params("crossflow:512_t5_dit", **paper)
    different = [
        params(), params("crossflow:512_t5_dit"), params(filters='{"min_side": 8}'), params(resolutions="32,64,96"),
        params(resolutions=""), params("crossflow:512_clip_dimr", resolutions=""), params(samples_per_shard=3),
        params(batch_size=3), params(**paper), params("crossflow:512_t5_dit", **paper),
    ]  # fmt: skip
    assert len(set(different)) == len(different)
    for field, value in (("image_tower", "pixels"), ("parity", True), ("language_model", "t5")):
        changed, plain = get("crossflow", "laptop", {field: value}), get("crossflow", "laptop")
        assert changed.encoding != plain.encoding
    small, large = (get("crossflow", "laptop", {"resolution": r, "image_tower": "pixels"}) for r in (32, 64))
    assert small.encoding != large.encoding


def test_wrong_parameters(tmp_path: Path, base: Manifest) -> None:
    nothing = Manifest("img2dataset-raw", str(tmp_path), ())
    for given, what in (
        ({"filters": '{"min_sides": 3}'}, "min_sides"),
        ({"resolutions": "64"}, "resolutions='64'"),
        ({"resolutions": "32,33"}, "multiples of 8"),
        ({"resolutions": "32;64"}, "multiples of 8"),
        ({"resolutions": "32,64", "recipe": "gligen_coco"}, "recipe gligen_coco encodes 64 px alone"),
        ({"filters": "{}", "recipe": "igligen_xl"}, "recipe igligen_xl filters nothing"),
    ):
        with pytest.raises(ConfigError, match=what):
            shards_of(nothing, base, str(tmp_path), **given)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="no tars"):
        shards_of(nothing, base, str(tmp_path))


def test_features_are_what_the_encoder_gives(base: Manifest) -> None:
    """One resolution of two is what it is alone, the text is the same, and bfloat16 rounds by 1 of 256 at most."""
    encoder = get("crossflow", "laptop").encoder(twin())
    rng = np.random.default_rng(0)
    squares = {res: rng.integers(0, 256, (2, res, res, 3), np.uint8) for res in (32, 64)}
    none = np.empty((0, 4))
    examples = [RawExample(c, b"", (64, 64), c, none, np.empty(0), ()) for c in ("a fox", "two foxes in snow")]
    both, alone = encoder.encode_squares(squares, examples), encoder.encode(squares[32], examples)
    exact = encoder.latents.moments(squares[32])
    for row, (encoded, one) in enumerate(zip(both, alone, strict=True)):
        assert one.keys() == {"moments_32", "text", "tokens"}
        assert encoded.arrays.keys() == one.keys() | {"moments_64"}
        for name, array in one.items():
            assert array.tobytes() == encoded.arrays[name].tobytes()
        found = bfloat16.tensor(one["moments_32"]).float()
        assert bool(((found - exact[row]).abs() <= exact[row].abs() / 256).all())
    assert both[0].arrays["tokens"].shape == ()
    assert both[0].arrays["tokens"].item() == len(both[0].arrays["text"])
