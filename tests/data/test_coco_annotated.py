"""Shards of annotations as one more form of COCO's boxes: the same examples as the published form gives."""

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from atelier.data.coco_annotated import AnnotatedShards
from atelier.data.coco_folder import COCOFolder
from atelier.data.coco_source import COCOSource
from atelier.data.quarantine import Quarantined
from atelier.data.raw_example import RawExample
from atelier.data.raw_source import open_source
from atelier.data.settings import Settings
from atelier.data.shards import ShardWriter
from atelier.errors import DataError
from atelier.storage.folder import OutputFolder
from tests.data import coco_raw

WIDTH = 6


def records(folder: Path) -> list[tuple[str, dict[str, Any], np.ndarray]]:
    """Annotations for each image of a COCO folder; the third image has none, the first no captions of its own."""
    rng, found = np.random.default_rng(0), []
    content = json.loads((folder / coco_raw.INSTANCES).read_text())
    for number, image in enumerate(content["images"]):
        boxes = [] if number == 2 else [[1.25, 2.5, 40.0, 41.0], [0.0, 0.0, 9.5, 63.0]][: 1 + number % 2]
        record = {
            "image": image["file_name"],
            "original_size": [image["height"], image["width"]],
            "captions": [] if number == 0 else [f"caption {number}", "another"],
            "tags": ["digit"],
            "boxes_px": boxes,
            "scores": [0.5] * len(boxes),
            "labels": ["digit"] * len(boxes),
            "phrases": [f"phrase {place} of {number}" for place in range(len(boxes))],
        }
        found.append((Path(image["file_name"]).stem, record, rng.normal(size=(len(boxes), WIDTH)).astype(np.float16)))
    return found


def write(folder: Path, rows: list[tuple[str, dict[str, Any], np.ndarray]], name: str = "part-0000.tar") -> Path:
    out = OutputFolder(str(folder), folder)
    writer = ShardWriter(out, name)
    for key, record, embeddings in rows:
        writer.add(key, {"embeddings": embeddings}, record)
    writer.close({"covers": len(rows), "last": True, "quarantined": [], "boxes": {}})
    (folder / f"{name}.index.json").unlink()
    (folder / ".committed.jsonl").unlink()
    return folder / name


def annotated(folder: Path) -> Path:
    """Puts shards of annotations in the place of the instances."""
    rows = records(folder)
    (folder / coco_raw.INSTANCES).unlink()
    write(folder / "annotations", rows[:3])
    write(folder / "annotations", rows[3:], "part-0001.tar")
    return folder


def published(folder: Path) -> Path:
    """The same content as a ``coco_train2017.pth``."""
    entries = [
        {
            "file_path": record["image"],
            "annos": [
                {"caption": phrase, "bbox": box, "text_embeddings_before_projection": torch.from_numpy(row).float()}
                for phrase, box, row in zip(record["phrases"], record["boxes_px"], embeddings, strict=True)
            ],
            "captions": record["captions"],
        }
        for _, record, embeddings in records(folder)
    ]
    (folder / coco_raw.INSTANCES).unlink()
    torch.save(entries, folder / "annotations" / "coco_train2017.pth")
    return folder


def examples(source: COCOSource) -> list[RawExample]:
    settings = Settings(res=64, samples_per_shard=8, batch=4, max_boxes=3)
    found = []
    for unit in source.units:
        for one in source.fetch(unit)():
            assert not isinstance(one, Quarantined), one
            found.append(source.select(one, settings))
    return found


def test_the_same_examples_as_of_the_published_form(tmp_path: Path) -> None:
    own, theirs = (
        examples(coco_raw.source(make(coco_raw.make(tmp_path / make.__name__, 7)))) for make in (annotated, published)
    )
    assert len(own) == len(theirs) == 7
    for one, other in zip(own, theirs, strict=True):
        for field in fields(RawExample):
            mine, its = getattr(one, field.name), getattr(other, field.name)
            if field.name == "phrase_embeddings" and not len(one.phrases):
                assert mine.shape == (0, WIDTH)  # the published form cannot say how wide none are
            elif isinstance(mine, np.ndarray):
                assert mine.dtype == its.dtype, field.name
                assert np.array_equal(mine, its), field.name
            else:
                assert mine == its, field.name
    assert len(own[0].captions) == 3  # from COCO's captions file
    assert own[1].captions == ("caption 1", "another")
    assert own[1].phrase_embeddings is not None
    # largest first: the rows of the embeddings went along
    assert own[1].phrases == ("phrase 0 of 1", "phrase 1 of 1")


def test_images_alone(tmp_path: Path) -> None:
    folder = coco_raw.make(tmp_path / "raw", 5)
    source = COCOFolder(coco_raw.manifest(folder), unit_images=2)
    assert source.units == ["coco-000000", "coco-000001", "coco-000002"]
    found = [one for unit in source.units for one in source.fetch(unit)()]
    assert [len(one.captions) for one in found if isinstance(one, RawExample)] == [3] * 5
    images = replace(coco_raw.manifest(folder), kind="coco-images-raw")
    without = [entry for entry in images.files if entry.path != coco_raw.INSTANCES]
    with pytest.raises(DataError, match="0 files of boxes"):
        open_source(replace(images, files=tuple(without)))
    (folder / coco_raw.CAPTIONS).unlink()
    (one, *_) = COCOFolder(coco_raw.manifest(folder)).first(1)
    assert isinstance(one, RawExample)
    assert (one.caption, one.captions) == ("", ())


def test_what_is_no_shard_of_annotations_is_refused(tmp_path: Path) -> None:
    rows = records(coco_raw.make(tmp_path / "raw", 4))
    whole = write(tmp_path / "shards", rows)
    assert len(list(AnnotatedShards([whole]).names())) == 4
    with pytest.raises(DataError, match="is in another shard too"):
        AnnotatedShards([whole, write(tmp_path / "shards", rows[2:], "other.tar")])
    cut = tmp_path / "cut.tar"
    data = whole.read_bytes()
    for size in (0, 300, 700, 1100, len(data) // 2):
        cut.write_bytes(data[:size])
        with pytest.raises(DataError, match=str(cut)):
            AnnotatedShards([cut])
    cut.write_bytes(b"\x00" * 10240)
    with pytest.raises(DataError, match="empty"):
        AnnotatedShards([cut])


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"boxes_px": [[0, 0, 5, 5]] * 3}, "3 boxes and 2 phrases"),
        ({"boxes_px": [[9, 0, 5, 5], [0, 0, 5, 5]]}, "a box that is none"),
        ({"phrases": ["x" * 20_001, "y"]}, "phrase too long"),
        ({"original_size": [3]}, "not readable"),
        ({"captions": None}, "not readable"),
        ({"phrases": ["a"], "boxes_px": [[0, 0, 5, 5]]}, "phrase embeddings of shape"),
    ],
)
def test_a_bad_record_costs_its_image_alone(tmp_path: Path, changes: dict[str, Any], problem: str) -> None:
    rows = records(coco_raw.make(tmp_path / "raw", 4))
    key, record, embeddings = rows[1]
    rows[1] = (key, record | changes, embeddings)
    shards = AnnotatedShards([write(tmp_path / "shards", rows)])
    known = shards.of(record["image"])
    assert known is not None
    assert problem in known.problem
    assert shards.of(rows[3][1]["image"]).problem == ""  # type: ignore[union-attr]
    assert shards.of("000000000099.jpg") is None
    assert shards.of(f"{key}.png") is None


def test_one_form_of_boxes_at_a_time(tmp_path: Path) -> None:
    folder = coco_raw.make(tmp_path / "raw", 4)
    write(folder / "annotations", records(folder))
    with pytest.raises(DataError, match="1 files of boxes and shards of annotations"):
        COCOSource(coco_raw.manifest(folder))
