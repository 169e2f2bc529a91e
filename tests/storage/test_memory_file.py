import errno
import gc
import os
from pathlib import Path

import pytest

from atelier.errors import ConfigError, DataError, ServiceError, StorageError
from atelier.storage import direct, memory_file, transfer
from atelier.storage.memory_file import MemoryFile, MemoryPool, shared_pool
from atelier.storage.transfer import receive
from tests.servers import WebServer

Web = tuple[WebServer, Path]
DATA = os.urandom(3 * 2**20 + 17)


def take(pool: MemoryPool, size: int) -> MemoryFile:
    memory = pool.take(size)
    assert memory is not None
    return memory


def through(url: str, dest: Path, memory: MemoryFile) -> bool:
    """Received and written; False where there is a copy."""
    write = receive(url, dest, memory)
    if write is not None:
        assert not dest.exists()
        write()
    return write is not None


def content(memory: MemoryFile) -> bytes:
    return bytes(memory.view)


def test_what_is_let_go_of_is_used_again_and_the_limit_holds() -> None:
    pool = MemoryPool(10 * 2**20)
    first, second = take(pool, 3 * 2**20), take(pool, 2**20)
    first.view[:5] = b"first"
    number = first.number
    assert pool.take(2**20) is None
    assert bytes(second.view[:5]) != b"first"
    del first
    gc.collect()
    again = take(pool, 2**20 + 5)
    assert bytes(again.view[:5]) == b"first", "the same place"
    assert again.number != number, "what is known of the one does not hold for the other"
    del again, second
    gc.collect()
    assert pool.take(9 * 2**20) is None, "rounded up it is more than the limit"
    assert take(pool, 8 * 2**20).size == 8 * 2**20, "the small ones made room"


def test_a_file_that_ends_in_a_cycle_gives_back_a_sound_place() -> None:
    # As when a traceback holds it: the collector then finalizes all of the cycle before it frees any of it.
    pool = MemoryPool(2**22)
    ring: list[object] = [take(pool, len(DATA))]
    ring.append(ring)
    del ring
    gc.collect()
    memory = take(pool, len(DATA))
    memory.view[:] = DATA
    assert content(memory) == DATA


def test_what_it_holds() -> None:
    memory = take(MemoryPool(2**23), len(DATA))
    memory.view[:] = DATA
    assert content(memory) == DATA
    assert len(memory.padded) % 4096 == 0
    assert len(memory.view) == len(DATA) <= len(memory.padded)


@pytest.mark.parametrize("named", ["many", "-1", "inf"])
def test_a_limit_that_is_none_is_refused(named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATELIER_SHARD_MEMORY_GB", named)
    with pytest.raises(ConfigError, match="ATELIER_SHARD_MEMORY_GB"):
        shared_pool()


def test_the_limit_is_shared_among_the_ranks_and_keeps_to_the_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "memory.max").write_text("1600000000\n")
    (tmp_path / "memory.current").write_text("0\n")
    monkeypatch.setattr(memory_file, "_CGROUP", tmp_path)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert memory_file._limit("") == 25_000_000
    (tmp_path / "memory.max").write_text("max\n")
    assert memory_file._limit("") > 25_000_000
    assert memory_file._limit("0") == 0
    assert MemoryPool(0).take(1) is None


def test_a_broken_transfer_goes_on_in_memory(web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer.time, "sleep", lambda seconds: None)
    state, folder = web
    (folder / "x.bin").write_bytes(DATA)
    for ranges in (True, False):
        state.ranges, state.drops = ranges, 3
        state.requests.clear()
        memory, dest = take(MemoryPool(2**23), len(DATA)), tmp_path / f"ranges-{ranges}" / "x"
        assert through(f"{state.url}/x.bin", dest, memory)
        assert content(memory) == DATA == dest.read_bytes()
        assert [path.name for path in dest.parent.iterdir()] == ["x"]
        assert len(state.requests) == 4
        assert not through(f"{state.url}/x.bin", dest, memory), "it is there"


def test_another_size_and_a_dead_server_leave_nothing(
    web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer.time, "sleep", lambda seconds: None)
    state, folder = web
    (folder / "x.bin").write_bytes(DATA)
    with pytest.raises(DataError, match=rf"{len(DATA):,} bytes, its manifest says {len(DATA) + 1:,}"):
        through(f"{state.url}/x.bin", tmp_path / "x", take(MemoryPool(2**23), len(DATA) + 1))
    monkeypatch.setattr(transfer, "ATTEMPTS", 2)
    with pytest.raises(ServiceError, match="does not answer"):
        through("http://127.0.0.1:9/x.bin", tmp_path / "x", take(MemoryPool(2**23), len(DATA)))
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("x")]


def test_an_earlier_calls_part_is_left_to_the_way_that_can_go_on(web: Web, tmp_path: Path) -> None:
    state, folder = web
    (folder / "x.bin").write_bytes(DATA)
    (tmp_path / "x.part").write_bytes(DATA[:100])
    assert not through(f"{state.url}/x.bin", tmp_path / "x", take(MemoryPool(2**23), len(DATA)))
    assert state.requests == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_is_named_and_leaves_no_part(web: Web, tmp_path: Path) -> None:
    state, folder = web
    (folder / "x.bin").write_bytes(DATA)
    real = direct._write

    def full(path: Path, flags: int, padded: memoryview, size: int) -> None:
        path.write_bytes(b"begun")
        real(Path("/dev/full"), flags & ~os.O_DIRECT, padded, size)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(direct, "_write", full)
        with pytest.raises(StorageError, match=r"(?i)no space"):
            through(f"{state.url}/x.bin", tmp_path / "x", take(MemoryPool(2**23), len(DATA)))
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("x")]


@pytest.mark.parametrize("size", [1, 4096, 4097, 3 * 2**20 + 17])
@pytest.mark.parametrize("refused", [False, True])
def test_written_past_the_page_cache(size: int, refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = take(MemoryPool(2**23), size)
    memory.view[:] = DATA[:size]
    real = os.open

    def no_direct(path: Path, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(path, flags, mode)

    if refused:
        monkeypatch.setattr(direct.os, "open", no_direct)
    direct.write_direct(tmp_path / "x", memory.padded, size)
    assert (tmp_path / "x").read_bytes() == DATA[:size]
