"""Copies that are written while their content is read from memory."""

import os
import threading
from pathlib import Path

import pytest

from atelier.errors import StorageError
from atelier.storage import direct, transfer
from atelier.storage.atomic import NotFound, os_errors
from atelier.storage.cache import cached_path
from atelier.storage.digest import sha256_file
from atelier.storage.manifest import FileEntry
from atelier.storage.shard_cache import ShardCache
from atelier.storage.write_behind import WriteBehind
from tests.servers import WebServer

Web = tuple[WebServer, Path]


def test_settled_means_written(tmp_path: Path) -> None:
    go, copies = threading.Event(), WriteBehind()

    def slow() -> None:
        assert go.wait(30)
        (tmp_path / "slow").touch()

    copies.submit(tmp_path / "slow", slow)
    copies.submit(tmp_path / "quick", (tmp_path / "quick").touch)
    copies.settle(tmp_path / "quick")
    assert (tmp_path / "quick").exists()
    assert not (tmp_path / "slow").exists()
    go.set()
    copies.settle()
    assert (tmp_path / "slow").exists()
    copies.check()


def entry_of(folder: Path, name: str) -> FileEntry:
    return FileEntry(name, (folder / name).stat().st_size, sha256_file(folder / name))


def test_a_copy_is_read_before_it_is_written_and_others_wait_for_it(
    web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, folder = web
    (folder / "x.bin").write_bytes(os.urandom(100_001))
    entry, go = entry_of(folder, "x.bin"), threading.Event()
    real = transfer.write_direct

    def slow(path: Path, padded: memoryview, size: int) -> None:
        assert go.wait(30)
        real(path, padded, size)

    monkeypatch.setattr(transfer, "write_direct", slow)
    url, cache = f"{state.url}/x.bin", ShardCache(tmp_path / "cache")
    found = cache.fetch_to_memory(url, entry)
    assert found is not None
    path, memory = found
    assert bytes(memory.view) == (folder / "x.bin").read_bytes()
    assert not path.exists()
    other: list[Path] = []
    waiting = threading.Thread(target=lambda: other.append(ShardCache(tmp_path / "cache").fetch(url, entry, False)))
    waiting.start()
    go.set()
    waiting.join(30)
    assert other == [path]
    assert len(state.requests) == 1, "the other waited for the copy"
    cache.settle(entry)
    assert path.read_bytes() == bytes(memory.view)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_is_told_with_the_next_one(web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state, folder = web
    for name in ("x.bin", "y.bin"):
        (folder / name).write_bytes(os.urandom(100_001))
    real = direct._write
    monkeypatch.setattr(
        direct, "_write", lambda path, flags, *what: real(Path("/dev/full"), flags & ~os.O_DIRECT, *what)
    )
    cache = ShardCache(tmp_path / "cache")
    first, second = entry_of(folder, "x.bin"), entry_of(folder, "y.bin")
    assert cache.fetch_to_memory(f"{state.url}/x.bin", first) is not None
    cache.settle()
    with pytest.raises(StorageError, match=r"(?i)no space"):
        cache.fetch_to_memory(f"{state.url}/y.bin", second)
    assert not cached_path(cache.folder, first).exists()
    monkeypatch.undo()
    assert cache.fetch_to_memory(f"{state.url}/y.bin", second) is not None, "told once"


def test_a_cache_that_is_gone_is_not_the_next_file_that_is_gone(tmp_path: Path) -> None:
    """A reader takes NotFound for a shard that is missing, and would quarantine the wrong one."""

    def write() -> None:
        with os_errors(tmp_path / "gone"):
            (tmp_path / "gone" / "x").write_text("")

    copies = WriteBehind()
    copies.submit(tmp_path / "x", write)
    copies.settle()
    with pytest.raises(StorageError, match="a copy for the cache could not be written") as error:
        copies.check()
    assert not isinstance(error.value, NotFound)
