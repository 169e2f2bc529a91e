import io
import json
import re
import tarfile
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from atelier.data.captions import CaptionTable
from atelier.data.quarantine import Quarantine, Quarantined
from atelier.data.raw_example import RawExample
from atelier.data.sa1b import image_sizes, read_tar
from atelier.errors import DataError
from atelier.storage.atomic import NotFound
from tests.data import raw


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return raw.make(tmp_path / "raw", 12)


def read(folder: Path, tar: str = "sa_000000.tar") -> list[RawExample | Quarantined]:
    return list(read_tar(folder / tar, raw.captions(folder), folder / "boxes" / "sa_000000.npy"))


def bad(items: list[RawExample | Quarantined]) -> dict[str, str]:
    return {item.key: item.reason for item in items if isinstance(item, Quarantined)}


def test_joins_image_caption_and_boxes(folder: Path) -> None:
    items = read(folder)
    assert [item.key for item in items] == [f"sa_{n}" for n in range(1, 13)]
    for item in items:
        assert isinstance(item, RawExample)
        assert min(item.original_size) == 64
        assert len(item.boxes) == len(item.scores) == len(item.phrases) > 0
        assert all(phrase in item.caption for phrase in item.phrases)
        assert item.boxes.dtype == np.float32


def test_gzip_whatever_the_name_says(folder: Path) -> None:
    plain = read(folder)
    raw.rewrite(folder / "sa_000000.tar", raw.members(folder / "sa_000000.tar"), "w:gz")
    assert [item.key for item in read(folder)] == [item.key for item in plain]


def test_members_in_any_order_and_without_json(folder: Path) -> None:
    content = raw.members(folder / "sa_000000.tar")
    jsons = {name: data for name, data in content.items() if name.endswith("json")}
    images = {f"./dir/{name}": data for name, data in content.items() if name.endswith("jpg")}
    raw.rewrite(folder / "sa_000000.tar", jsons | images)
    assert not bad(read(folder))
    raw.rewrite(folder / "sa_000000.tar", images)
    items = read(folder)
    assert not bad(items)
    assert len(items) == 12


def test_bad_samples_are_quarantined_with_their_reason(folder: Path) -> None:
    content = raw.members(folder / "sa_000000.tar")
    content["sa_1.jpg"] = b"no jpeg at all"
    del content["sa_2.jpg"]
    content["sa_3.json"] = b"{"
    record = json.loads(content["sa_4.json"])
    record["image"]["height"] = 9
    content["sa_4.json"] = json.dumps(record).encode()
    content["../../etc/sa_99.jpg"] = content["sa_5.jpg"]
    content["readme.txt"] = b"hello"
    content["sa_777.jpg"], content["sa_777.json"] = content["sa_5.jpg"], content["sa_5.json"]
    del content["sa_6.json"]
    content["sa_7.json"] = b"[" * 200_000
    content["sa_8.json"] = b'{"image": {"height": Infinity, "width": 64}}'
    raw.rewrite(folder / "sa_000000.tar", content)
    items = read(folder)
    found = bad(items)
    numbers = {f"sa_{n}" for n in (1, 2, 3, 4, 6, 7, 8, 777)}
    assert set(found) == numbers | {"../../etc/sa_99.jpg", "readme.txt"}
    assert found["sa_6"] == "no json for its image"
    assert "RecursionError" in found["sa_7"]
    assert "OverflowError" in found["sa_8"]
    assert found["sa_1"].startswith("not a readable image")
    assert found["sa_2"] == "no image for its json"
    assert "not readable" in found["sa_3"]
    assert "another size" in found["sa_4"]
    assert found["../../etc/sa_99.jpg"] == "its path leaves the folder"
    assert found["sa_777"] == "no caption"
    assert len(items) - len(found) == 5


def test_links_and_doubles(folder: Path) -> None:
    content = raw.members(folder / "sa_000000.tar")
    raw.rewrite(folder / "sa_000000.tar", content)
    with tarfile.open(folder / "sa_000000.tar", "a") as archive:
        link = tarfile.TarInfo("sa_50.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
        again = tarfile.TarInfo("sa_1.jpg")
        again.size = len(content["sa_1.jpg"])
        archive.addfile(again, io.BytesIO(content["sa_1.jpg"]))
    assert bad(read(folder)) == {"sa_50.jpg": "not a regular file", "sa_1": "the image is there twice"}


@pytest.mark.parametrize("damage", ["in data", "in header", "at a boundary", "gzip", "gzip crc", "flipped header"])
def test_of_a_damaged_tar_the_rest_is_used_and_the_loss_counted(folder: Path, damage: str) -> None:
    tar = folder / "sa_000000.tar"
    data = bytearray(tar.read_bytes())
    with tarfile.open(tar) as archive:
        third = archive.getmembers()[4]
    if damage == "in data":
        data = data[: third.offset_data + 100]
    elif damage == "in header":
        data = data[: third.offset + 200]
    elif damage == "at a boundary":
        data = data[: third.offset]
    elif damage.startswith("gzip"):
        raw.rewrite(tar, raw.members(tar), "w:gz")
        data = bytearray(tar.read_bytes())
        if damage == "gzip":
            data = data[:-2000]
        else:
            data[-6] ^= 1
    else:
        data[third.offset + 5] ^= 0xFF
    tar.write_bytes(data)
    items = read(folder)
    good = [item.key for item in items if isinstance(item, RawExample)]
    found = bad(items)
    assert re.fullmatch(r"damaged tar: after \d+ files \(.+\)", found.pop("sa_000000.tar"))
    if not damage.startswith("gzip"):
        assert good == ["sa_1", "sa_2"]
    assert sorted(good + list(found)) == sorted(f"sa_{n}" for n in range(1, 13))  # not one image in silence
    assert set(found.values()) <= {"lost in a damaged tar: sa_000000.tar", "no json for its image"}


def test_a_tar_of_nothing(folder: Path) -> None:
    tar = folder / "sa_000000.tar"
    tar.write_bytes(b"")
    found = bad(read(folder))
    assert found.pop("sa_000000.tar").startswith("damaged tar: after 0 files")
    assert len(found) == 12
    raw.rewrite(tar, {})
    assert bad(read(folder)) == {"sa_000000.tar": "no files in the tar"}


def test_a_missing_tar_is_an_error_and_damaged_boxes_quarantine_their_tar(folder: Path) -> None:
    with pytest.raises(NotFound, match="sa_000009"):
        read(folder, "sa_000009.tar")
    (folder / "boxes" / "sa_000000.npy").write_bytes(b"\x93NUMPY damaged")
    found = bad(read(folder))
    assert len(found) == 12
    assert all(re.match(r"boxes file not readable: .*boxes/sa_000000\.npy", reason) for reason in found.values())
    np.save(folder / "boxes" / "sa_000000.npy", np.zeros((3, 2)))
    assert "five columns" in bad(read(folder))["sa_1"]


def test_boxes_outside_the_image(folder: Path) -> None:
    rows = np.load(folder / "boxes" / "sa_000000.npy", allow_pickle=True)  # made by this test's own set-up
    rows[0, 2] = np.array([[0.9, 0.5, 0.5, 0.2], [2, 2, 0.1, 0.1]], np.float16)
    rows[0, 3], rows[0, 4] = np.array([0.5, 0.6], np.float16), ["a one", "a two"]
    rows[1, 4] = ["one phrase too few"] * (len(rows[1, 2]) - 1)
    rows[2, 2] = rows[2, 2].copy()
    rows[2, 2][0, 1] = np.nan
    rows[3, 3] = rows[3, 3].copy()
    rows[3, 3][0] = np.inf
    rows[4, 2] = np.full((1, 4), 7, np.float16)
    rows[4, 3], rows[4, 4] = np.array([0.5], np.float16), ["far outside"]
    rows[5, 2] = np.array([["left", "top", "wide", "high"]])
    rows[6, 4] = ["\ud800"] * len(rows[6, 2])
    rows[7, 4] = ["x" * 30_000] * len(rows[7, 2])
    np.save(folder / "boxes" / "sa_000000.npy", rows, allow_pickle=True)
    items = read(folder)
    first = items[0]
    assert isinstance(first, RawExample)
    assert (first.phrases, first.clipped, first.dropped) == (("a one",), 1, 1)
    assert first.boxes[0].tolist() == pytest.approx([0.65, 0.4, 1.0, 0.6], abs=1e-3)
    found = bad(items)
    assert "its boxes are not readable" in found["sa_2"]
    assert found["sa_3"] == found["sa_4"] == "non-finite boxes"
    assert found["sa_5"] == "no box inside the image: 1 outside or empty"
    assert "its boxes are not readable" in found["sa_6"]
    assert "not Unicode" in found["sa_7"]
    assert "phrase too long" in found["sa_8"]
    assert len(found) == 7


def test_sizes_without_decoding(folder: Path) -> None:
    expected = [(item.key, item.original_size) for item in read(folder) if isinstance(item, RawExample)]
    assert list(image_sizes(folder / "sa_000000.tar")) == expected
    content = raw.members(folder / "sa_000000.tar")
    # 100 KB of metadata before the size, and a file that is none.
    segment = b"\xff\xe1\xc3\x50" + bytes(0xC350 - 2)
    content["sa_1.jpg"] = content["sa_1.jpg"][:2] + 2 * segment + content["sa_1.jpg"][2:]
    content["sa_2.jpg"] = b"none"
    raw.rewrite(folder / "sa_000000.tar", content, "w:gz")
    found = [item for item in image_sizes(folder / "sa_000000.tar") if not isinstance(item, Quarantined)]
    assert sorted(found) == sorted(entry for entry in expected if entry[0] != "sa_2")


def test_captions_alone(folder: Path) -> None:
    items = list(read_tar(folder / "sa_000000.tar", raw.captions(folder), None))
    assert [len(item.boxes) for item in items if isinstance(item, RawExample)] == [0] * 12


def test_captions_from_many_row_groups(tmp_path: Path) -> None:
    ids = np.random.default_rng(0).permutation(5000)
    table = pyarrow.table({"key": [f"sa_{n}" for n in ids], "caption": [f"caption {n}" for n in ids]})
    pyarrow.parquet.write_table(table.slice(0, 3000), tmp_path / "a.parquet", row_group_size=500)
    pyarrow.parquet.write_table(table.slice(3000), tmp_path / "b.parquet", row_group_size=500)
    captions = CaptionTable([tmp_path / "a.parquet", tmp_path / "b.parquet"])
    assert len(captions) == 5000
    assert captions.lookup([7, 4999, 123456, -1]) == {7: "caption 7", 4999: "caption 4999"}
    assert captions.lookup([]) == {}
    pyarrow.parquet.write_table(table.select(["key"]), tmp_path / "c.parquet")
    with pytest.raises(DataError, match="no column caption"):
        CaptionTable([tmp_path / "c.parquet"])
    pyarrow.parquet.write_table(pyarrow.table({"key": [1, 2], "caption": ["a", "b"]}), tmp_path / "e.parquet")
    with pytest.raises(DataError, match=r"e\.parquet: column key holds int64"):
        CaptionTable([tmp_path / "e.parquet"])
    flipped = bytearray((tmp_path / "a.parquet").read_bytes())
    flipped[4:200] = bytes(196)
    (tmp_path / "f.parquet").write_bytes(flipped)
    with pytest.raises(DataError, match=r"f\.parquet: row group 0"):
        CaptionTable([tmp_path / "f.parquet"])
    (tmp_path / "d.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-100])
    with pytest.raises(DataError, match=r"d\.parquet"):
        CaptionTable([tmp_path / "d.parquet"])


def test_quarantine_writes_down_whatever_the_data_holds(tmp_path: Path) -> None:
    quarantine = Quarantine(0.1, tmp_path / "q.jsonl")
    quarantine.add("sa_1\n", "its boxes are not readable: '\ud800'" + "x" * 10_000)
    quarantine.write()
    (line,) = quarantine.path.read_text(encoding="utf-8").splitlines()
    assert json.loads(line)["key"] == "sa_1\n"
    assert len(line) < 700


def test_quarantine_has_a_limit(tmp_path: Path) -> None:
    quarantine = Quarantine(0.1, tmp_path / "q.jsonl")
    quarantine.check(0)
    for number in range(3):
        quarantine.add(f"sa_{number}", f"not a readable image: {number}")
    quarantine.add("sa_9", "no caption")
    quarantine.check(40)
    quarantine.check_ahead(40)
    with pytest.raises(DataError, match=r"already 4 of 35 samples"):
        quarantine.check_ahead(35)
    quarantine.write()
    assert len((tmp_path / "q.jsonl").read_text().splitlines()) == 4
    assert quarantine.counts() == {"not a readable image": 3, "no caption": 1}
    with pytest.raises(DataError, match=r"4 of 39 samples .* 3 × not a readable image.*sa_0"):
        quarantine.check(39)
