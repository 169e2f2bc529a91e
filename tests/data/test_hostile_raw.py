"""Raw data made to do harm, as real bytes: refused with a reason, within memory limits, nothing written or followed."""

import gzip
import io
import struct
import tarfile
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from atelier.data import tar_stream
from atelier.data.geometry import MAX_PIXELS, decode_image, image_size
from atelier.data.quarantine import Quarantined
from atelier.data.raw_example import RawExample
from atelier.data.sa1b import read_tar
from atelier.data.tar_stream import TarDamaged, members
from tests.data import raw


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return raw.make(tmp_path / "raw", 12)


def add(tar: Path, **fields: object) -> None:
    """Appends an empty member with these fields set."""
    with tarfile.open(tar, "a") as archive:
        info = tarfile.TarInfo("sa_50.jpg")
        for name, value in fields.items():
            setattr(info, name, value)
        archive.addfile(info, io.BytesIO())


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"name": "../x.jpg"}, "its path leaves the folder"),
        ({"name": "a/../../x.jpg"}, "its path leaves the folder"),
        ({"name": "/etc/x.jpg"}, "its path leaves the folder"),
        ({"name": "..\\x.jpg"}, "its path leaves the folder"),
        ({"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}, "not a regular file"),
        ({"type": tarfile.LNKTYPE, "linkname": "sa_1.jpg"}, "not a regular file"),
        ({"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 5}, "not a regular file"),
        ({"type": tarfile.BLKTYPE}, "not a regular file"),
        ({"type": tarfile.FIFOTYPE}, "not a regular file"),
        ({"name": "sa 1;rm.jpg"}, "unusable name: not 1 to 64 letters, digits, _ and -"),
        ({"name": "x" * 90 + ".jpg"}, "unusable name: not 1 to 64 letters, digits, _ and -"),
        ({"name": "\udcff.jpg"}, "unusable name: not 1 to 64 letters, digits, _ and -"),
        ({"name": "sa_50.zip"}, "unknown kind of file"),
    ],
)
def test_members_that_are_no_images(folder: Path, fields: dict[str, object], reason: str) -> None:
    before = sorted(folder.parent.rglob("*"))
    add(folder / "sa_000000.tar", **fields)
    items = list(read_tar(folder / "sa_000000.tar", raw.captions(folder), None))
    bad = [item for item in items if isinstance(item, Quarantined)]
    assert [item.reason for item in bad] == [reason]
    bad[0].key.encode()  # can be written down
    assert len(items) == 13
    assert sorted(folder.parent.rglob("*")) == before


def test_a_gzip_bomb_ends_at_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar_stream, "EXPANSION_GRACE", 2**20)
    header = tarfile.TarInfo("sa_1.jpg")
    header.size = 2**20
    bomb = tmp_path / "sa_000000.tar"
    with gzip.open(bomb, "wb") as file:
        for _ in range(64):  # 64 MiB of zeros in 64 kB
            file.write(header.tobuf() + bytes(2**20))
    tracemalloc.start()
    found = iter(members(bomb))
    assert len(next(found).data) == 2**20
    with pytest.raises(TarDamaged, match=r"after [1-9] files \(a decompression bomb: more than"):
        sum(len(member.data) for member in found)
    assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
    tracemalloc.stop()


def test_a_member_of_a_huge_stated_size_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar_stream, "MAX_MEMBER", 2**20)
    raw.rewrite(tmp_path / "a.tar", {"sa_1.jpg": bytes(2**20 + 1), "sa_2.jpg": b"small"})
    assert [(m.name, m.problem) for m in members(tmp_path / "a.tar")] == [
        ("sa_1.jpg", "too large: 1,048,577 bytes, at most 1,048,576"),
        ("sa_2.jpg", ""),
    ]
    for size, damage in ((2**60, "the tar ends within sa_1.jpg|bomb"), (-512, "a header states -512 bytes")):
        header = tarfile.TarInfo("sa_1.jpg")
        header.size = size
        (tmp_path / "b.tar").write_bytes(header.tobuf(tarfile.GNU_FORMAT) + bytes(2048))
        with pytest.raises(TarDamaged, match=damage):
            list(members(tmp_path / "b.tar"))
        (tmp_path / "c.tar.gz").write_bytes(gzip.compress((tmp_path / "b.tar").read_bytes()))
        with pytest.raises(TarDamaged, match=damage):
            list(members(tmp_path / "c.tar.gz"))


def test_extension_headers(tmp_path: Path) -> None:
    name = tarfile.TarInfo("././@LongLink")
    name.type, name.size = tarfile.GNUTYPE_LONGNAME, 2**30
    (tmp_path / "a.tar").write_bytes(name.tobuf(tarfile.GNU_FORMAT) + bytes(2048))
    with pytest.raises(TarDamaged, match="a header states 1,073,741,824 bytes"):
        list(members(tmp_path / "a.tar"))
    # A pax record that leads back to the header itself: tarfile alone goes round for ever.
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("sa_1.jpg")
        info.pax_headers = {"size": "-1536"}
        archive.addfile(info)
    (tmp_path / "b.tar").write_bytes(buffer.getvalue())
    with pytest.raises(TarDamaged, match="a header states -1,536 bytes"):
        list(members(tmp_path / "b.tar"))


def test_a_sparse_member_of_a_terabyte_is_not_read(tmp_path: Path) -> None:
    block = bytearray(tarfile.TarInfo("sa_1.jpg").tobuf(tarfile.GNU_FORMAT))
    block[156:157] = tarfile.GNUTYPE_SPARSE
    block[386:410] = b"%011o\0%011o\0" % (0, 0)
    block[483:495] = b"\x80" + (2**40).to_bytes(11, "big")
    block[148:156] = b"%06o\0 " % (sum(block[:148]) + 8 * 32 + sum(block[156:]))
    (tmp_path / "a.tar").write_bytes(bytes(block) + bytes(1024))
    assert [m.problem for m in members(tmp_path / "a.tar")] == ["not a regular file"]


def jpeg(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height)).save(buffer, "JPEG")
    return buffer.getvalue()


def resized_header(data: bytes, width: int, height: int) -> bytes:
    """The same JPEG with another size stated."""
    place = data.index(b"\xff\xc0") + 5
    return data[:place] + struct.pack(">HH", height, width) + data[place + 4 :]


def test_image_bombs() -> None:
    with pytest.raises(ValueError, match="image bomb: Image size"):
        image_size(resized_header(jpeg(8, 8), 60000, 60000))
    with pytest.raises(ValueError, match=f"image bomb: 9000×9000 pixels, at most {MAX_PIXELS:,}"):
        decode_image(resized_header(jpeg(8, 8), 9000, 9000), 64)
    # Small as stored, 17 billion pixels once its short side is brought to 512.
    with pytest.raises(ValueError, match="image bomb: 1×65000 pixels resized to 512×33280000"):
        decode_image(jpeg(65000, 1), 512)
    png = b"\x89PNG\r\n\x1a\n"
    for kind, content in ((b"IHDR", struct.pack(">IIBBBBB", 50000, 50000, 8, 2, 0, 0, 0)), (b"IEND", b"")):
        png += struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    with pytest.raises(ValueError, match="image bomb"):
        image_size(png)


def test_formats_that_start_programs_are_not_opened() -> None:
    with pytest.raises(ValueError, match="not a readable image"):
        image_size(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n%%EndComments\nshowpage\n")


def test_flipped_bits_are_refused_or_decoded_but_never_crash(folder: Path) -> None:
    rng = np.random.default_rng(0)
    outcomes = []
    for item in read_tar(folder / "sa_000000.tar", raw.captions(folder), None):
        assert isinstance(item, RawExample)
        for flips in (1, 8, 200):
            for _ in range(25):
                data = np.frombuffer(item.image, np.uint8).copy()
                data[rng.integers(0, len(data), flips)] ^= (1 << rng.integers(0, 8, flips)).astype(np.uint8)
                try:
                    image_size(data.tobytes())
                    assert decode_image(data.tobytes(), 32).shape == (32, 32, 3)
                    outcomes.append("decoded")
                except ValueError as error:
                    outcomes.append(str(error).split(":")[0])
    assert set(outcomes) >= {"decoded", "not a readable image"}
    assert set(outcomes) <= {"decoded", "not a readable image", "image bomb"}
