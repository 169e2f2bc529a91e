"""A step's input: a published folder, read in place when local, fetched file by file when remote."""

import fnmatch
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from atelier.errors import DataError
from atelier.progress import Progress
from atelier.storage import remote_file
from atelier.storage import uri as uris
from atelier.storage.atomic import os_errors, storage_error
from atelier.storage.cache import cached_path, default_cache
from atelier.storage.manifest import FileEntry, Manifest
from atelier.storage.transfer import download


class InputFolder:
    """Reads the files of a manifest.

    Args:
        manifest: what the folder holds.
        cache: where remote files are kept; default ``$ATELIER_CACHE`` or ``.atelier/cache``.
    """

    def __init__(self, manifest: Manifest, cache: Path | None = None) -> None:
        self.manifest = manifest
        self._cache = cache or default_cache()
        self._local = uris.local_path(manifest.uri) if uris.is_local(manifest.uri) else None

    def names(self, pattern: str = "*") -> list[str]:
        """The files whose relative path fits a shell pattern, sorted."""
        return sorted(entry.path for entry in self.manifest.files if fnmatch.fnmatchcase(entry.path, pattern))

    def fetch(self, name: str) -> Path:
        """A local path of one file.

        A local folder's file is used where it lies (its size is checked); a remote one is downloaded once,
        resumably, and verified by sha256.

        Raises:
            DataError: the manifest has no such file, or the file is missing, damaged or of the wrong size.
            StorageError, ServiceError: it cannot be read.
        """
        return self._fetch(self.manifest.file(name), progress=True)

    def _fetch(self, entry: FileEntry, progress: bool) -> Path:
        if self._local is not None:
            path = self._local / entry.path
            try:
                found = path.stat().st_size
            except FileNotFoundError:
                raise DataError(
                    f"{path}: listed in its manifest but missing", "delete the folder; the next run makes it again"
                ) from None
            except OSError as error:
                raise storage_error(error, path) from error
            if found != entry.bytes:
                raise DataError(
                    f"{path}: {found:,} bytes, its manifest says {entry.bytes:,}",
                    "delete the folder; the next run makes it again",
                )
            return path
        path = cached_path(self._cache, entry)
        if path.is_file() and path.stat().st_size == entry.bytes:
            return path
        return download(uris.join(self.manifest.uri, entry.path), path, entry.sha256, progress=progress)

    @contextmanager
    def look_into(self, name: str) -> Iterator[IO[bytes]]:
        """A file object at the beginning of one file, for whoever needs only that: of a remote file that is not cached
        no more is transferred than is read, nothing is kept, and no digest is compared.

        Raises:
            As ``fetch``; reading it, StorageError and ServiceError.
        """
        entry = self.manifest.file(name)
        if self._local is None:
            path = cached_path(self._cache, entry)
            if not (path.is_file() and path.stat().st_size == entry.bytes):
                with remote_file.opened(uris.join(self.manifest.uri, entry.path)) as stream:
                    yield stream
                return
        path = self._fetch(entry, progress=False)
        with os_errors(path):
            file = path.open("rb")
        with file:
            yield file

    def forget(self, name: str) -> None:
        """Deletes the cached copy of a remote file that is no longer needed; local folders are left alone."""
        if self._local is None:
            path = cached_path(self._cache, self.manifest.file(name))
            with os_errors(path):
                path.unlink(missing_ok=True)

    def fetch_all(self, *patterns: str) -> Path:
        """A local folder with every file at its relative path (remote: hard links into the cache).

        Args:
            patterns: of the files that must be there; none means all.
        """
        wanted = {name for pattern in patterns or ("*",) for name in self.names(pattern)}
        entries = [entry for entry in self.manifest.files if entry.path in wanted]
        if self._local is not None:
            for entry in entries:
                self._fetch(entry, progress=False)
            return self._local
        folder = self._cache / "folders" / self.manifest.digest.removeprefix("sha256:")
        progress = Progress(f"fetching {self.manifest.kind}", len(entries), "files")
        with ThreadPoolExecutor(8) as pool:
            for entry, source in zip(
                entries,
                pool.map(lambda entry: self._fetch(entry, progress=False), entries),
                strict=True,
            ):
                _link(source, folder / entry.path, entry.bytes)
                progress.advance()
        return folder


def _link(source: Path, target: Path, size: int) -> None:
    if target.is_file() and target.stat().st_size == size:
        return
    with os_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        try:
            os.link(source, target)
        except OSError:  # no hard links here, or another disk
            target.symlink_to(source.resolve())
