"""COCO's stuff beside its instances: an image's things, then its stuff, but for the stuff that is merely other."""

import json
from pathlib import Path

import pytest

from atelier.data.quarantine import Quarantined
from atelier.data.raw_example import RawExample
from atelier.data.raw_form import form
from atelier.errors import DataError
from tests.data import coco_raw
from tests.data.coco_raw import INSTANCES, edit

STUFF = "annotations/stuff_train2017.json"
CATEGORIES = [{"id": 124, "name": "grass"}, {"id": 183, "name": "other"}]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six canvases, grass on the first, other stuff on the first two."""
    folder = coco_raw.make(tmp_path / "raw", 6)
    images = json.loads((folder / INSTANCES).read_text())["images"]
    annotations = [
        {"id": 1, "image_id": 1, "category_id": 124, "bbox": [0, 32, 64, 32], "iscrowd": 0},
        {"id": 2, "image_id": 1, "category_id": 183, "bbox": [0, 0, 64, 64], "iscrowd": 0},
        {"id": 3, "image_id": 2, "category_id": 183, "bbox": [0, 0, 64, 64], "iscrowd": 0},
        {"id": 4, "image_id": 2, "category_id": 124, "bbox": [0, 0, 64, 64], "iscrowd": 1},
    ]
    stuff = {"images": images[:5], "categories": CATEGORIES, "annotations": annotations}
    (folder / STUFF).write_text(json.dumps(stuff))
    return folder


def read(folder: Path) -> list[RawExample | Quarantined]:
    source = coco_raw.source(folder)
    return [example for unit in source.units for example in source.fetch(unit)()]


def test_stuff_follows_the_things(folder: Path) -> None:
    found = read(folder)
    (folder / STUFF).unlink()
    for number, (item, alone) in enumerate(zip(found, read(folder), strict=True), start=1):
        assert isinstance(item, RawExample)
        assert isinstance(alone, RawExample)
        more = ("grass",) if number == 1 else ()
        assert item.phrases == alone.phrases + more
        assert item.boxes_px is not None
        assert alone.boxes_px is not None
        assert item.boxes_px[: len(alone.phrases)].tolist() == alone.boxes_px.tolist()
        assert item.boxes_px[len(alone.phrases) :].tolist() == ([[0, 32, 64, 64]] if more else [])
        assert item.dropped == alone.dropped + {1: 1, 2: 2}.get(number, 0)


def test_two_sizes_of_one_image_are_a_flaw_of_it(folder: Path) -> None:
    images = json.loads((folder / STUFF).read_text())["images"]
    images[0]["width"] += 1
    edit(folder / STUFF, images=images)
    bad = [item for item in read(folder) if isinstance(item, Quarantined)]
    assert [item.reason.split(":")[0] for item in bad] == ["its things and its stuff state two sizes"]


def test_stuff_alone_is_no_data_set(folder: Path) -> None:
    (folder / "annotations/stuff_val2017.json").write_text("{}")
    with pytest.raises(DataError, match="2 files of stuff"):
        coco_raw.source(folder)
    (folder / "annotations/stuff_val2017.json").unlink()
    (folder / INSTANCES).unlink()
    with pytest.raises(DataError, match="0 files of boxes"):
        coco_raw.source(folder)


def test_a_download_takes_it_along() -> None:
    coco = form("coco")
    coco.check(["images/a.jpg", "annotations/instances_train2017.json", "annotations/stuff_train2017.json"])
    assert coco.kind_of("stuff_train2017.json") == "boxes"
