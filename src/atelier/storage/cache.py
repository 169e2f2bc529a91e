"""The local read cache of remote files: one place a content, so equal files are fetched once."""

import os
from pathlib import Path, PurePosixPath

from atelier.storage.atomic import os_errors
from atelier.storage.digest import sha256_bytes
from atelier.storage.manifest import FileEntry
from atelier.storage.uri import is_local, local_path


def default_cache() -> Path:
    """``$ATELIER_CACHE``, else ``.atelier/cache`` in the project (``$ATELIER_PROJECT`` or here)."""
    named = os.environ.get("ATELIER_CACHE")
    return Path(named) if named else Path(os.environ.get("ATELIER_PROJECT", ".")) / ".atelier" / "cache"


def cached_path(cache: Path, entry: FileEntry) -> Path:
    """Where a file of this content lies in the cache."""
    return cache / entry.sha256[:2] / entry.sha256 / PurePosixPath(entry.path).name


def fetched(place: str) -> Path:
    """A local path of a file: a local one where it lies, a remote one fetched into the cache.

    Fetched once by its URI and, on S3, its ETag: one that was replaced there is fetched anew. Published files
    (``https``, ``hf``) are told apart by their address alone.

    Raises:
        StorageError: there is none, or it cannot be read. ServiceError: the server does not answer.
    """
    from atelier.storage.state import state_of
    from atelier.storage.transfer import download, file_name

    if is_local(place):
        path = local_path(place)
        with os_errors(path):
            path.stat()
        return path
    mark = sha256_bytes(f"{place}\n{state_of([place])}".encode())[:16]
    kept = default_cache() / "fetched" / mark / file_name(place)
    return kept if kept.is_file() else download(place, kept)
