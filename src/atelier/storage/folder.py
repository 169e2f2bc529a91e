"""A step's output while it is being made: files committed one at a time, the folder published whole."""

import errno
import json
import os
import shutil
import sys
import threading
import time
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from atelier.errors import DataError, StorageError
from atelier.storage import s3
from atelier.storage import uri as uris
from atelier.storage.atomic import NotFound, fsync_folder, os_errors, write_bytes
from atelier.storage.cache import cached_path
from atelier.storage.digest import sha256_file
from atelier.storage.inputs import InputFolder
from atelier.storage.manifest import MANIFEST, FileEntry, Manifest, sorted_entries

__all__ = ["InputFolder", "OutputFolder", "existing", "remove"]

JOURNAL = ".committed.jsonl"
#: Seconds between two copies of the journal to S3, and how many times longer than such a copy takes they are apart.
KEEP_S, KEEP_SHARE = 30.0, 20.0


class OutputFolder:
    """Where a step writes. Nothing is visible at ``uri`` (on S3: no manifest is) before ``finish``.

    On S3 the list of finished files is copied there now and then (``keep``): another machine, or a pod whose disk is
    new, goes on from it.

    Names that start with "." are scratch: kept over a kill, never published.

    Args:
        uri: the final folder; a path, ``file://`` or ``s3://``.
        work: a local folder that survives a kill, so that the next try continues; for a local ``uri`` it should
            lie on the same disk, because finishing renames it.
        cache: on S3, finished files become read cache there instead of being deleted.
    """

    def __init__(self, uri: str, work: Path, cache: Path | None = None) -> None:
        self.uri = uri.rstrip("/")
        self.path = work
        self._remote = not uris.is_local(uri)
        self._cache = cache
        with os_errors(work):
            work.mkdir(parents=True, exist_ok=True)
        self._journal = work / JOURNAL
        self._keeping = threading.Lock()
        self._kept, self._pause = time.monotonic(), KEEP_S
        if self._remote and not self._journal.exists():
            self._recover()
        self._committed = self._read_journal()

    def commit(self, name: str, drop_local: bool = False) -> FileEntry:
        """Marks one finished file: hashes it, on S3 uploads it at once, and notes it in the journal.

        Safe to call from several threads for different files.

        Args:
            name: path relative to the folder.
            drop_local: on S3, delete the local copy after the upload.

        Raises:
            StorageError, ServiceError: the file cannot be read, or not be stored.
        """
        path = self.path / name
        with os_errors(path):
            with path.open("rb") as file:
                os.fsync(file.fileno())
            stat = path.stat()
            entry = FileEntry(name, stat.st_size, sha256_file(path))
        if self._remote:
            s3.upload(path, uris.join(self.uri, name))
        line = json.dumps({"path": name, "bytes": entry.bytes, "sha256": entry.sha256, "mtime_ns": stat.st_mtime_ns})
        with os_errors(self._journal), self._journal.open("a", encoding="utf-8") as journal:
            journal.write(line + "\n")  # one short write in append mode: lines of threads do not mix
        self._committed[name] = entry
        if self._remote and drop_local:
            path.unlink()
        if self._remote and time.monotonic() - self._kept > self._pause:
            self.keep()
        return entry

    def keep(self) -> None:
        """Copies the journal to S3, with each object's ETag; nothing on a local place.

        Raises:
            StorageError, ServiceError: it cannot be stored.
        """
        if not self._remote or not self._keeping.acquire(blocking=False):
            return
        try:
            began = time.monotonic()
            stored = s3.versions(self.uri, deep=True)
            lines = [
                json.dumps(
                    {"path": each.path, "bytes": each.bytes, "sha256": each.sha256, "etag": stored[each.path][1]}
                )
                for each in self._read_journal().values()
                if stored.get(each.path, (-1, ""))[0] == each.bytes
            ]
            if lines:
                s3.write_bytes(uris.join(self.uri, JOURNAL), "\n".join(lines).encode())
            self._kept = time.monotonic()
            self._pause = max(KEEP_S, KEEP_SHARE * (self._kept - began))
        finally:
            self._keeping.release()

    def _recover(self) -> None:
        """Begins with what another machine had finished: objects that are still the very ones of its journal."""
        try:
            text = uris.read_text(uris.join(self.uri, JOURNAL))
        except NotFound:
            return
        stored = s3.versions(self.uri, deep=True)
        found = []
        for line in text.splitlines():
            try:
                record = json.loads(line)
                if stored.get(record["path"]) == (record["bytes"], record["etag"]):
                    found.append(json.dumps({**record, "mtime_ns": 0}))
            except (ValueError, KeyError, TypeError):
                continue
        if found:
            with os_errors(self._journal), self._journal.open("a", encoding="utf-8") as journal:
                journal.write("\n".join(found) + "\n")

    def adopt(self, entries: Iterable[FileEntry]) -> None:
        """Takes over files that other machines have put at ``uri`` themselves (S3 only); nothing is copied.

        Raises:
            StorageError: one is not there, or of another size.
        """
        stored = s3.sizes(self.uri)
        for entry in entries:
            if stored.get(entry.path) != entry.bytes:
                found = stored.get(entry.path, "no")
                raise StorageError(
                    f"{self.uri}/{entry.path}: {found} bytes there, {entry.bytes} were delivered",
                    "run again: it is made anew from the last checkpoint",
                )
            self._committed[entry.path] = entry

    def committed(self) -> dict[str, FileEntry]:
        """Files finished so far, by this process or one before it; entries that are no longer true are left out."""
        return dict(self._committed)

    def refresh(self) -> None:
        """Takes note of what other processes, writing into the same work folder, have committed."""
        self._committed = self._read_journal()

    def _read_journal(self) -> dict[str, FileEntry]:
        if not self._journal.exists():
            return {}
        stored = s3.sizes(self.uri) if self._remote else {}
        found: dict[str, FileEntry] = {}
        for line in self._journal.read_text(encoding="utf-8").splitlines():
            try:
                record = json.loads(line)
                entry = FileEntry(record["path"], record["bytes"], record["sha256"])
                modified = record["mtime_ns"]
            except (ValueError, KeyError, TypeError):
                continue  # a line torn by a kill; its file is committed again
            found.pop(entry.path, None)
            local = self.path / entry.path
            same = local.is_file() and (local.stat().st_size, local.stat().st_mtime_ns) == (entry.bytes, modified)
            if self._remote:
                if stored.get(entry.path) == entry.bytes and (same or not local.exists()):
                    found[entry.path] = entry
            elif same:
                found[entry.path] = entry
        return found

    def finish(
        self, kind: str, metadata: dict[str, Any], made_by: dict[str, Any], drop_local: bool = False
    ) -> Manifest:
        """Commits what is not yet committed, writes the manifest last and makes the folder visible whole.

        Args:
            kind, metadata, made_by: see ``Manifest``.
            drop_local: on S3, keep nothing here, not even as read cache.
        """
        done = self.committed()
        for name in self._local_files():
            if name not in done:
                self.commit(name)
        manifest = Manifest(kind, self.uri, sorted_entries(self._committed.values()), metadata, made_by)
        if self._remote:
            self._to_cache(manifest, drop_local)
            s3.write_bytes(uris.join(self.uri, MANIFEST), manifest.to_json().encode())
            s3.delete(uris.join(self.uri, JOURNAL))
            shutil.rmtree(self.path, ignore_errors=True)
        else:
            write_bytes(self.path / MANIFEST, manifest.to_json().encode())
            self._publish_local(uris.local_path(self.uri))
        return manifest

    def _local_files(self) -> list[str]:
        """Regular files to publish, relative; links and scratch are left out."""
        names = []
        for folder, folders, files in os.walk(self.path):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for file in sorted(files):
                path = Path(folder, file)
                relative = path.relative_to(self.path).as_posix()
                if not file.startswith(".") and not path.is_symlink() and relative != MANIFEST:
                    names.append(relative)
        return names

    def _publish_local(self, final: Path) -> None:
        trash = self.path.with_name(f".trash-{self.path.name}-{uuid.uuid4().hex[:8]}")
        with os_errors(final):
            final.parent.mkdir(parents=True, exist_ok=True)
            trash.mkdir()
            try:
                for scratch in self.path.glob(".*"):
                    scratch.rename(trash / scratch.name)
                if final.exists():  # a damaged folder that `existing` did not accept
                    _move(final, trash / "replaced")
                _move(self.path, final)
                fsync_folder(final.parent)
            finally:
                shutil.rmtree(trash, ignore_errors=True)

    def _to_cache(self, manifest: Manifest, drop_local: bool) -> None:
        for entry in manifest.files:
            local = self.path / entry.path
            if self._cache is not None and not drop_local and local.is_file():
                target = cached_path(self._cache, entry)
                target.parent.mkdir(parents=True, exist_ok=True)
                _move(local, target)


def _move(source: Path, target: Path) -> None:
    """Renames; over the border of a disk copies to a hidden neighbour first, so that ``target`` appears whole."""
    try:
        source.rename(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        beside = target.with_name(f".moving-{target.name}-{uuid.uuid4().hex[:8]}")
        if source.is_dir():
            shutil.copytree(source, beside)
        else:
            shutil.copy2(source, beside)
        beside.rename(target)
        if source.is_dir():
            shutil.rmtree(source)
        else:
            source.unlink()


def existing(uri: str) -> Manifest | None:
    """The manifest of a complete folder: it parses, and every file exists with its size. Otherwise None.

    A folder that is there but damaged is named on stderr and treated as missing.

    Raises:
        ServiceError: S3 does not answer (that is no miss).
    """
    try:
        manifest = Manifest.load(uri)
    except NotFound:
        return None
    except DataError as error:
        _warn_damaged(uri, error.what)
        return None
    if uris.is_local(uri):
        folder = uris.local_path(uri)
        found = {entry.path: path.stat().st_size for entry in manifest.files if (path := folder / entry.path).is_file()}
    else:
        found = s3.sizes(uri)
    wrong = [entry for entry in manifest.files if found.get(entry.path) != entry.bytes]
    if wrong:
        has = found.get(wrong[0].path)
        _warn_damaged(
            uri,
            f"{len(wrong)} of {len(manifest.files)} files are missing or have another size, e.g. "
            f"{wrong[0].path} ({'missing' if has is None else f'{has:,} bytes'}, "
            f"should be {wrong[0].bytes:,})",
        )
        return None
    return manifest


def _warn_damaged(uri: str, why: str) -> None:
    print(f"warning: {uri} is damaged and is made again: {why}", file=sys.stderr, flush=True)


def remove(uri: str) -> None:
    """Deletes a published folder, manifest first, so that a half-deleted one is a miss; silent when it is gone.

    Raises:
        StorageError, ServiceError: it cannot be deleted.
    """
    if uris.is_local(uri):
        folder = uris.local_path(uri)
        with os_errors(folder):
            (folder / MANIFEST).unlink(missing_ok=True)
            if folder.exists():
                shutil.rmtree(folder)
    elif uris.scheme(uri) == "s3":
        s3.delete_prefix(uri, first=MANIFEST)
    else:
        raise StorageError(f"{uri}: cannot be deleted", "only paths and s3:// places hold artifacts")
