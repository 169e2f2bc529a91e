"""Random access to the samples of a shard folder, without extracting anything."""

import ast
import json
import os
import threading
import zlib
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

from atelier.data.shards import INDEX
from atelier.errors import DataError
from atelier.storage.atomic import os_errors
from atelier.storage.folder import InputFolder
from atelier.storage.manifest import Manifest

Sample = dict[str, Any]
OPEN_SHARDS = 128


class _Shard:
    """An open shard: its file descriptor and index."""

    def __init__(self, path: Path, index: dict[str, Any]) -> None:
        self.path = path
        self.samples: list[list[Any]] = index["samples"]
        with os_errors(path):
            self.descriptor = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        # Closed when the last reader lets go: another thread may still read a shard that left the cache.
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


class ShardDataset:
    """The samples of a manifest made by ``preprocess``, by number.

    Safe for several threads. Arrays are read-only views of what was read.

    Args:
        manifest: its metadata lists ``shards`` with their ``samples``.
        cache: where shards of a remote manifest are kept, see ``InputFolder``.

    Raises:
        DataError: the manifest is of another kind or holds no samples.
    """

    def __init__(self, manifest: Manifest, cache: Path | None = None) -> None:
        shards = manifest.metadata.get("shards")
        if not isinstance(shards, list) or not sum(shard["samples"] for shard in shards):
            raise DataError(
                f"{manifest.uri}: a manifest of kind {manifest.kind!r} without samples", "give the output of preprocess"
            )
        self.manifest = manifest
        self.shard_sizes = np.array([shard["samples"] for shard in shards], np.int64)
        self.shard_starts = np.concatenate([[0], np.cumsum(self.shard_sizes)])
        self._names = [str(shard["name"]) for shard in shards]
        self._folder = InputFolder(manifest, cache)
        self._open: OrderedDict[int, _Shard] = OrderedDict()
        self._lock = threading.Lock()
        self._headers: dict[bytes, tuple[np.dtype[Any], tuple[int, ...]]] = {}

    def __len__(self) -> int:
        return int(self.shard_starts[-1])

    def sample(self, index: int) -> Sample:
        """Sample ``index``: ``{"key": text, "json": dict, <field>: array, …}``.

        Raises:
            IndexError: out of range. DataError: the shard is damaged there (checksum) or missing.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        number = int(np.searchsorted(self.shard_starts, index, side="right")) - 1
        shard = self._shard(number)
        key, begin, length, crc, members = shard.samples[index - int(self.shard_starts[number])]
        with os_errors(shard.path):
            span = os.pread(shard.descriptor, length, begin)
        if zlib.crc32(span) != crc:
            raise DataError(
                f"{shard.path}: sample {key} is damaged (checksum of bytes {begin:,} to {begin + length:,})",
                "delete the folder of this shard; the next run makes it again",
            )
        sample: Sample = {"key": key}
        for name, (offset, size) in members.items():
            if name == "json":
                sample["json"] = json.loads(span[offset : offset + size])
            else:
                sample[name.removesuffix(".npy")] = self._array(span, offset)
        return sample

    def _array(self, span: bytes, offset: int) -> np.ndarray:
        """The array of an ``.npy`` (version 1.0) that begins at ``offset``; headers are parsed once each."""
        begin = offset + 10 + int.from_bytes(span[offset + 8 : offset + 10], "little")
        header = span[offset + 10 : begin]
        known = self._headers.get(header)
        if known is None:
            fields = ast.literal_eval(header.decode("latin-1"))
            known = self._headers[header] = (np.dtype(fields["descr"]), tuple(fields["shape"]))
        dtype, shape = known
        return np.frombuffer(span, dtype, count=int(np.prod(shape)), offset=begin).reshape(shape)

    def _shard(self, number: int) -> _Shard:
        with self._lock:
            shard = self._open.get(number)
            if shard is None:
                name = self._names[number]
                index = self._folder.fetch(name + INDEX)
                shard = _Shard(self._folder.fetch(name), _read_index(index))
                self._open[number] = shard
                if len(self._open) > OPEN_SHARDS:
                    self._open.popitem(last=False)
            else:
                self._open.move_to_end(number)
            return shard


def _read_index(path: Path) -> dict[str, Any]:
    try:
        with os_errors(path):
            index = json.loads(path.read_bytes())
        if not isinstance(index["samples"], list):
            raise TypeError("samples is no list")
        return dict(index)
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: not a shard index ({error})", "delete the folder of this shard; the next run makes it again"
        ) from error
