"""Places: ``file://`` and bare paths, ``s3://``, ``https://``, ``http://``, ``hf://``."""

import os
import time
import uuid
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from atelier.errors import ConfigError, StorageError
from atelier.storage import s3
from atelier.storage.atomic import os_errors

SCHEMES = ("file", "s3", "http", "https", "hf")


def scheme(uri: str) -> str:
    """The URI's scheme; a bare path has ``"file"``.

    Raises:
        ConfigError: a scheme that Atelier does not know.
    """
    if "://" not in uri:
        return "file"
    name = uri.split("://", 1)[0].lower()
    if name not in SCHEMES:
        raise ConfigError(f"{uri}: unknown scheme {name}://", f"use one of {', '.join(SCHEMES)} or a path")
    return name


def is_local(uri: str) -> bool:
    """Whether ``uri`` is ``file://`` or a bare path."""
    return scheme(uri) == "file"


def local_path(uri: str) -> Path:
    """The path of a local URI.

    Raises:
        ConfigError: ``uri`` is remote.
    """
    if not is_local(uri):
        raise ConfigError(f"{uri} is not a local path", "use file:// or a path")
    if "://" not in uri:
        return Path(uri).expanduser()
    parts = urlsplit(uri)
    if parts.netloc not in ("", "localhost"):
        raise ConfigError(f"{uri}: file:// with a host ({parts.netloc})", "write file:///absolute/path")
    return Path(unquote(parts.path))


def join(uri: str, *parts: str) -> str:
    """``uri/part/part``; works for paths and URIs alike."""
    return "/".join([uri.rstrip("/") or "/", *(part.strip("/") for part in parts)])


def filesystem(uri: str) -> tuple[Any, str]:
    """An fsspec file system for ``uri`` and the path inside it (S3: AWS_* variables, endpoint, timeouts, retries)."""
    import fsspec

    if is_local(uri):
        return fsspec.filesystem("file"), str(local_path(uri))
    if scheme(uri) == "s3":
        bucket, key = s3.split(uri)
        return s3.fsspec_filesystem(), f"{bucket}/{key}"
    return fsspec.core.url_to_fs(uri)  # type: ignore[no-any-return]


def read_bytes(uri: str) -> bytes:
    """A small file's content, from a path or S3.

    Raises:
        NotFound: it is not there. StorageError: it cannot be read.
        ServiceError: the server does not answer or refuses.
    """
    if is_local(uri):
        path = local_path(uri)
        with os_errors(path):
            return path.read_bytes()
    if scheme(uri) == "s3":
        return s3.read_bytes(uri)
    raise ConfigError(f"{uri}: only local and s3:// places hold artifacts", "download it first")


def read_text(uri: str) -> str:
    """``read_bytes`` decoded as UTF-8.

    Raises:
        StorageError: also when the bytes are not UTF-8.
    """
    try:
        return read_bytes(uri).decode()
    except UnicodeDecodeError as error:
        raise StorageError(f"{uri}: not UTF-8 text ({error})", "delete it; the next run makes it again") from error


def check_writable(uri: str) -> None:
    """Tries whether artifacts can be written under ``uri``; leaves nothing behind.

    Raises:
        StorageError: no such bucket, no permission, full disk. ServiceError: dead endpoint or refused
            credentials; both within ten seconds. ConfigError: a scheme that cannot be written.
    """
    if is_local(uri):
        folder = local_path(uri)
        with os_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            probe = folder / f".write-check-{os.getpid()}-{uuid.uuid4().hex[:8]}"
            try:
                probe.write_bytes(str(time.time()).encode())
            finally:
                probe.unlink(missing_ok=True)
    elif scheme(uri) == "s3":
        s3.check_writable(uri)
    else:
        raise ConfigError(f"{uri}: artifacts cannot be written to {scheme(uri)}://", "use a path or s3://bucket/prefix")
