"""Labels in tars are read as labels in files are, and pictures without labels with what lies beside them."""

import json
import shutil
import tarfile
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from atelier.data import digits_rich
from atelier.data.picture_folder import PictureFolder
from atelier.data.quarantine import Filtered, Quarantined
from atelier.data.raw_example import RawExample
from atelier.data.raw_form import form
from atelier.data.raw_source import open_source
from atelier.data.settings import Settings
from atelier.data.tar_members import TarMembers
from atelier.errors import ConfigError, DataError
from atelier.storage.folder import OutputFolder
from atelier.storage.manifest import Manifest
from tests.data import web_tars

IMAGES = "cc3m-images/00000"


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    digits_rich.write_rich(tmp_path / "raw", 6, seed=3)
    return tmp_path / "raw"


def published(folder: Path, name: str, kind: str = "rich-context-raw") -> Manifest:
    work = folder.with_name(f"work-{name}")
    shutil.copytree(folder, work)
    return OutputFolder(str(folder.with_name(name)), work).finish(kind, {}, {})


def read(source: PictureFolder) -> list[RawExample | Quarantined]:
    return [example for unit in source.units for example in source.fetch(unit)()]


def pack(raw: Path, tars: dict[str, slice]) -> None:
    """The labels into tars; the files go."""
    labels = sorted((raw / "labels").glob("label_*.json"))
    for name, some in tars.items():
        with tarfile.open(raw / "labels" / name, "w") as tar:
            for path in labels[some]:
                tar.add(path, path.name)
    for path in labels:
        path.unlink()


def pack_pictures(raw: Path, tars: dict[str, slice]) -> None:
    """The pictures and their sizes into tars as img2dataset's; the files go."""
    pictures = sorted((raw / IMAGES).glob("*.jpg"))
    (raw / "images").mkdir()
    for name, some in tars.items():
        rows = [{each.name: each.read_bytes() for each in _sample(path)} for path in pictures[some]]
        web_tars.tar(raw / "images" / name, rows)
    shutil.rmtree(raw / "cc3m-images")


def _sample(picture: Path) -> list[Path]:
    caption = picture.with_suffix(".txt")
    caption.write_text("img2dataset's caption")
    return [path for path in (picture, picture.with_suffix(".json"), caption) if path.exists()]


def same(own: Any, other: Any) -> bool:
    arrays = all(np.array_equal(getattr(own, name), getattr(other, name)) for name in ("boxes", "scores", "boxes_px"))
    fields = ("key", "image", "original_size", "caption", "captions", "phrases", "inner", "facts", "counts", "dropped")
    return arrays and all(getattr(own, name) == getattr(other, name) for name in fields)


@pytest.mark.parametrize("labels", ["files", "tars"])
def test_pictures_in_tars_are_the_same_examples(raw: Path, labels: str) -> None:
    (raw / IMAGES / "000000003.json").unlink()
    (raw / "labels/label_000000005.json").unlink()
    (raw / "labels/validation.json").write_text('["000000002.jpg"]')
    files = read(open_source(published(raw, "files")))  # type: ignore[arg-type]
    pack_pictures(raw, {"00000.tar": slice(0, 4), "00001.tar": slice(4, 6)})
    if labels == "tars":
        pack(raw, {"a.tar": slice(0, 2), "b.tar": slice(2, 5)})
    source = open_source(published(raw, "packed"))
    assert source.units == ["images/00000.tar", "images/00001.tar"]
    packed = read(source)  # type: ignore[arg-type]
    assert [type(each) for each in packed] == [type(each) for each in files]
    for own, other in zip(packed, files, strict=True):
        assert same(own, other) if isinstance(own, RawExample) else own == other
    assert Quarantined("000000005", "no label") in packed
    assert packed[1] == Filtered("000000002", "held out")
    assert sum(isinstance(each, RawExample) for each in packed) >= 3
    looked_at = list(source.first(3))  # type: ignore[attr-defined]
    assert [each.key for each in looked_at] == [each.key for each in packed[:3]]
    chosen = source.select(packed[0], Settings(res=64, samples_per_shard=8, batch=8))  # type: ignore[arg-type]
    assert source.record(chosen, 64)["phrases"] == list(chosen.phrases)


def test_pictures_in_tars_that_are_of_no_use(raw: Path) -> None:
    other = raw.with_name("other")
    shutil.copytree(raw, other)
    pack_pictures(other, {"00000.tar": slice(0, 4)})
    shutil.copytree(other / "images", raw / "images")
    with pytest.raises(DataError, match="pictures in tars, and as files"):
        open_source(published(raw, "both"))
    shutil.copytree(other / "images", other / "images/more")
    with pytest.raises(DataError, match="two tars would give shards of one name"):
        open_source(published(other, "twice"))
    shutil.rmtree(other / "images/more")
    shutil.rmtree(other / "labels")
    with pytest.raises(DataError, match="no label of its images"):
        open_source(published(other, "bare"))


def test_labels_in_tars_are_the_same_examples(raw: Path) -> None:
    files = read(open_source(published(raw, "files")))  # type: ignore[arg-type]
    pack(raw, {"a.tar": slice(0, 4), "b.tar": slice(4, 6)})
    packed = read(open_source(published(raw, "packed")))  # type: ignore[arg-type]
    assert len(packed) == 6
    for own, other in zip(packed, files, strict=True):
        assert isinstance(own, RawExample)
        assert isinstance(other, RawExample)
        assert own.boxes_px is not None
        assert np.array_equal(own.boxes_px, other.boxes_px)
        assert (own.key, own.caption, own.phrases, own.inner) == (other.key, other.caption, other.phrases, other.inner)
        assert len(own.phrases)


def test_a_picture_that_no_tar_knows_is_quarantined(raw: Path) -> None:
    pack(raw, {"a.tar": slice(0, 5)})
    *good, bad = read(open_source(published(raw, "packed")))  # type: ignore[arg-type]
    assert all(isinstance(each, RawExample) for each in good)
    assert bad == Quarantined("000000006", "no label")


def test_tars_that_cannot_be_meant(raw: Path) -> None:
    with tarfile.open(raw / "labels/a.tar", "w") as tar:
        tar.add(raw / "labels/label_000000001.json", "label_000000001.json")
    with pytest.raises(DataError, match=r"labels of its images, and tars of labels \(labels/a.tar\)"):
        open_source(published(raw, "both"))
    pack(raw, {"a.tar": slice(0, 3), "b.tar": slice(2, 6)})
    source = open_source(published(raw, "twice"))
    with pytest.raises(DataError, match="image label_000000003 is in another shard too"):
        read(source)  # type: ignore[arg-type]


def test_members_by_their_places(tmp_path: Path) -> None:
    for name in ("a.json", "a.x.npy", "b.json"):
        (tmp_path / name).write_text(f"content of {name}")
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        for name in ("a.json", "a.x.npy", "b.json"):
            tar.add(tmp_path / name, name)
    found = TarMembers([tmp_path / "t.tar"], "json", "give another")
    assert list(found) == ["a", "b"]
    assert found.read("a", "x.npy") == b"content of a.x.npy"
    assert found.read("b", "json") == b"content of b.json"
    assert found.read("b", "x.npy") is found.read("c", "json") is None
    assert found.place("b") == str(tmp_path / "t.tar")
    with pytest.raises(DataError, match=r"no a\.y"):
        TarMembers([tmp_path / "t.tar"], "y", "give another")
    (tmp_path / "cut.tar").write_bytes((tmp_path / "t.tar").read_bytes()[:520])
    with pytest.raises(DataError, match="not a readable shard"):
        TarMembers([tmp_path / "cut.tar"], "json", "give another")


def test_of_millions_of_labels_only_the_places_are_kept(tmp_path: Path) -> None:
    count = 4000
    path = web_tars.tar(tmp_path / "a.tar", ({f"label_{n:09d}.json": b"%d" % n} for n in range(count)))
    tracemalloc.start()
    try:
        members = TarMembers([path], "json", "give another")
        kept = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert kept / count < 250
    assert [int(members.read(key, "json") or b"") for key in members] == list(range(count))


def test_pictures_with_what_lies_beside_them(raw: Path) -> None:
    beside = raw / IMAGES / "000000002.json"
    known = json.loads(beside.read_text())
    beside.write_text(json.dumps(known | {"caption": 7}))
    (raw / IMAGES / "000000003.json").unlink()
    (raw / IMAGES / "000000004.json").write_text("[]")
    (raw / "captions_x.json").write_text(
        json.dumps(
            {"images": [{"id": 5, "file_name": "000000005.jpg"}], "annotations": [{"image_id": 5, "caption": "given"}]}
        )
    )
    (raw / "prompts.jsonl").write_text(
        "\n".join(
            json.dumps({"img_path": f"./0/{name}.jpg", "prompt": text})
            for name, text in (("000000003", "listed"), ("000000005", "not this"), ("000000006", "this one"))
        )
    )
    folder = PictureFolder(published(raw, "images", "rich-context-images-raw"), unit_images=4)
    assert len(folder.units) == 2
    first, second, third, fourth, fifth, sixth = read(folder)
    assert isinstance(first, RawExample)
    assert first.caption == json.loads((raw / IMAGES / "000000001.json").read_text())["caption"]
    assert first.inner is not None
    left, top, right, bottom = first.inner
    assert (bottom - top, right - left) == first.original_size
    assert isinstance(second, RawExample)
    assert (second.caption, second.original_size) == ("", (known["original_height"], known["original_width"]))
    assert isinstance(third, RawExample)
    assert (third.caption, third.inner) == ("listed", None)
    assert fourth == Quarantined("000000004", "the file beside it is no JSON object")
    assert isinstance(fifth, RawExample)
    assert fifth.caption == "given"  # COCO's file goes before a list, and that before what lies beside the picture
    assert isinstance(sixth, RawExample)
    assert sixth.captions == ("this one",)


def test_the_form_of_what_is_still_to_be_labelled() -> None:
    images = form("rich-context-images")
    kinds = {
        "images/a.jpg": "pictures", "images/a.json": "pictures", "annotations/captions_val.json": "captions",
        "list.jsonl": "captions",
        "labels/label_a.json": None, "labels/x.tar": None, "validation.json": None, "a.txt": None,
    }  # fmt: skip
    assert {name: images.kind_of(name) for name in kinds} == kinds
    with pytest.raises(ConfigError, match="the source has no images"):
        images.check(["images/a.json"])
    rich = form("rich-context")
    assert rich.kind_of("x.tar") == "boxes"
    rich.check(["images/a.jpg", "annotations/x.tar"])
    rich.check(["images/00000.tar", "annotations/x.tar"])
    rich.check(["images/00000.tar", "annotations/label_a.json"])
    with pytest.raises(ConfigError, match=r"no label_<image>\.json"):
        rich.check(["images/00000.tar"])
