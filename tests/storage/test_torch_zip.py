"""A bomb in the form of torch's files is refused before anything of it is unpacked."""

import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from atelier.convert.weights import load_torch
from atelier.data.coco_published import PublishedFile
from atelier.errors import DataError
from atelier.storage.torch_zip import is_zip

ENTRIES = [{"file_path": "a.jpg", "annos": [], "captions": ["a cat"]}]


def bomb(folder: Path) -> Path:
    """What torch saved, packed again with 30 MB of nothing in its pickle: 30 kB."""
    torch.save(ENTRIES, folder / "sound.pth")
    path = folder / "bomb.pth"
    with zipfile.ZipFile(folder / "sound.pth") as sound, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name in sound.namelist():
            content = sound.read(name)
            if name.endswith("data.pkl"):
                filling = b"a" * 30_000_000
                content = content[:2] + b"X" + len(filling).to_bytes(4, "little") + filling + b"0" + content[2:]
            packed.writestr(name, content)
    return path


@pytest.mark.parametrize("read", [is_zip, PublishedFile, load_torch])
def test_a_compressed_file_is_refused_by_name(tmp_path: Path, read: Any) -> None:
    with pytest.raises(DataError, match=r"bomb\.pth: a compressed zip, \d\d,\d{3} bytes that unpack to 30,\d{3},\d{3}"):
        read(bomb(tmp_path))


def test_members_that_are_said_to_be_larger_than_the_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "stored.pth"
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("one", bytes(10_000))
    content = bytearray(path.read_bytes())
    place = content.index(b"PK\x01\x02") + 24  # its size in the list of members
    content[place : place + 4] = (4_000_000_000).to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(DataError, match="unpack to 4,000,000,000"):
        is_zip(path)


def test_torchs_own_files(tmp_path: Path) -> None:
    torch.save(ENTRIES, tmp_path / "new.pth")
    torch.save(ENTRIES, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert is_zip(tmp_path / "new.pth")
    assert not is_zip(tmp_path / "old.pth")
    assert list(PublishedFile(tmp_path / "new.pth").names()) == ["a.jpg"]
