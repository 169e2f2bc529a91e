"""From bare pictures to labels, their page, and on to shards of rich_context; models are tiny, all else is real."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from atelier.data.digits_rich import write_rich
from atelier.data.raw_example import RawExample
from atelier.data.rich_source import RichSource
from atelier.data.shard_reader import ShardDataset
from atelier.data.tar_members import TarMembers
from atelier.errors import ConfigError, DataError
from atelier.steps import annotate, annotators, download, label_report, preprocess, source
from atelier.storage.folder import OutputFolder
from atelier.storage.inputs import InputFolder
from atelier.storage.manifest import Manifest
from tests.annotate import tiny
from tests.evaluation import boxed_models
from tests.recipes.twin import write_twin

IMAGES = 10


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("ATELIER_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("ATELIER_PROJECT", str(tmp_path / "project"))


def origin(artifacts: str, **given: Any) -> Manifest:
    nothing = {"tars": "", "captions": "", "boxes": "", "pictures": "", "images": IMAGES, "seed": 1}
    return source.run(artifacts=artifacts, **nothing | given)


def found(artifacts: str, **models: str) -> Manifest:
    nothing = {"tagger": "", "vocabulary": "", "detector": "", "captioner": ""}
    return annotators.run(profile="laptop", recipe="rich_context", artifacts=artifacts, **nothing | models)


def annotated(artifacts: str, raw: Manifest, models: Manifest, **given: Any) -> Manifest:
    own = {"box_threshold": 0.0, "text_threshold": 0.0, "batch_size": 5, "caption_batch_size": 0,
           "images_per_shard": 5, "max_quarantined": 0.0, "prompt": "a photo of", "recipe": "rich_context"}  # fmt: skip
    return annotate.run(raw=raw, annotators=models, profile="laptop", artifacts=artifacts, **own | given)


def folders(tmp_path: Path) -> dict[str, str]:
    given = {role: tiny.folders()[role] for role in ("tagger", "detector", "captioner")}
    (tmp_path / "sam").mkdir()
    return {**given, "segmenter": str(boxed_models.sam(tmp_path / "sam")), "clip": given["tagger"]}


def test_labels_feed_rich_context(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    artifacts = str(tmp_path / "artifacts")
    write_rich(tmp_path / "cc3m", IMAGES, seed=1)
    shutil.rmtree(tmp_path / "cc3m/labels")
    pictures = f"{tmp_path}/cc3m/cc3m-images/00000/"
    raw = download.run(source=origin(artifacts, form="rich-context-images", pictures=pictures), artifacts=artifacts)
    assert raw.kind == "rich-context-images-raw"
    assert raw.metadata == {"images": 2 * IMAGES, "annotations": 0}  # a JSON beside each
    models = found(artifacts, **folders(tmp_path))
    made = annotated(artifacts, raw, models)
    assert made.kind == "rich-context-labels"
    assert [shard["samples"] for shard in made.metadata["shards"]] == [5, 5]
    assert made.metadata["statistics"]["counts"]["captions given"] == IMAGES
    assert annotated(artifacts, raw, models, workers=2).digest == made.digest
    assert "annotate: cached at" in capsys.readouterr().out
    assert annotated(artifacts, raw, models, prompt="a dog").uri != made.uri

    report = label_report.run(raw=raw, labels=made, title="Labels", artifacts=artifacts)
    text = (Path(report.uri) / "report.html").read_text()
    assert text.count('<div class="single">') == 5  # of the first shard
    numbers = json.loads((Path(report.uri) / "statistics.json").read_text())
    assert numbers == made.metadata["statistics"]
    assert sum(count for _, count in numbers["histograms"]["objects"]["counts"]) == IMAGES
    with pytest.raises(DataError, match="a rich-context-images-raw"):
        label_report.run(raw=raw, labels=raw, title="Labels", artifacts=artifacts)

    out = OutputFolder(f"{artifacts}/base", tmp_path / "base-work")
    write_twin(out.path, twin="sdxl_twin")
    base = out.finish("base", {}, {})
    rich = download.run(
        source=origin(artifacts, recipe="rich_context", pictures=pictures, boxes=f"{made.uri}/*.tar"),
        artifacts=artifacts,
    )
    assert rich.kind == "rich-context-raw"
    shards = preprocess.run(
        raw=rich, base=base, recipe="rich_context", profile="laptop", samples_per_shard=0, batch_size=0,
        max_quarantined=0.0, artifacts=artifacts,
    )  # fmt: skip
    assert shards.metadata["samples"] == IMAGES
    assert not shards.metadata["quarantined"]
    assert shards.metadata["boxes"]["kept"] >= IMAGES
    packed = TarMembers(sorted(Path(made.uri).glob("*.tar")), "json", "")
    dataset = ShardDataset(shards)
    for index in range(IMAGES):
        sample = dataset.sample(index)
        label = json.loads(packed.read(f"label_{sample['key']}", "json") or b"")
        assert sample["json"]["caption"] == label["caption"]
        assert set(sample["json"]["phrases"]) <= {one["caption"] for one in label["annos"]}
        assert np.isfinite(sample["latent"].astype(np.float32)).all()


def test_what_is_left_out_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = {role: tiny.folders()[role] for role in ("tagger", "detector", "captioner")}
    models = found(str(tmp_path / "artifacts"), **given)
    assert models.metadata["models"].keys() == {*given, "words"}
    said = capsys.readouterr().out
    assert "segmenter: none given, its part is left out" in said
    assert "clip: none given, its part is left out" in said


def test_what_does_not_belong_here(tmp_path: Path) -> None:
    artifacts = str(tmp_path / "artifacts")
    with pytest.raises(ConfigError, match="phrase_encoder given, which annotating for rich_context does not use"):
        found(artifacts, phrase_encoder="none")
    empty = Manifest("coco-images-raw", str(tmp_path), ())
    with pytest.raises(ConfigError, match="prompt given, which annotating for gligen_coco does not use"):
        annotated(artifacts, empty, empty, prompt="a photo", recipe="gligen_coco")
    with pytest.raises(ConfigError, match="nothing is annotated for 'crossflow'"):
        annotated(artifacts, empty, empty, recipe="crossflow")


def test_all_of_it_on_s3(tmp_path: Path, s3_bucket: str) -> None:
    """Labels, page and training data with nothing but the models here."""
    artifacts = f"{s3_bucket}/rich-{tmp_path.name}"
    drawn = origin(artifacts, form="rich-context-images")
    raw = download.run(source=drawn, artifacts=artifacts)
    made = annotated(artifacts, raw, found(artifacts, **folders(tmp_path)))
    assert made.metadata["samples"] == IMAGES
    report = label_report.run(raw=raw, labels=made, title="Labels", artifacts=artifacts)
    assert b'<div class="single">' in InputFolder(report).fetch("report.html").read_bytes()
    rich = download.run(
        source=origin(
            artifacts,
            recipe="rich_context",
            pictures=f"{drawn.uri}/cc3m-images/00000/",
            boxes=f"{made.uri}/*.tar",
        ),
        artifacts=artifacts,
    )
    source_of = RichSource(rich, tmp_path / "cache")
    read = [one for unit in source_of.units for one in source_of.fetch(unit)()]
    assert len(read) == IMAGES
    assert all(isinstance(one, RawExample) for one in read)
    assert sum(len(one.phrases) for one in read if isinstance(one, RawExample)) == made.metadata["boxes"]["kept"]
    here = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert len(here) == 2 * IMAGES + 2  # pictures and what lies beside them, two tars
    source_of.forget(source_of.units[0])
    assert sum(path.exists() for path in here) == 2
