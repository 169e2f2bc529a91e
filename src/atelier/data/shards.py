"""Training shards: WebDataset tars with fixed bytes, and beside each an index of where every sample lies.

A shard holds samples ``<key>.<field>.npy`` (fixed dtype, never pickled) and ``<key>.json``. Its index,
``<shard>.index.json``, lists for each sample its key, the span of its members in the tar, a CRC-32 of that span,
every member's place and a CRC-32 of each, so that one read fetches one sample, or some members of it, and nothing is
extracted.
"""

import io
import json
import os
from typing import Any

import numpy as np
from isal.isal_zlib import crc32

from atelier.data import bfloat16
from atelier.data.tar_bytes import add_bytes, open_for_writing
from atelier.errors import DataError
from atelier.storage.atomic import os_errors
from atelier.storage.digest import canonical_json
from atelier.storage.folder import OutputFolder

INDEX = ".index.json"


class ShardWriter:
    """Writes one shard; it appears, and is committed to the output folder, whole or not at all.

    Args:
        out: the step's output.
        name: e.g. ``"sa_000000-0003.tar"``.
    """

    def __init__(self, out: OutputFolder, name: str) -> None:
        self._out, self._name = out, name
        # With the process's number: a killed run's worker may still be ending while the next run begins.
        self._temporary = out.path / f".partial-{os.getpid()}-{name}"
        with os_errors(self._temporary):
            for left in out.path.glob(f".partial-*-{name}"):
                left.unlink(missing_ok=True)
            self._file = self._temporary.open("w+b")
        self._tar = open_for_writing(self._file)
        self._samples: list[list[Any]] = []
        self._keys: set[str] = set()
        self.fields: dict[str, list[Any]] = {}

    def add(self, key: str, arrays: dict[str, np.ndarray], record: dict[str, Any]) -> None:
        """Appends a sample.

        Args:
            key: no dot, unique in the shard.
            arrays: by field name, e.g. ``{"latent": [4, 16, 16] fp16}``; no objects.
            record: JSON values; stored as ``<key>.json``.

        Raises:
            DataError: a bad key, the same key twice, or what ``problem`` names.
        """
        if "." in key or "/" in key or not key or key in self._keys:
            raise DataError(
                f"{self._name}: sample key {key!r} is empty, twice there, or holds a dot or slash",
                "keys must be unique file names without dots",
            )
        if problem := self.problem(arrays):
            raise DataError(f"{self._name}: sample {key}: {problem}", "this is an error of whatever made the arrays")
        self._keys.add(key)
        members = {name + ".npy": self._npy(name, array) for name, array in sorted(arrays.items())}
        members["json"] = canonical_json(record)
        begin, places = self._tar.offset, {}
        with os_errors(self._temporary):
            for name, data in members.items():
                places[name] = add_bytes(self._tar, f"{key}.{name}", data)
            crc = self._crc(begin)
        # Places are relative to the span, which the loader reads in one go.
        spans = {name: [offset - begin, size] for name, (offset, size) in places.items()}
        own = [crc32(data) for data in members.values()]
        self._samples.append([key, begin, self._tar.offset - begin, crc, spans, own])

    def problem(self, arrays: dict[str, np.ndarray]) -> str:
        """Why a sample cannot be written, or "": its fields, their dtypes and shapes are those of the shard's first
        sample (the leading dimension alone may vary, e.g. the number of phrases), and every number is finite."""
        if self.fields and arrays.keys() != self.fields.keys():
            return f"wrong fields: {', '.join(sorted(arrays))}, not {', '.join(sorted(self.fields))}"
        for name, array in sorted(arrays.items()):
            if array.dtype.hasobject:
                return f"wrong dtype: {name} holds Python objects"
            own = bfloat16.name_of(array.dtype)
            dtype, shape = self.fields.get(name, (own, list(array.shape)))
            if own != dtype:
                return f"wrong dtype: {name} is {own}, not {dtype}"
            if array.ndim != len(shape) or list(array.shape[1:]) != shape[1:]:
                return f"wrong shape: {name} is {list(array.shape)}, not {shape}"
            finite = bfloat16.is_finite(array) if own == bfloat16.NAME else _is_finite(array)
            if not finite:
                return f"non-finite {name}"
        return ""

    def _npy(self, name: str, array: np.ndarray) -> bytes:
        known = self.fields.setdefault(name, [bfloat16.name_of(array.dtype), list(array.shape)])
        # A dimension that varies is noted as null.
        known[1] = [a if a == b else None for a, b in zip(known[1], array.shape, strict=True)]
        buffer = io.BytesIO()
        # Not ascontiguousarray, which gives an array without dimensions one.
        plain = np.asarray(bfloat16.stored(array), order="C")
        np.lib.format.write_array(buffer, plain, version=(1, 0), allow_pickle=False)
        return buffer.getvalue()

    def _crc(self, begin: int) -> int:
        self._file.seek(begin)
        crc = crc32(self._file.read(self._tar.offset - begin))
        self._file.seek(self._tar.offset)
        return crc

    def close(self, extra: dict[str, Any]) -> dict[str, Any]:
        """Completes and commits the shard and its index.

        Args:
            extra: added to the index (how many raw examples it covers, what was quarantined).

        Returns:
            The index. A shard without samples has an index only.
        """
        index = {"shard": self._name, "fields": self.fields, **extra, "samples": self._samples}
        with os_errors(self._temporary):
            self._tar.close()
            self._file.close()
            if self._samples:
                self._temporary.replace(self._out.path / self._name)
            else:
                self._temporary.unlink()
        if self._samples:
            self._out.commit(self._name)
        index_path = self._out.path / (self._name + INDEX)
        with os_errors(index_path):
            index_path.write_text(json.dumps(index, separators=(",", ":"), ensure_ascii=False), encoding="utf-8")
        # The index last: a shard counts as done when its index is committed.
        self._out.commit(index_path.name)
        return index

    def abandon(self) -> None:
        """Drops the unfinished shard."""
        self._file.close()
        self._temporary.unlink(missing_ok=True)


def _is_finite(array: np.ndarray) -> bool:
    return array.dtype.kind not in "fc" or bool(np.isfinite(array).all())
