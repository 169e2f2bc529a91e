"""The local read cache of remote files: one place a content, so equal files are fetched once."""

import os
from pathlib import Path, PurePosixPath

from atelier.storage.manifest import FileEntry


def default_cache() -> Path:
    """``$ATELIER_CACHE``, else ``.atelier/cache`` in the project (``$ATELIER_PROJECT`` or here)."""
    named = os.environ.get("ATELIER_CACHE")
    return Path(named) if named else Path(os.environ.get("ATELIER_PROJECT", ".")) / ".atelier" / "cache"


def cached_path(cache: Path, entry: FileEntry) -> Path:
    """Where a file of this content lies in the cache."""
    return cache / entry.sha256[:2] / entry.sha256 / PurePosixPath(entry.path).name
