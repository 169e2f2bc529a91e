"""From images to annotations, and on to the shards of gligen_coco; models are tiny, everything else is real."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from atelier.annotate.phrases import PhraseEncoder
from atelier.annotate.places import Place
from atelier.data.coco_annotated import AnnotatedShards
from atelier.data.shard_reader import ShardDataset
from atelier.errors import ConfigError
from atelier.steps import annotate, annotators, download, preprocess, source
from atelier.storage.folder import OutputFolder
from atelier.storage.manifest import Manifest
from tests.annotate import tiny
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
    nothing = {"tagger": "", "vocabulary": "", "detector": "", "captioner": "", "phrase_encoder": ""}
    return annotators.run(profile="laptop", artifacts=artifacts, **nothing | models)


def annotated(artifacts: str, raw: Manifest, models: Manifest, **given: Any) -> Manifest:
    own = {"box_threshold": 0.0, "text_threshold": 0.0, "batch_size": 4, "caption_batch_size": 0,
           "images_per_shard": 4, "max_quarantined": 0.0}  # fmt: skip
    return annotate.run(raw=raw, annotators=models, profile="laptop", artifacts=artifacts, **own | given)


def test_without_models_nothing_starts(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no detector and no captioner and no tagger given") as caught:
        found(str(tmp_path / "artifacts"))
    assert "docs/annotate.md" in caught.value.fix
    assert not (tmp_path / "artifacts").exists()


def test_a_parameter_out_of_range_is_named(tmp_path: Path) -> None:
    empty = Manifest("coco-images-raw", str(tmp_path), ())
    for given, message in (
        ({"box_threshold": 1.5}, "box_threshold=1.5"),
        ({"images_per_shard": -1}, "images_per_shard=-1"),
        ({"workers": -1}, "workers=-1"),
    ):
        with pytest.raises(ConfigError, match=message):
            annotated(str(tmp_path / "artifacts"), empty, empty, **given)


def test_annotations_feed_gligen_coco(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    artifacts = str(tmp_path / "artifacts")
    out = OutputFolder(f"{artifacts}/base", tmp_path / "base-work")
    write_twin(out.path, twin="sd_twin")
    base = out.finish("base", {}, {})

    drawn = origin(artifacts, form="coco-images")
    raw = download.run(source=drawn, artifacts=artifacts)
    assert raw.kind == "coco-images-raw"
    assert raw.metadata == {"images": IMAGES, "annotations": 1}  # the captions; boxes are not taken along
    models = found(artifacts, **tiny.folders() | {"phrase_encoder": base.uri})
    made = annotated(artifacts, raw, models)
    assert made.kind == "coco-annotations"
    assert [shard["samples"] for shard in made.metadata["shards"]] == [4, 4, 2]
    assert made.metadata["metrics"]["images_annotated"] == IMAGES
    assert made.metadata["metrics"]["boxes_per_image"] > 1
    assert annotated(artifacts, raw, models, workers=2).digest == made.digest
    assert "annotate: cached at" in capsys.readouterr().out

    fed = origin(
        artifacts, recipe="gligen_coco", pictures=f"{drawn.uri}/train2017/*.jpg", boxes=f"{made.uri}/*.tar"
    )  # no captions: the annotations bring COCO's
    coco = download.run(source=fed, artifacts=artifacts)
    assert coco.metadata == {"images": IMAGES, "annotations": 3}
    shards = preprocess.run(
        raw=coco, base=base, recipe="gligen_coco", profile="laptop", samples_per_shard=0, batch_size=0,
        max_quarantined=0.0, artifacts=artifacts,
    )  # fmt: skip
    assert shards.metadata["samples"] == IMAGES
    assert not shards.metadata["quarantined"]
    dataset = ShardDataset(shards)
    annotations = AnnotatedShards(sorted(Path(made.uri).glob("*.tar")))
    encoder = PhraseEncoder(Place(base.uri, "", ""))
    grounded = 0
    for index in range(IMAGES):
        sample = dataset.sample(index)
        record, known = sample["json"], annotations.of(f"{sample['key']}.jpg")
        assert known is not None
        assert tuple(record["captions"]) == known.captions
        assert len(known.captions) == len(sample["prompts"]) == 3
        assert set(record["phrases"]) <= set(known.phrases)
        assert np.array_equal(sample["phrases"], encoder.embed(record["phrases"]))
        assert all(0 <= value <= 1 for box in record["boxes"] for value in box)
        grounded += len(record["boxes"])
    assert grounded >= IMAGES
