"""Random access to the samples of a shard folder, without extracting anything."""

import errno
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from isal.isal_zlib import crc32

from atelier.data.bad_samples import BadSample
from atelier.data.batch_reader import BatchReader, SampleBatch, Span, scatter
from atelier.data.buffers import Buffers
from atelier.data.sample_decoder import Flaw, Sample, SampleDecoder
from atelier.data.shard_index import ShardIndex
from atelier.data.shards import INDEX
from atelier.errors import DataError
from atelier.storage import uri as uris
from atelier.storage.atomic import NotFound, os_errors
from atelier.storage.cache import cached_path, default_cache
from atelier.storage.digest import sha256_file
from atelier.storage.manifest import FileEntry, Manifest
from atelier.storage.memory_file import MemoryFile
from atelier.storage.shard_cache import ShardCache

__all__ = ["OPEN_SHARDS", "Sample", "ShardDataset"]

OPEN_SHARDS = 128


class _OpenFile:
    """A file on disk that is closed when the last reader lets go: another thread may still read it."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY)
        stat = os.fstat(self.descriptor)
        self.size = stat.st_size
        self.identity = (stat.st_ino, stat.st_size, stat.st_mtime_ns)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


class _OpenShard:
    """An open shard, on disk or in memory, and its index; ``verified`` says which samples were found good before."""

    def __init__(self, path: Path, content: _OpenFile | MemoryFile, index: ShardIndex) -> None:
        self.path, self.index, self.size = path, index, content.size
        self.identity = content.identity if isinstance(content, _OpenFile) else (content.number, -1, -1)
        self.verified = np.zeros(len(index), bool)
        self._content = content  # held for as long as somebody reads it
        self.source = content.descriptor if isinstance(content, _OpenFile) else content.view


@dataclass(frozen=True)
class _BrokenShard:
    """A shard that cannot be opened: why, and its index where that could be read (it knows the keys)."""

    reason: str
    detail: str
    index: ShardIndex | None = None


class _Slot:
    """A place for a shard; its lock lets one thread open it while others open other shards."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.shard: _OpenShard | _BrokenShard | None = None


class ShardDataset:
    """The samples of a manifest made by ``preprocess``, by number.

    Nothing but the manifest is read before the first sample; a shard and its index are opened (and fetched, where
    the manifest is remote) when one of its samples is wanted. Safe for several threads. Arrays are read-only views
    of what was read.

    Checksum and values are looked at when a sample is read for the first time from a file; a file that is fetched
    again, or was changed since, is looked at again.

    Args:
        manifest: its metadata lists ``shards`` with their ``samples``, and ``fields`` (name → [dtype, shape]).
        cache: where shards of a remote manifest are kept, in its folder ``shards``; default as ``InputFolder``.
        cache_bytes: the most that fetched shards may take there, see ``ShardCache``.
        check_finite: refuse NaN and infinity.
        only: the fields that are read, of those that the manifest lists; None for all. The others' bytes are passed
            over.

    Raises:
        DataError: the manifest is of another kind or holds no samples.
    """

    def __init__(
        self,
        manifest: Manifest,
        cache: Path | None = None,
        cache_bytes: int | None = None,
        check_finite: bool = True,
        only: Collection[str] | None = None,
    ) -> None:
        shards = manifest.metadata.get("shards")
        if not isinstance(shards, list) or not sum(shard["samples"] for shard in shards):
            raise DataError(
                f"{manifest.uri}: a manifest of kind {manifest.kind!r} without samples", "give the output of preprocess"
            )
        self.manifest = manifest
        self.shard_sizes = np.array([shard["samples"] for shard in shards], np.int64)
        self.shard_starts = np.concatenate([[0], np.cumsum(self.shard_sizes)])
        self.max_open = OPEN_SHARDS
        self._names = [str(shard["name"]) for shard in shards]
        self._entries = {entry.path: entry for entry in manifest.files}
        self._local = uris.local_path(manifest.uri) if uris.is_local(manifest.uri) else None
        self._published = cache or default_cache()
        self._cache = ShardCache(self._published / "shards", cache_bytes) if self._local is None else None
        self._open: OrderedDict[int, _Slot] = OrderedDict()
        self._lock = threading.Lock()
        self._judging = threading.Lock()
        self._dropped: dict[int, _OpenShard | None] = {}
        self._verified: dict[int, tuple[tuple[int, int, int], np.ndarray]] = {}
        self._buffers = Buffers()
        fields: dict[str, Any] | None = manifest.metadata.get("fields")
        skipped = set(fields or ()) - set(only) if only is not None else set()
        if fields and skipped:
            fields = {name: said for name, said in fields.items() if name not in skipped}
        self._in_parts = bool(skipped)
        self._decoder = SampleDecoder(fields, check_finite, [f"{name}.npy" for name in skipped])
        self._batches = BatchReader(fields, self._decoder)

    def __len__(self) -> int:
        return int(self.shard_starts[-1])

    @property
    def remote(self) -> bool:
        """Whether shards have to be fetched."""
        return self._cache is not None

    @property
    def cache_bytes(self) -> int:
        """The most that fetched shards may take on this disk; 0 for a local manifest."""
        return self._cache.limit if self._cache is not None else 0

    def shard_bytes(self, number: int) -> int:
        """Size of a shard that has to be fetched; 0 for a local one."""
        entry = self._entries.get(self._names[number])
        return entry.bytes if entry is not None and self.remote else 0

    def prepare(self, number: int) -> None:
        """Opens a shard, fetching it where it is remote, so that its samples can be read at once."""
        self._shard(number)

    def release(self, number: int) -> None:
        """Lets go of a shard that is not needed for now; reading it again opens it again."""
        with self._lock:
            self._open.pop(number, None)

    def settle(self) -> None:
        """Waits until the shards that were fetched are in the cache on the disk as well."""
        if self._cache is not None:
            self._cache.settle()

    def sample(self, index: int) -> Sample:
        """Sample ``index``: ``{"key": text, "json": dict, <field>: array, …}``.

        Raises:
            IndexError: out of range.
            BadSample: it, or its shard, is damaged or missing; names shard, key and reason.
            ServiceError, StorageError: the place cannot be read at all (no answer, no permission, full disk).
        """
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        number = int(np.searchsorted(self.shard_starts, index, side="right")) - 1
        own = index - int(self.shard_starts[number])
        shard = self._shard(number)
        if isinstance(shard, _BrokenShard):
            key = shard.index.key(own) if shard.index is not None else f"number {own}"
            raise BadSample(self._place(number), key, shard.reason, shard.detail)
        try:
            try:
                span = self._span(shard, own)
            except Flaw:
                if not self._fetch_again(number, shard):
                    raise
                return self.sample(index)
            known = bool(shard.verified[own])
            sample = self._decoder.decode(span, self._members(shard.index, own), check=not known)
            shard.verified[own] = True
        except Flaw as flaw:
            raise BadSample(str(shard.path), shard.index.key(own), flaw.reason, flaw.detail) from flaw
        return {"key": shard.index.key(own)} | sample

    def batch(self, indices: Sequence[int], replace: Callable[[int, BadSample], Sample]) -> SampleBatch:
        """The samples of a batch, those of fixed shape in ``columns``.

        Args:
            indices: sample numbers.
            replace: gives the sample that stands in for the bad one of a row.

        Raises:
            As ``sample``, but for BadSample, which goes to ``replace``.
        """
        numbers = np.searchsorted(self.shard_starts, indices, side="right") - 1
        owns = (indices - self.shard_starts[numbers]).tolist()
        spans, alone = [], []
        for row, (number, own) in enumerate(zip(numbers.tolist(), owns, strict=True)):
            shard = self._shard(number) if 0 <= number < len(self._names) else None
            if isinstance(shard, _OpenShard):
                spans.append((row, shard, Span(shard.source, shard.index, own, bool(shard.verified[own]))))
            else:
                alone.append(row)
        batch, failed = self._batches.read([(row, span) for row, _, span in spans], len(indices))
        missed = {*alone, *failed}
        for row, shard, span in spans:
            if not span.known and row not in missed:
                shard.verified[span.own] = True
        for row in sorted(missed):
            try:
                sample = self.sample(int(indices[row]))
            except BadSample as bad:
                sample = replace(row, bad)
            batch.put(row, sample)
        return batch

    def _span(self, shard: _OpenShard, own: int) -> np.ndarray:
        index = shard.index
        begin, length = int(index.begins[own]), int(index.lengths[own])
        if index.unfit[own]:
            raise Flaw("index does not fit its shard", f"bytes {begin:,} to {begin + length:,} or members in them")
        span = self._buffers.take(length)[:length]
        try:
            found = scatter(shard.source, [span.data], begin)
        except OSError as error:
            if error.errno != errno.EIO:
                with os_errors(shard.path):
                    raise
            raise Flaw("read error", str(error)) from error
        if found != length:
            raise Flaw("truncated shard", f"{shard.size:,} bytes, the sample ends at {begin + length:,}")
        if not shard.verified[own] and crc32(span.data) != index.crcs[own]:
            raise Flaw("checksum", f"of bytes {begin:,} to {begin + length:,}")
        span.flags.writeable = False
        return span

    def _members(self, index: ShardIndex, own: int) -> list[tuple[str, tuple[int, int]]]:
        places = index.places[own].tolist()
        members = list(zip(index.members, places, strict=True))
        if index.missing is not None:
            missing = index.missing[own]
            members = [member for member, gone in zip(members, missing, strict=True) if not gone]
        self._decoder.check_members([name for name, _ in members])
        return members

    def _fetch_again(self, number: int, shard: _OpenShard) -> bool:
        """Whether a flaw came from a damaged cached copy, which is then dropped; looked at once a shard.

        Several threads may meet flaws of one copy at once: all of them read again from the new one.
        """
        if self._cache is None:
            return False
        with self._judging:
            if number not in self._dropped:
                entry = self._entries[self._names[number]]
                self._cache.settle(entry)
                sound = shard.path.exists() and sha256_file(shard.path) == entry.sha256
                self._dropped[number] = None if sound else shard
                if not sound:
                    with os_errors(shard.path):
                        shard.path.unlink(missing_ok=True)
                    self.release(number)
            return self._dropped[number] is shard

    def _place(self, number: int) -> str:
        return uris.join(self.manifest.uri, self._names[number])

    def _shard(self, number: int) -> _OpenShard | _BrokenShard:
        with self._lock:
            slot = self._open.get(number)
            if slot is None:
                slot = self._open[number] = _Slot()
                if len(self._open) > self.max_open:
                    self._open.popitem(last=False)
            else:
                self._open.move_to_end(number)
        with slot.lock:
            if slot.shard is None:
                slot.shard = self._open_shard(number)
            return slot.shard

    def _open_shard(self, number: int) -> _OpenShard | _BrokenShard:
        name = self._names[number]
        entry, index_entry = self._entries.get(name), self._entries.get(name + INDEX)
        if entry is None or index_entry is None:
            return _BrokenShard("missing shard", "its manifest does not list the shard or its index")
        try:
            data = self._read_index(index_entry)
        except (NotFound, DataError) as error:
            return _BrokenShard("missing index" if isinstance(error, NotFound) else "damaged index", error.what)
        try:
            index = ShardIndex(data, int(self.shard_sizes[number]), entry.bytes, self._in_parts)
        except ValueError as error:
            return _BrokenShard("damaged index", str(error))
        try:
            path, content = self._fetch_to_memory(entry) or self._open_file(entry)
        except (NotFound, DataError) as error:
            return _BrokenShard("missing shard" if isinstance(error, NotFound) else "damaged shard", error.what, index)
        shard = _OpenShard(path, content, index)
        with self._lock:
            identity, verified = self._verified.setdefault(number, (shard.identity, shard.verified))
            if identity == shard.identity:
                shard.verified = verified
            else:
                self._verified[number] = (shard.identity, shard.verified)
        return shard

    def _read_index(self, entry: FileEntry) -> bytes:
        path, file = self._open_file(entry, hashed=True)
        with os_errors(path):
            return os.pread(file.descriptor, file.size, 0)

    def _fetch_to_memory(self, entry: FileEntry) -> tuple[Path, MemoryFile] | None:
        if self._cache is None or self._made_here(entry) is not None:
            return None
        return self._cache.fetch_to_memory(uris.join(self.manifest.uri, entry.path), entry)

    def _open_file(self, entry: FileEntry, hashed: bool = False) -> tuple[Path, _OpenFile]:
        for attempt in range(3):
            path = self._path(entry, hashed)
            try:
                return path, _OpenFile(path)
            except FileNotFoundError:
                # Another process may have made room in the cache just now.
                if self._cache is None or attempt == 2:
                    with os_errors(path):
                        raise
            except OSError:
                with os_errors(path):
                    raise
        raise AssertionError("unreachable")

    def _path(self, entry: FileEntry, hashed: bool) -> Path:
        if self._cache is None:
            assert self._local is not None
            return self._local / entry.path
        made = self._made_here(entry)
        return made or self._cache.fetch(uris.join(self.manifest.uri, entry.path), entry, hashed)

    def _made_here(self, entry: FileEntry) -> Path | None:
        """What was made on this machine is still in the cache of outputs."""
        published = cached_path(self._published, entry)
        return published if published.is_file() and published.stat().st_size == entry.bytes else None
