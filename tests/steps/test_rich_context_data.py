"""Rich-context data from source to shards: the twin's canvases, and published files wherever they lie."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from atelier.data.digits_rich import write_rich
from atelier.data.loader import ShardDataset
from atelier.data.preprocess import Settings, open_source, preprocess
from atelier.data.quarantine import Quarantine
from atelier.data.raw_example import RawExample
from atelier.errors import ConfigError
from atelier.recipes.registry import get
from atelier.steps import download, source
from atelier.steps.canvases import canvases
from atelier.steps.preprocess import _say
from atelier.steps.report import _data_facts
from atelier.storage import s3
from atelier.storage.folder import OutputFolder
from atelier.storage.inputs import InputFolder
from atelier.storage.manifest import Manifest
from tests.data import web_tars
from tests.recipes.twin import write_twin


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("ATELIER_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("ATELIER_PROJECT", str(tmp_path / "project"))


class PhraseEncoder:
    """Pixels for latents, a row a phrase."""

    digest = "sha256:phrases"

    def encode(self, images: np.ndarray, examples: list[RawExample]) -> list[dict[str, np.ndarray]]:
        return [
            {
                "latent": image[::4, ::4].transpose(2, 0, 1).astype(np.float16),
                "phrases": np.array([[len(phrase)] for phrase in example.phrases], np.float16).reshape(-1, 1),
            }
            for image, example in zip(images, examples, strict=True)
        ]


def raw_of(artifacts: str, **given: str | int) -> Manifest:
    named = {"tars": "", "captions": "", "boxes": "", "images": 0, "seed": 1, "form": "rich-context", **given}
    return download.run(source=source.run(artifacts=artifacts, **named), artifacts=artifacts)  # type: ignore[arg-type]


def shards_of(raw: Manifest, place: Path) -> Manifest:
    out = OutputFolder(str(place), place.with_name("work"))
    settings, quarantine = Settings(res=64, samples_per_shard=5, batch=2), Quarantine(0.3, out.path / "q.jsonl")
    return out.finish("shards", preprocess(open_source(raw), PhraseEncoder(), out, settings, quarantine), {})


def test_from_drawn_canvases_to_shards(tmp_path: Path) -> None:
    raw = raw_of(str(tmp_path / "artifacts"), images=12)
    assert raw.kind == "rich-context-raw"
    assert raw.metadata == {"images": 12, "annotations": 24}
    shown = canvases(InputFolder(raw), 3)
    assert [picture.image.size for picture in shown] == [(64, 64)] * 3
    assert all(label.startswith(("big ", "tiny ")) for picture in shown for label in picture.labels)
    shards = shards_of(raw, tmp_path / "shards")
    assert shards.metadata["samples"] == 12
    assert shards.metadata["quarantined"] == {}
    dataset = ShardDataset(shards)
    for index in range(12):
        sample = dataset.sample(index)
        record = sample["json"]
        assert record["captions"] == [record["caption"]]
        assert len(record["boxes"]) == len(record["phrases"]) == len(record["categories"])
        assert sample["phrases"][:, 0].tolist() == [len(phrase) for phrase in record["phrases"]]
        assert sample["latent"].max() > 200  # strokes
        assert np.sort(sample["latent"].min(axis=0).ravel())[-4] < 255  # and no white border


def test_published_files_of_several_folders(tmp_path: Path) -> None:
    """As img2dataset's ``files`` and the labelling leave them: what lies beside the pictures comes along or is left."""
    published = tmp_path / "published"
    write_rich(published, 9, seed=2)
    pictures = published / "cc3m-images"
    shutil.move(pictures / "00000", pictures / "00001")
    (pictures / "00001/000000001.txt").write_text("a caption that nobody asked for")
    (pictures / "00001_stats.json").write_text("{}")
    shutil.copy(published / "labels/label_000000004.json", published / "labels/label_000000099.json")  # of no image
    (published / "labels/validation.json").write_text('["000000002.jpg"]')
    (published / "labels/label_000000003.json").write_text("[]")
    raw = raw_of(str(tmp_path / "artifacts"), pictures=f"{pictures}/00001/", boxes=f"{published}/labels/*.json")
    assert raw.metadata == {"images": 18, "annotations": 11}
    shards = shards_of(raw, tmp_path / "shards")
    assert shards.metadata["samples"] == 7
    assert shards.metadata["filtered"] == {"held out": 1}
    assert shards.metadata["quarantined"] == {"its label lists no objects (annos)": 1}


def test_one_address_takes_pictures_and_their_sizes_from_numbered_folders(tmp_path: Path, s3_bucket: str) -> None:
    """img2dataset's folders, here and on S3, as the docs give them; ``*.jpg`` leaves the sizes behind."""
    published = tmp_path / "published"
    write_rich(published, 8, seed=2)
    pictures = published / "cc3m-images"
    (pictures / "00001").mkdir()
    for path in sorted((pictures / "00000").iterdir())[:6]:
        path.rename(pictures / "00001" / path.name)
    (pictures / "00000" / "000000008.txt").write_text("a caption")
    (pictures / "00000.parquet").write_bytes(b"PAR1")
    (pictures / "00000_stats.json").write_text("{}")
    for path in (each for each in published.rglob("*") if each.is_file()):
        s3.upload(path, f"{s3_bucket}/rich/{path.relative_to(published)}")
    made = []
    for number, place in enumerate((str(published), f"{s3_bucket}/rich")):
        artifacts = tmp_path / f"artifacts-{number}"
        raw = raw_of(str(artifacts), pictures=f"{place}/cc3m-images/*/", boxes=f"{place}/labels/*.json")
        assert raw.metadata == {"images": 16, "annotations": 8}
        shards = shards_of(raw, tmp_path / f"shards-{number}")
        assert (shards.metadata["samples"], shards.metadata["quarantined"]) == (8, {})
        assert shards.metadata["counts"] == {"pictures_unsized": 0}
        made.append(shards.files)
    assert made[0] == made[1]
    raw = raw_of(str(artifacts), pictures=f"{place}/cc3m-images/*/*.jpg", boxes=f"{place}/labels/*.json")
    out = OutputFolder(str(tmp_path / "bare"), tmp_path / "work")
    quarantine = Quarantine(1, out.path / "q.jsonl")
    settings = Settings(res=64, samples_per_shard=5, batch=2)
    bare = preprocess(open_source(raw), PhraseEncoder(), out, settings, quarantine)
    assert sum(count for reason, count in bare["quarantined"].items() if "white border" in reason) > 3
    assert bare["counts"] == {"pictures_unsized": bare["samples"]}
    _say(bare)


def test_pictures_and_labels_in_tars_on_s3(tmp_path: Path, s3_bucket: str) -> None:
    """A few files in the place of three a picture, and the very samples."""
    published = tmp_path / "published"
    write_rich(published, 10, seed=2)
    pictures, labels = sorted((published / "cc3m-images/00000").glob("*.jpg")), published / "labels"
    raw = raw_of(
        str(tmp_path / "artifacts"), pictures=f"{published}/cc3m-images/00000/", boxes=f"{labels}/label_*.json"
    )
    files = ShardDataset(shards_of(raw, tmp_path / "of_files"))
    for number in range(2):
        some = pictures[number * 5 : number * 5 + 5]
        beside = [[path, path.with_suffix(".json")] for path in some]
        told = [[labels / f"label_{path.stem}.json"] for path in some]
        for kind, rows in (("cc3m", beside), ("labels", told)):
            path = web_tars.tar(
                tmp_path / kind / f"{number:05d}.tar", [{each.name: each.read_bytes() for each in row} for row in rows]
            )
            s3.upload(path, f"{s3_bucket}/{kind}-tars/{path.name}")
        (tmp_path / "facts").write_text("{}")
        s3.upload(tmp_path / "facts", f"{s3_bucket}/cc3m-tars/{number:05d}_stats.json")
        s3.upload(tmp_path / "facts", f"{s3_bucket}/cc3m-tars/{number:05d}.parquet")
    raw = raw_of(f"{s3_bucket}/run", pictures=f"{s3_bucket}/cc3m-tars/*", boxes=f"{s3_bucket}/labels-tars/*.tar")
    assert [entry.path for entry in raw.files] == [
        "annotations/00000.tar", "annotations/00001.tar", "images/00000.tar", "images/00001.tar",
    ]  # fmt: skip
    assert len(canvases(InputFolder(raw), 3)) == 3
    shards = shards_of(raw, tmp_path / "of_tars")
    assert (shards.metadata["samples"], shards.metadata["quarantined"]) == (10, {})
    assert [each["name"] for each in shards.metadata["shards"]] == ["00000-0000.tar", "00001-0000.tar"]
    packed = ShardDataset(shards)
    for index in range(10):
        own, other = packed.sample(index), files.sample(index)
        assert own["json"] == other["json"]
        assert np.array_equal(own["latent"], other["latent"])


def test_what_is_left_out_of_the_regions_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The encoder's counts reach the shards' manifest, the step's output and the report."""
    raw = raw_of(str(tmp_path / "artifacts"), images=12)
    base = write_twin(tmp_path / "base")
    encoder = get("rich_context", "laptop", {"max_region_tokens": 30}).encoder(base)
    out = OutputFolder(str(tmp_path / "shards"), tmp_path / "work")
    settings, quarantine = Settings(res=64, samples_per_shard=5, batch=2), Quarantine(0.3, out.path / "q.jsonl")
    shards = out.finish("shards", preprocess(open_source(raw), encoder, out, settings, quarantine), {})
    counts = shards.metadata["counts"]
    assert counts["regions_left_out"] >= counts["pictures_limited"] > 0
    assert 0 < counts["region_tokens"] <= 12 * 30
    dataset = ShardDataset(shards)
    samples = [dataset.sample(number) for number in range(12)]
    assert counts["pictures_limited"] == sum(bool((sample["cells"] < 0).any()) for sample in samples)
    _say(shards.metadata)
    said = f"{counts['regions_left_out']:,} regions left out: {counts['pictures_limited']:,} pictures have more tokens"
    assert said in capsys.readouterr().out
    facts = _data_facts(shards)
    assert facts["regions left out"] == counts["regions_left_out"]
    assert facts["region tokens a picture"] == round(counts["region_tokens"] / 12)
    assert "descriptions cut" not in facts


def test_labels_are_not_optional(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no URI for boxes"):
        raw_of(str(tmp_path / "artifacts"), pictures="/nowhere/")
