import os
from pathlib import Path

import pytest

from atelier.errors import DataError
from atelier.storage import multipart, s3
from atelier.storage import uri as uris
from atelier.storage.folder import InputFolder, OutputFolder, existing, remove
from atelier.storage.manifest import MANIFEST


@pytest.fixture
def local_place(tmp_path: Path) -> str:
    return str(tmp_path / "artifacts" / "step" / "key")


def fill(folder: Path) -> None:
    (folder / "sub").mkdir(exist_ok=True)
    (folder / "a.bin").write_bytes(b"a" * 1000)
    (folder / "sub" / "b.txt").write_text("b")
    (folder / ".scratch").mkdir(exist_ok=True)
    (folder / ".scratch" / "c").write_text("never published")


def publish_and_read(place: str, tmp_path: Path) -> None:
    work = tmp_path / "work"
    out = OutputFolder(place, work)
    fill(out.path)
    assert existing(place) is None
    manifest = out.finish("k", {"n": 1}, {"step": "s"})
    assert [entry.path for entry in manifest.files] == ["a.bin", "sub/b.txt"]
    assert existing(place) == manifest
    assert not work.exists()
    folder = InputFolder(manifest, tmp_path / "cache")
    assert folder.names("*.txt") == ["sub/b.txt"]
    assert folder.fetch("sub/b.txt").read_text() == "b"
    with folder.look_into("a.bin") as file:
        assert file.read(10) + file.read() == b"a" * 1000
    everything = folder.fetch_all()
    assert (everything / "a.bin").read_bytes() == b"a" * 1000
    with pytest.raises(DataError, match="no file"):
        folder.fetch("c")
    remove(place)
    assert existing(place) is None


def continue_after_a_kill(place: str, tmp_path: Path) -> None:
    out = OutputFolder(place, tmp_path / "work")
    fill(out.path)
    first = out.commit("a.bin")
    out.commit("sub/b.txt")
    with (out.path / ".committed.jsonl").open("a") as journal:
        journal.write('{"path": "torn')
    (out.path / "sub" / "b.txt").write_text("changed after the commit")
    again = OutputFolder(place, tmp_path / "work")
    assert again.committed() == {"a.bin": first}
    manifest = again.finish("k", {}, {})
    assert manifest.file("a.bin") == first
    assert InputFolder(manifest, tmp_path / "cache").fetch("sub/b.txt").read_text() == "changed after the commit"


def test_local_publish_and_read(local_place: str, tmp_path: Path) -> None:
    publish_and_read(local_place, tmp_path)


def test_local_continue_after_a_kill(local_place: str, tmp_path: Path) -> None:
    continue_after_a_kill(local_place, tmp_path)


def test_s3_publish_and_read(s3_bucket: str, tmp_path: Path) -> None:
    publish_and_read(s3_bucket, tmp_path)


def test_s3_continue_after_a_kill(s3_bucket: str, tmp_path: Path) -> None:
    continue_after_a_kill(s3_bucket, tmp_path)


def test_s3_large_file_goes_in_parts(s3_bucket: str, tmp_path: Path) -> None:
    out = OutputFolder(s3_bucket, tmp_path / "work", cache=tmp_path / "cache")
    (out.path / "big").write_bytes(os.urandom(multipart.PART_BYTES + 12345))
    manifest = out.finish("k", {}, {})
    kept = InputFolder(manifest, tmp_path / "cache").fetch("big")  # what was just written is read cache
    fetched = InputFolder(manifest, tmp_path / "other").fetch("big")
    assert kept.read_bytes() == fetched.read_bytes()


def test_s3_dropped_files_stay_committed(s3_bucket: str, tmp_path: Path) -> None:
    out = OutputFolder(s3_bucket, tmp_path / "work")
    fill(out.path)
    entry = out.commit("a.bin", drop_local=True)
    assert not (out.path / "a.bin").exists()
    again = OutputFolder(s3_bucket, tmp_path / "work")
    assert again.committed() == {"a.bin": entry}
    s3.client().delete_object(Bucket=s3.split(s3_bucket)[0], Key=s3.split(s3_bucket)[1] + "/a.bin")
    assert OutputFolder(s3_bucket, tmp_path / "work").committed() == {}


def test_s3_missing_object_is_a_miss(s3_bucket: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = OutputFolder(s3_bucket, tmp_path / "work")
    fill(out.path)
    out.finish("k", {}, {})
    bucket, key = s3.split(s3_bucket)
    s3.client().delete_object(Bucket=bucket, Key=key + "/a.bin")
    assert existing(s3_bucket) is None
    assert "a.bin (missing" in capsys.readouterr().err


def test_s3_flipped_bits_are_refused(s3_bucket: str, tmp_path: Path) -> None:
    out = OutputFolder(s3_bucket, tmp_path / "work")
    fill(out.path)
    manifest = out.finish("k", {}, {})
    s3.write_bytes(s3_bucket + "/a.bin", b"a" * 999 + b"b")
    with pytest.raises(DataError, match=r"a\.bin: sha256 is"):
        InputFolder(manifest, tmp_path / "cache").fetch("a.bin")
    assert not list((tmp_path / "cache").rglob("a.bin"))


def test_damaged_local_folder_is_made_again(
    local_place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for damage in ("truncate", "delete", "manifest"):
        out = OutputFolder(local_place, tmp_path / "work")
        fill(out.path)
        manifest = out.finish("k", {}, {})
        path = uris.local_path(local_place)
        if damage == "truncate":
            os.truncate(path / "a.bin", 10)
            with pytest.raises(DataError, match="10 bytes"):
                InputFolder(manifest).fetch("a.bin")
        elif damage == "delete":
            (path / "a.bin").unlink()
            with pytest.raises(DataError, match="missing"):
                InputFolder(manifest).fetch("a.bin")
        else:
            (path / MANIFEST).write_text("{")
        assert existing(local_place) is None
        assert "is damaged and is made again" in capsys.readouterr().err
    out = OutputFolder(local_place, tmp_path / "work")
    fill(out.path)
    assert out.finish("k", {}, {}) == existing(local_place)
    assert [p.name for p in uris.local_path(local_place).parent.iterdir()] == ["key"]
    assert not list(tmp_path.glob(".trash*"))


def test_links_are_not_published(local_place: str, tmp_path: Path) -> None:
    out = OutputFolder(local_place, tmp_path / "work")
    (out.path / "secret").symlink_to("/etc/hostname")
    (out.path / "a").write_text("a")
    assert [entry.path for entry in out.finish("k", {}, {}).files] == ["a"]


def test_another_machine_goes_on_from_what_is_on_s3(s3_bucket: str, tmp_path: Path) -> None:
    place = f"{s3_bucket}/step/key"
    out = OutputFolder(place, tmp_path / "first-pod")
    fill(out.path)
    (out.path / "c.bin").write_bytes(b"c" * 10)
    first = {name: out.commit(name, drop_local=True) for name in ("a.bin", "sub/b.txt", "c.bin")}
    assert OutputFolder(place, tmp_path / "too-early").committed() == {}, "the journal was not copied yet"
    out.keep()

    # One object was written again, with the same size, by somebody who never finished.
    s3.write_bytes(uris.join(place, "c.bin"), b"d" * 10)
    again = OutputFolder(place, tmp_path / "second-pod")
    assert again.committed() == {name: first[name] for name in ("a.bin", "sub/b.txt")}
    (again.path / "c.bin").write_bytes(b"e" * 10)
    manifest = again.finish("k", {}, {})
    assert [entry.path for entry in manifest.files] == ["a.bin", "c.bin", "sub/b.txt"]
    assert existing(place) == manifest
    read = InputFolder(manifest, tmp_path / "cache")
    assert read.fetch("a.bin").read_bytes() == b"a" * 1000
    assert read.fetch("c.bin").read_bytes() == b"e" * 10
    assert set(s3.sizes(place)) == {"a.bin", "sub/b.txt", "c.bin", MANIFEST}, "the copy of the journal is gone"


def test_the_journal_is_copied_now_and_then(s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from atelier.storage import folder

    monkeypatch.setattr(folder, "KEEP_S", 0.0)
    place = f"{s3_bucket}/step/key"
    out = OutputFolder(place, tmp_path / "first-pod")
    fill(out.path)
    out.commit("a.bin")
    assert set(OutputFolder(place, tmp_path / "second-pod").committed()) == {"a.bin"}
