"""JourneyDB's own form: gzipped tars of pictures, and a list of prompts in a gzipped tar."""

import io
import json
import os
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from atelier.data import prompt_list, tar_stream
from atelier.data.quarantine import Quarantined
from atelier.data.raw_example import RawExample
from atelier.data.raw_form import form
from atelier.data.raw_source import open_source
from atelier.errors import ConfigError, DataError
from atelier.storage.manifest import Manifest
from tests.data import web_tars
from tests.servers import WebServer

LIST = "train_anno_realease_repath.jsonl"


def line(number: int, part: int = 0, **changed: Any) -> str:
    """A line of JourneyDB's: the prompt, and annotations that nobody here reads."""
    return json.dumps(
        {
            "img_path": f"./{part:03d}/{_name(number)}.jpg", "prompt": f"fox {number}, oil on canvas --ar 3:2 --v 4",
            "Task1": {"Style": []}, "Task2": {"Caption": "A painting of a fox."}, "Task3": {"Content VQA": []},
            **changed,
        }
    )  # fmt: skip


def _name(number: int) -> str:
    return f"0000b7ba-d79e-4b6c-86a6-{number:012d}"


def tgz(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two parts of three pictures each and their list, as a download lays them."""
    for part in range(2):
        pictures = {f"{part:03d}/{_name(3 * part + n)}.jpg": web_tars.picture(n) for n in range(3)}
        tgz(tmp_path / "raw" / "images" / f"{part:03d}.tgz", pictures)
    lines = [line(number, number // 3) for number in range(6)]
    tgz(tmp_path / "raw" / "annotations" / f"{LIST}.tgz", {LIST: "\n".join(lines).encode()})
    return tmp_path / "raw"


def read(manifest: Manifest, tmp_path: Path) -> tuple[dict[str, list[str]], list[Quarantined]]:
    """Captions by unit, and what is of no use."""
    source, captions, bad = open_source(manifest, tmp_path / "cache"), dict[str, list[str]](), list[Quarantined]()
    for unit in source.units:
        for item in source.fetch(unit)():
            if isinstance(item, RawExample):
                captions.setdefault(unit, []).append(item.caption)
            elif isinstance(item, Quarantined):
                bad.append(item)
    return captions, bad


def published(folder: Path) -> Manifest:
    return web_tars.manifest(folder, "captioned-raw")


def test_parts_and_prompts(folder: Path, tmp_path: Path) -> None:
    captions, bad = read(published(folder), tmp_path)
    assert bad == []
    assert captions == {
        f"images/{part:03d}.tgz": [f"fox {3 * part + n}, oil on canvas --ar 3:2 --v 4" for n in range(3)]
        for part in range(2)
    }


def test_extracted_folders_read_the_same_list(folder: Path, tmp_path: Path) -> None:
    for part in sorted((folder / "images").iterdir()):
        with tarfile.open(part) as archive:
            archive.extractall(folder / "images", filter="data")
        part.unlink()
    captions, bad = read(published(folder), tmp_path)
    assert bad == []
    assert [len(each) for each in captions.values()] == [6]


def test_bad_lines_and_pictures_are_counted(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_list, "MAX_LINE", 2000)
    lines = ["", "{not json", line(0, prompt=3), line(1), line(2, prompt="x" * 3000), "\ud800", line(3, 1), "[]"]
    whole = "\n".join(lines).encode("utf-8", "surrogatepass")
    tgz(folder / "annotations" / f"{LIST}.tgz", {"readme.txt": b"not read", LIST: whole})
    tgz(folder / "images" / "001.tgz", {
        f"001/{_name(3)}.jpg": web_tars.picture(3), f"other/{_name(3)}.jpg": web_tars.picture(3),
        f"001/{_name(4)}.jpg": web_tars.picture(3), "../a.jpg": b"x", "001/notes.txt": b"x", "001/b c.jpg": b"x",
    })  # fmt: skip
    captions, bad = read(published(folder), tmp_path)
    assert captions == {
        "images/000.tgz": ["fox 1, oil on canvas --ar 3:2 --v 4"],
        "images/001.tgz": ["fox 3, oil on canvas --ar 3:2 --v 4"],
    }
    stem = "train_anno_realease_repath-line-"
    assert {each.key.removeprefix(stem): each.reason for each in bad} == {
        "2": "the line is no JSON",
        "3": "the line has no img_path and prompt",
        "5": "the line is too long: more than 2,000 bytes",
        "6": "the line is no JSON",
        "8": "the line has no img_path and prompt",
        _name(0): "no prompt names it",
        _name(2): "no prompt names it",
        _name(3): "the image is there twice",
        _name(4): "no prompt names it",
        "../a.jpg": "its path leaves the folder",
        "001/notes.txt": "unknown kind of file",
        "b c": "unusable name: not 1 to 64 letters, digits, _ and -",
    }


def test_damaged_tars(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / "images" / "000.tgz"
    path.write_bytes(path.read_bytes()[:-200])
    tar = folder / "annotations" / f"{LIST}.tgz"
    captions, bad = read(published(folder), tmp_path)
    assert "images/001.tgz" in captions
    assert [each.key for each in bad] == ["000.tgz"]
    assert bad[0].reason.startswith("damaged tar: ")
    # A list that unpacks to more than it may.
    monkeypatch.setattr(tar_stream, "MAX_EXPANSION", 0)
    monkeypatch.setattr(tar_stream, "EXPANSION_GRACE", 2**20)
    tgz(tmp_path / "bomb" / tar.name, {LIST: (line(3, 1) + "\n").encode() + b" " * 2**22})
    (tmp_path / "again" / "images").mkdir(parents=True)
    published_folder = folder.with_name("raw-published")
    (published_folder / "images" / "001.tgz").rename(tmp_path / "again" / "images" / "001.tgz")
    (tmp_path / "bomb" / tar.name).rename(tmp_path / "again" / tar.name)
    with pytest.raises(DataError, match="a decompression bomb: more than 1,048,576 bytes"):
        read(published(tmp_path / "again"), tmp_path)


def test_a_look_reads_the_beginning_alone(folder: Path, tmp_path: Path, web: tuple[WebServer, Path]) -> None:
    """The report's pictures of a remote tar, gzipped or plain: what comes after them is not transferred."""
    server, place = web
    rest, size = os.urandom(2**20), 48
    pictures = {f"000/{_name(n)}.jpg": web_tars.picture(n) for n in range(2)}
    for path, mode in ((folder / "images" / "000.tgz", "w:gz"), (folder / "images" / "000.tar", "w:")):
        for old in (folder / "images").iterdir():
            old.unlink()
        with tarfile.open(path, mode, **({"compresslevel": 0} if mode == "w:gz" else {})) as archive:  # type: ignore[call-overload]
            for name, data in (pictures | {f"000/{n}.jpg": rest for n in range(size)}).items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        published_here = published(folder)
        shutil.move(folder.with_name("raw-published"), place / mode[2:] / "raw")
        shutil.copytree(place / mode[2:] / "raw", folder)
        manifest = replace(published_here, uri=f"{server.url}/{mode[2:]}/raw")
        source, server.sent = open_source(manifest, tmp_path / "cache"), 0
        shown = [item.caption for item in source.first(2) if isinstance(item, RawExample)]  # type: ignore[attr-defined]
        assert shown == [f"fox {n}, oil on canvas --ar 3:2 --v 4" for n in range(2)]
        assert server.sent < size * len(rest) / 3
        assert not list((tmp_path / "cache").rglob(path.name))
        examples = list(source.fetch(source.units[0])())  # read whole, it says the same
        assert [item.caption for item in examples if isinstance(item, RawExample)] == shown
        assert server.sent > size * len(rest)


def test_what_cannot_be_one_data_set(folder: Path, tmp_path: Path) -> None:
    (folder / "images" / "loose.jpg").write_bytes(web_tars.picture())
    with pytest.raises(DataError, match="tars and loose pictures"):
        open_source(published(folder))
    journey = form("captioned")
    journey.check(["images/000.tgz", f"annotations/{LIST}.tgz"])
    with pytest.raises(ConfigError, match="no images"):
        journey.check([f"annotations/{LIST}.tgz"])
    with pytest.raises(ConfigError, match=r"tars and loose pictures, e\.g\. images/000\.tgz and images/loose\.JPG"):
        journey.check(["images/000.tgz", "images/loose.JPG", f"annotations/{LIST}.tgz"])
    with pytest.raises(ConfigError, match=r"images/000\.tgz and images/000\.tar would give shards of one name"):
        journey.check(["images/000.tgz", "images/000.tar", f"annotations/{LIST}.tgz"])
    journey.check(["images/000.jpg", "images/000.png", f"annotations/{LIST}.tgz"])
    assert [journey.kind_of(name) for name in ("000.tgz", f"{LIST}.tgz", "a.jsonl", "a.tar.gz", "a.parquet")] == [
        "pictures", "captions", "captions", "pictures", None,
    ]  # fmt: skip
