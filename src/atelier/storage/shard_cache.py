"""A read cache of remote files with a limit: what was not used for longest goes first. Safe for several processes."""

import fcntl
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from atelier.errors import ConfigError
from atelier.storage.atomic import os_errors
from atelier.storage.cache import cached_path
from atelier.storage.manifest import FileEntry
from atelier.storage.memory_file import MemoryFile, shared_pool
from atelier.storage.transfer import download, download_sized, receive
from atelier.storage.write_behind import WriteBehind

LIMIT_VARIABLE = "ATELIER_SHARD_CACHE_GB"
DEFAULT_LIMIT = 100 * 10**9
_ABANDONED_S = 3600.0


class ShardCache:
    """Keeps fetched files in one folder, up to a number of bytes.

    A file that another process still has open can be deleted safely: its reader keeps the content. While files are
    being fetched the limit may be exceeded by what the other processes fetch at that moment.

    Args:
        folder: for this cache alone.
        limit: bytes; None: ``$ATELIER_SHARD_CACHE_GB``, else 100 GB, but no more than half of what the disk has left.

    Raises:
        ConfigError: the variable is not a positive number.
    """

    def __init__(self, folder: Path, limit: int | None = None) -> None:
        self.folder = folder
        with os_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        self.limit = _default_limit(folder) if limit is None else limit
        self._copies = WriteBehind()
        self._fetching: dict[Path, int] = {}
        self._room = 0
        self._lock = threading.Lock()

    def fetch(self, uri: str, entry: FileEntry, hashed: bool = True) -> Path:
        """A local copy of ``uri``; transfers are retried with growing pauses, see ``transfer.download``.

        Args:
            hashed: verify the sha256; without it only the size, for content that carries its own checksums.

        Raises:
            DataError: its size or sha256 is not the manifest's. NotFound: it is gone. ServiceError: no answer.
        """
        path = cached_path(self.folder, entry)
        if self._touch(path, entry.bytes):
            return path
        with self._making_room(path, entry.bytes):
            if hashed:
                return download(uri, path, entry.sha256, progress=False, durable=False)
            return download_sized(uri, path, entry.bytes)

    def fetch_to_memory(self, uri: str, entry: FileEntry) -> tuple[Path, MemoryFile] | None:
        """The content of a file in memory, and where its local copy will be: it is written meanwhile.

        Returns:
            None where a copy is there already or begun, or there is no memory for it: ``fetch`` is the way then.

        Raises:
            As ``fetch`` with ``hashed=False``; StorageError: an earlier copy could not be written.
        """
        self._copies.check()
        path = cached_path(self.folder, entry)
        if path.exists():
            return None
        memory = shared_pool().take(entry.bytes)
        if memory is None:
            return None
        with ExitStack() as held:
            held.enter_context(self._making_room(path, entry.bytes))
            write = receive(uri, path, memory)
            if write is None:
                return None
            room = held.pop_all()

        def keep() -> None:
            with room:
                write()

        self._copies.submit(path, keep)
        return path, memory

    def settle(self, entry: FileEntry | None = None) -> None:
        """Waits until the copy of a file, or of all that were fetched, is on the disk (or cannot be)."""
        self._copies.settle(None if entry is None else cached_path(self.folder, entry))

    @contextmanager
    def _making_room(self, path: Path, size: int) -> Iterator[None]:
        with self._lock:
            self._fetching[path] = size
            incoming = sum(self._fetching.values())
            self._room -= size
            look = self._room < 0
        try:
            if look:
                used = self._evict(self.limit - incoming)
                with self._lock:
                    self._room = (self.limit - incoming - used) // _sharers()
            yield
        finally:
            with self._lock:
                del self._fetching[path]

    def _touch(self, path: Path, size: int) -> bool:
        try:
            if path.stat().st_size != size:
                return False
            os.utime(path)
        except FileNotFoundError:
            return False
        return True

    def _evict(self, allowed: int) -> int:
        """Deletes the files used longest ago until ``allowed`` bytes are left; one process at a time.

        Returns:
            Bytes that are left.
        """
        with self._turn():
            found = sorted(self._files())
            used = sum(size for _, size, _ in found)
            for _, size, path in found:
                if used <= allowed:
                    break
                with suppress(FileNotFoundError), os_errors(path):
                    path.unlink()
                used -= size
        return used

    def _files(self) -> Iterator[tuple[float, int, Path]]:
        """(last use, bytes, path) of what may be deleted: whole files, and parts whose fetching nobody goes on with."""
        now = time.time()
        for folder, _, names in os.walk(self.folder):
            for name in names:
                path = Path(folder, name)
                if name.startswith(".") or name.endswith(".version"):
                    continue
                with suppress(FileNotFoundError):
                    stat = path.stat()
                    if not name.endswith(".part") or now - stat.st_mtime > _ABANDONED_S:
                        yield stat.st_mtime, stat.st_size, path

    @contextmanager
    def _turn(self) -> Iterator[None]:
        path = self.folder / ".evict.lock"
        with os_errors(path), path.open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _sharers() -> int:
    """How many take from the room that one of them has found: the ranks of this machine, and another training's."""
    return 2 * int(os.environ.get("LOCAL_WORLD_SIZE") or 1)


def _default_limit(folder: Path) -> int:
    named = os.environ.get(LIMIT_VARIABLE)
    if named:
        try:
            gigabytes = float(named)
        except ValueError:
            gigabytes = 0.0
        if not 0 < gigabytes < float("inf"):
            raise ConfigError(f"{LIMIT_VARIABLE}={named!r} is not a positive number", "give gigabytes, e.g. 200")
        return int(gigabytes * 10**9)
    return min(DEFAULT_LIMIT, shutil.disk_usage(folder).free // 2)
