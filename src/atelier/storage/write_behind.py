"""Files that are written to a disk while their content, in memory, is in use already."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

from atelier.errors import AtelierError, StorageError

_THREADS = 4


class WriteBehind:
    """Runs what writes a file in threads of its own. Safe for several threads; what is begun ends before the process.

    A failed write (a full disk) is told to whoever hands over the next one: its reader has the content in memory, but a
    training that goes on as if there were a cache would fetch everything anew in every epoch, in silence.
    """

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="write-behind")
        self._pending: dict[Path, Future[None]] = {}
        self._failed: BaseException | None = None
        self._lock = threading.Lock()

    def check(self) -> None:
        """Raises the error of a write that failed since the last call.

        Raises:
            StorageError: of no narrower kind: a cache that is gone (NotFound) is not the caller's file that is gone.
        """
        with self._lock:
            failed, self._failed = self._failed, None
        if isinstance(failed, AtelierError):
            raise StorageError(f"a copy for the cache could not be written: {failed.what}", failed.fix) from failed
        if failed is not None:
            raise failed

    def submit(self, path: Path, write: Callable[[], None]) -> None:
        """Has ``write`` make ``path``, soon."""
        with self._lock:
            self._pending[path] = self._threads.submit(self._write, path, write)

    def settle(self, path: Path | None = None) -> None:
        """Waits until ``path``, or everything that was handed over, is written or has failed."""
        with self._lock:
            pending = [future for each, future in self._pending.items() if path in (None, each)]
        wait(pending)

    def _write(self, path: Path, write: Callable[[], None]) -> None:
        try:
            write()
        except BaseException as error:  # a thread's: nobody else would see it
            with self._lock:
                self._failed = self._failed or error
        finally:
            with self._lock:  # taken before the file is handed over, so it is known here
                self._pending.pop(path, None)
