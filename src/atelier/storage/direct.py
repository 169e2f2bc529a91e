"""Writing past the page cache: what was just received and will be read from memory needs no second copy there."""

import errno
import os
from pathlib import Path

_BLOCK = 2**22


def write_direct(path: Path, padded: memoryview, size: int) -> None:
    """Makes ``path`` a file of the first ``size`` bytes of ``padded``.

    Args:
        padded: begins at a page and has a whole number of pages.

    Raises:
        OSError: as ``open`` and ``write``; a file system that knows no direct writing is written to as usual.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    try:
        _write(path, flags | getattr(os, "O_DIRECT", 0), padded, size)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
        _write(path, flags, padded, size)


def _write(path: Path, flags: int, padded: memoryview, size: int) -> None:
    descriptor = os.open(path, flags, 0o644)
    try:
        done = 0
        while done < len(padded):
            done += os.write(descriptor, padded[done : done + _BLOCK])
        os.ftruncate(descriptor, size)
    finally:
        os.close(descriptor)
