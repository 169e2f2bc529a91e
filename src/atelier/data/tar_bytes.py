"""Tars whose bytes depend on nothing but names and contents."""

import tarfile
from typing import IO


def add_bytes(tar: tarfile.TarFile, name: str, data: bytes) -> tuple[int, int]:
    """Appends a regular file: time, owner and group 0, mode 0644.

    Returns:
        (offset, size) of its content in the tar.
    """
    import io

    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = len(data), 0o644, 0
    tar.addfile(info, io.BytesIO(data))
    padding = -len(data) % tarfile.BLOCKSIZE
    return tar.offset - padding - len(data), len(data)


def open_for_writing(file: IO[bytes]) -> tarfile.TarFile:
    """An uncompressed tar in the POSIX ustar form over a binary file."""
    return tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT)
