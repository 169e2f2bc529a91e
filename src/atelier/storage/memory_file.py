"""Files in memory, used again and again: fresh memory, a page cache's too, costs more than what is put in it."""

import contextlib
import itertools
import mmap
import os
import threading
from pathlib import Path

import psutil

from atelier.errors import ConfigError

LIMIT_VARIABLE = "ATELIER_SHARD_MEMORY_GB"
DEFAULT_LIMIT = 8 * 10**9
_SHARE = 16
"""Without a limit given, one part in so many of what is free."""
_STEP = 2**22
_CGROUP = Path("/sys/fs/cgroup")


class MemoryFile:
    """A file's content in memory; its place goes back to the pool when nothing refers to it any more.

    Attributes:
        view: its ``size`` bytes, writable; with any content at first.
        padded: ``view`` up to the end of its last page, for writing without the page cache.
        number: no other file of this process has the same.
    """

    _numbers = itertools.count()

    def __init__(self, pool: "MemoryPool", region: mmap.mmap, size: int) -> None:
        self._pool, self._region = pool, region
        self.size, self.number = size, next(self._numbers)
        whole = memoryview(region)
        self.view = whole[:size]
        self.padded = whole[: -(-size // mmap.PAGESIZE) * mmap.PAGESIZE]

    def __del__(self) -> None:
        # What is given back must have no finalizer of its own: the collector runs those of a whole cycle together.
        self._pool.give_back(self._region)


class MemoryPool:
    """Up to ``limit`` bytes of files in memory. Safe for several threads."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._allocated = 0
        self._free: list[mmap.mmap] = []
        self._lock = threading.Lock()

    def take(self, size: int) -> MemoryFile | None:
        """A file of ``size`` bytes; None when that would pass the limit."""
        if size == 0:
            return None
        needed = -(-size // _STEP) * _STEP
        with self._lock:
            fitting = [region for region in self._free if needed <= len(region) <= 2 * needed]
            if fitting:
                best = min(fitting, key=len)
                self._free.remove(best)
                return MemoryFile(self, best, size)
            while self._free and self._allocated + needed > self.limit:
                self._allocated -= len(self._free.pop())
            if self._allocated + needed > self.limit:
                return None
            try:
                region = mmap.mmap(-1, needed, mmap.MAP_PRIVATE)
            except OSError:  # no address space left: the caller has a way without
                return None
            self._allocated += needed
            return MemoryFile(self, region, size)

    def give_back(self, region: mmap.mmap) -> None:
        """Called by a file that ends. Takes no lock: the collector may end files at any moment, here too."""
        self._free.append(region)


_pools: dict[tuple[int, str], MemoryPool] = {}
_pools_lock = threading.Lock()


def shared_pool() -> MemoryPool:
    """This process's pool, for all data sets that it reads.

    Its limit is ``$ATELIER_SHARD_MEMORY_GB`` (0: none of this), else a sixteenth of the free memory, 8 GB at most,
    shared among the ranks of this machine.

    Raises:
        ConfigError: the variable is not a number of gigabytes.
    """
    with _pools_lock:
        named = os.environ.get(LIMIT_VARIABLE, "")
        key = (os.getpid(), named)  # a region must not be shared over a fork
        if key not in _pools:
            _pools[key] = MemoryPool(_limit(named))
        return _pools[key]


def _limit(named: str) -> int:
    if not named:
        return min(DEFAULT_LIMIT, _available() // _SHARE) // int(os.environ.get("LOCAL_WORLD_SIZE") or 1)
    try:
        gigabytes = float(named)
    except ValueError:
        gigabytes = -1.0
    if not 0 <= gigabytes < float("inf"):
        raise ConfigError(f"{LIMIT_VARIABLE}={named!r} is not a number of gigabytes", "give e.g. 4; 0 for none")
    return int(gigabytes * 10**9)


def _available() -> int:
    """Bytes that may still be taken, in a container too."""
    free = psutil.virtual_memory().available
    with contextlib.suppress(OSError, ValueError):  # no limit ("max"), or no control groups of version 2
        limit = int((_CGROUP / "memory.max").read_text())
        free = min(free, max(limit - int((_CGROUP / "memory.current").read_text()), 0))
    return int(free)
