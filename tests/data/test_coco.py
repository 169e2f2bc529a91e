"""COCO's form: annotations streamed and joined, boxes transformed and chosen, hostile input named."""

import json
from pathlib import Path, PosixPath

import numpy as np
import pytest
import torch

from atelier.data import digits, json_stream
from atelier.data.coco import CaptionFile, InstanceFile
from atelier.data.coco_boxes import largest, transform
from atelier.data.coco_published import EMBEDDING
from atelier.data.coco_source import COCOSource
from atelier.data.quarantine import Quarantined
from atelier.data.raw_example import RawExample
from atelier.data.raw_source import open_source
from atelier.data.settings import Settings
from atelier.errors import DataError
from tests.data import coco_raw

SETTINGS = Settings(res=64, samples_per_shard=8, batch=4, max_boxes=30)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return coco_raw.make(tmp_path / "raw")


def read(source: COCOSource) -> dict[str, RawExample | Quarantined]:
    return {item.key: item for unit in source.units for item in source.fetch(unit)()}


def reasons(items: dict[str, RawExample | Quarantined]) -> dict[str, str]:
    return {key: item.reason for key, item in items.items() if isinstance(item, Quarantined)}


def test_examples_and_their_boxes_are_those_drawn(folder: Path) -> None:
    source = open_source(coco_raw.manifest(folder))
    items = read(source)
    assert list(items) == [f"{number:012d}" for number in range(1, 13)]
    for number, item in enumerate(items.values(), start=1):
        layout = digits.layout_random(np.random.default_rng([0, number]))
        expected = {(tuple(np.float32(box).tolist()), digits.phrase(label)) for box, label in layout}
        chosen = source.select(item, SETTINGS)
        assert {(tuple(b), p) for b, p in zip(chosen.boxes.tolist(), chosen.phrases, strict=True)} == expected
        area = (chosen.boxes[:, 2:] - chosen.boxes[:, :2]).prod(1)
        assert (np.diff(area) <= 1e-9).all()
        assert len(item.captions) == 3
        assert item.captions[0] == digits.caption(layout)
        record = source.record(chosen, 64)
        assert len(record["boxes"]) == len(record["boxes_px"]) == len(record["phrases"])
        assert record["original_size"] == list(item.original_size)


def test_boxes_of_a_source_are_never_changed(folder: Path) -> None:
    source = coco_raw.source(folder)
    first, again = read(source), read(source)
    for key, item in first.items():
        before = item.boxes_px.copy()
        for _ in range(3):
            source.select(item, SETTINGS)
        assert (item.boxes_px == before).all()
        assert (again[key].boxes_px == before).all()


def test_transform_by_hand() -> None:
    """640×480 to 512: scale 16/15, offset (682.67 - 512) // 2 = 85 to the left."""
    box = transform((150.0, 30.0, 300.0, 240.0), (640, 480), 512)
    assert box is not None
    np.testing.assert_allclose(box.box_px, (75.0, 32.0, 235.0, 256.0), atol=1e-9)
    np.testing.assert_allclose(box.normalised, np.array(box.box_px) / 512, atol=1e-12)
    assert transform((0.0, 0.0, 79.0, 480.0), (640, 480), 512) is None  # wholly cut off
    assert transform((300.0, 200.0, 310.0, 210.0), (640, 480), 512) is None  # below 1 %
    assert transform((300.0, 200.0, 310.0, 210.0), (640, 480), 512, 0.0) is not None
    assert transform((310.0, 200.0, 300.0, 210.0), (640, 480), 512, 0.0) is None  # reversed
    assert transform((float("nan"), 200.0, 300.0, 210.0), (640, 480), 512, 0.0) is None


def test_the_largest_boxes_are_kept_in_order() -> None:
    boxes = np.array([[0, 0, 0.2, 0.2], [0, 0, 0.5, 0.5], [0.5, 0.5, 1, 1], [0, 0, 0.1, 0.1]])
    assert largest(boxes, 3).tolist() == [1, 2, 0]


def test_boxes_for_which_there_is_no_room_are_counted(folder: Path) -> None:
    source = coco_raw.source(folder)
    full = 0
    for item in read(source).values():
        assert isinstance(item, RawExample)
        whole = source.select(item, SETTINGS)
        few = source.select(item, Settings(res=64, samples_per_shard=8, batch=4, max_boxes=1))
        assert few.dropped == whole.dropped + max(len(whole.boxes) - 1, 0)
        full += few.dropped
    assert full > 0


def test_what_cannot_be_used_is_named(folder: Path) -> None:
    manifest_of_whole = coco_raw.manifest(folder)
    instances, captions = folder / coco_raw.INSTANCES, folder / coco_raw.CAPTIONS
    content = json.loads(instances.read_text())
    images = [image for image in content["images"] if image["id"] != 1]
    images[0]["height"] += 1  # of image 2
    boxes = [
        {"id": 1, "image_id": 3, "category_id": 1, "bbox": [0, 0, -5, 5], "iscrowd": 0},
        {"id": 2, "image_id": 3, "category_id": 1, "bbox": [0, 0, float("nan"), 5], "iscrowd": 0},
        {"id": 3, "image_id": 3, "category_id": 1, "bbox": [0, 0, 50, 50], "iscrowd": 1},
    ]
    coco_raw.edit(instances, images=images, annotations=boxes)
    listed = json.loads(captions.read_text())["annotations"]
    changed = [{**c, "caption": " "} if c["image_id"] == 4 else c for c in listed]
    coco_raw.edit(captions, annotations=changed)
    (folder / "train2017" / f"{5:012d}.jpg").write_bytes(b"no image")
    items = read(coco_raw.source(folder))
    assert reasons(items) == {
        "000000000001": "not in the annotations",
        "000000000002": reasons(items)["000000000002"],
        "000000000004": "no caption",
        "000000000005": reasons(items)["000000000005"],
    }
    assert "another size" in reasons(items)["000000000002"]
    assert "not a readable image" in reasons(items)["000000000005"]
    third = items["000000000003"]
    assert isinstance(third, RawExample)
    assert (third.dropped, len(third.boxes_px)) == (3, 0)
    assert manifest_of_whole.digest != coco_raw.manifest(folder).digest


def test_an_image_that_is_not_its_manifests_is_quarantined(folder: Path) -> None:
    manifest = coco_raw.manifest(folder)
    path = folder / "train2017" / f"{7:012d}.jpg"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert reasons(read(COCOSource(manifest))) == {"000000000007": "damaged: not the bytes that its manifest states"}


def test_a_folder_that_is_no_data_set_is_refused(folder: Path) -> None:
    (folder / coco_raw.INSTANCES).rename(folder / "annotations" / "other.json")
    with pytest.raises(DataError, match="0 files of boxes"):
        coco_raw.source(folder)


@pytest.mark.parametrize("cut", [0, 1, 200, -1, -2])
def test_damaged_json_is_named(folder: Path, cut: int) -> None:
    path = folder / coco_raw.INSTANCES
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(DataError, match=r"instances_train2017\.json: not a readable JSON object"):
        InstanceFile(path)


def test_json_of_another_form_is_named(folder: Path) -> None:
    path = folder / coco_raw.INSTANCES
    coco_raw.edit(path, annotations=[{"image_id": 1, "bbox": [0, 0, 5], "category_id": 1}])
    with pytest.raises(DataError, match="element of 'annotations' is not of COCO's form"):
        InstanceFile(path)
    coco_raw.edit(path, annotations=[{"image_id": 1, "bbox": [0, 0, 5, 5], "category_id": 77}])
    with pytest.raises(DataError, match=r"categories that it does not list: \[77\]"):
        InstanceFile(path)
    coco_raw.edit(folder / coco_raw.CAPTIONS, annotations=[])
    with pytest.raises(DataError, match="no captions"):
        CaptionFile(folder / coco_raw.CAPTIONS)


def test_streaming_gives_what_json_gives(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a window of a few characters every element crosses its border."""
    path = folder / "mixed.json"
    content = {"a": [1, 22, -3.5e2, {"x": [1, "ü,]"]}], "b": {"c": [1]}, "d": [], "e": 12345, "f": [True, None]}
    expected = [
        pair
        for name, value in content.items()
        for pair in ([(name, each) for each in value] if isinstance(value, list) else [(name, value)])
    ]
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False))
    for chunk in (1, 2, 7, 2**20):
        monkeypatch.setattr(json_stream, "CHUNK", chunk)
        assert list(json_stream.elements(path)) == expected
    path.write_text('{"a": [1, ]}')
    with pytest.raises(DataError, match="comma"):
        list(json_stream.elements(path))


def published(folder: Path, **extra: object) -> Path:
    """The folder's JSON as the published list, with paths as its README shows."""
    source = coco_raw.source(folder)
    entries = []
    for key, item in read(source).items():
        annos = [
            {"caption": phrase, "bbox": box, EMBEDDING: torch.full((8,), float(len(phrase)))}
            for phrase, box in zip(item.phrases, item.boxes_px.tolist(), strict=True)
        ]
        entry = {"file_path": PosixPath(f"/mnt/x/{key}.jpg"), "annos": annos, "captions": list(item.captions)}
        entries.append(entry | extra)
    path = folder / "annotations" / "coco_train2017.pth"
    torch.save(entries, path)
    (folder / coco_raw.INSTANCES).unlink()
    return path


def test_the_published_file_gives_the_same_examples(folder: Path) -> None:
    before = read(coco_raw.source(folder))
    published(folder)
    after = read(coco_raw.source(folder))
    assert after.keys() == before.keys()
    for key, item in after.items():
        assert (item.boxes_px == before[key].boxes_px).all()
        assert (item.phrases, item.captions) == (before[key].phrases, before[key].captions)
        assert item.phrase_embeddings.tolist() == [[float(len(phrase))] * 8 for phrase in item.phrases]
        chosen = coco_raw.source(folder).select(item, SETTINGS)
        assert chosen.phrase_embeddings[:, 0].tolist() == [float(len(phrase)) for phrase in chosen.phrases]


def test_captions_of_the_json_stand_in_where_the_published_file_has_none(folder: Path) -> None:
    before = read(coco_raw.source(folder))
    published(folder, captions=())
    assert {key: item.captions for key, item in read(coco_raw.source(folder)).items()} == {
        key: item.captions for key, item in before.items()
    }
    (folder / coco_raw.CAPTIONS).unlink()
    assert set(reasons(read(coco_raw.source(folder))).values()) == {"no caption"}


def test_bad_entries_of_the_published_file_are_quarantined(folder: Path) -> None:
    published(folder, annos=[{"caption": "a seven", "bbox": [1, 2, 3]}])
    assert all("annotations are not readable" in reason for reason in reasons(read(coco_raw.source(folder))).values())


class Evil:
    """Would run code when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("executed",))


def test_a_pickle_with_more_in_it_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = published(folder)
    torch.save([Evil()], path)
    with pytest.raises(DataError, match="not a readable list"):
        read(coco_raw.source(folder))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match="not a readable list"):
        read(coco_raw.source(folder))
    assert "executed" not in capsys.readouterr().out
