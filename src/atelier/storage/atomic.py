"""Files that appear whole or not at all: a temporary in the same folder, fsync, one rename."""

import errno
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from atelier.errors import ConfigError, StorageError


class NotFound(StorageError):
    """There is nothing at this place (as opposed to something that cannot be read)."""


_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}


def storage_error(error: OSError, path: Path) -> StorageError:
    """What an operating system's error on ``path`` means to a person, with free space where that matters."""
    name = Path(error.filename) if isinstance(error.filename, (str, os.PathLike)) else path
    if error.errno in _FULL:
        return StorageError(
            f"{name}: {error.strerror} ({_free_space(path)})", "free some space or choose another folder"
        )
    if error.errno in _DENIED:
        return StorageError(
            f"{name}: no write or read permission ({error.strerror})",
            "choose a folder that you may write to, or change its permissions",
        )
    if error.errno == errno.ENOENT:
        return NotFound(f"{name}: there is no such file or folder", "check the path")
    return StorageError(f"{name}: {error.strerror or error}", "check the path and the disk")


def _free_space(path: Path) -> str:
    folder = path
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        return f"{shutil.disk_usage(folder).free / 2**20:,.1f} MiB free on its disk"
    except OSError:
        return "free space unknown"


@contextmanager
def os_errors(path: Path) -> Iterator[None]:
    """Turns any ``OSError`` of the block into a ``StorageError`` that names ``path``."""
    try:
        yield
    except OSError as error:
        raise storage_error(error, path) from error


def fsync_folder(folder: Path) -> None:
    """Makes renames inside ``folder`` durable; some file systems cannot, which is no error."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside ``path`` to write to; on success it replaces ``path``, else it is removed.

    Raises:
        StorageError: the disk is full, the folder cannot be written, …
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp")
    with os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        fsync_folder(path.parent)


def write_bytes(path: Path, data: bytes) -> None:
    """Replaces ``path`` with ``data`` in one rename."""
    with replace_file(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, obj: Any) -> None:
    """Replaces ``path`` with readable JSON (two spaces, sorted keys) in one rename."""
    write_bytes(path, (json.dumps(obj, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode())


def require_new(target: Path) -> None:
    """A conversion's target: nothing is there, or an empty folder.

    Raises:
        ConfigError: something is.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"{target} exists already", "choose another target, or remove it")


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A hidden folder beside ``target`` that becomes it at the end, or is removed."""
    scratch = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    with os_errors(target):
        scratch.mkdir(parents=True)
        try:
            yield scratch
            if target.exists():
                target.rmdir()  # seen to be empty before
            scratch.rename(target)
            fsync_folder(target.parent)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
