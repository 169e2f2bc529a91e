"""Reads a batch's samples straight into the rows of one array a field: what is stacked afterwards is copied twice."""

import io
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from isal.isal_zlib import crc32

from atelier.data import bfloat16
from atelier.data.buffers import Buffers, stack
from atelier.data.sample_decoder import Flaw, Sample, SampleDecoder
from atelier.data.shard_index import ShardIndex

_ALIGNED = 64
"""Only fields of a multiple of this many bytes have a column: what lies behind them stays aligned."""


class SampleBatch(list[Sample]):
    """The samples of a batch; ``columns`` holds the fields of fixed shape as [B, *shape], row i being sample i's."""

    columns: dict[str, np.ndarray]

    def put(self, row: int, sample: Sample) -> None:
        """Gives a row another sample; a field that it has in another shape loses its column."""
        self[row] = sample
        for name, array in list(self.columns.items()):
            if name in sample and sample[name].shape == array.shape[1:] and sample[name].dtype == array.dtype:
                array[row] = sample[name]
            else:
                del self.columns[name]


def column(samples: Sequence[Sample], field: str) -> np.ndarray:
    """A field of all samples as one array [B, *shape], without a copy where a loader has read it so."""
    columns: dict[str, np.ndarray] = getattr(samples, "columns", {})
    if field in columns:
        return columns[field]
    return stack([sample[field] for sample in samples])


class Span(NamedTuple):
    """Where a sample's bytes lie: the shard's file and index, and its number in it.

    ``known`` says that its checksum and values were looked at before.
    """

    descriptor: int
    shard_index: ShardIndex
    own: int
    known: bool


class _ReadAlone(Exception):
    """Not as the project's writer leaves it; what is wrong is found out by reading the sample by itself."""


class _Part(NamedTuple):
    """Pieces that are read at once, and where in the sample's span the next part begins."""

    pieces: list[memoryview]
    next: int


class _Column(NamedTuple):
    """A field of fixed shape: its exact ``.npy`` header, dtype, shape and payload size."""

    header: bytes
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    nbytes: int


class BatchReader:
    """One read a sample, scattered: payloads of fixed shape go to their row, all else to a scratch buffer.

    What the decoder skips is passed over: the sample is then read in parts, and each part checked by itself.

    Whatever is not exactly as the project's writer leaves it is not read here but named as failed: the caller reads
    that sample by itself, and finds out what is wrong with it.

    Args:
        fields: the manifest's, name → [dtype, shape with null where a dimension varies].
        decoder: for what has no column.
    """

    def __init__(self, fields: dict[str, Sequence[Any]] | None, decoder: SampleDecoder) -> None:
        self._decoder = decoder
        self._members = frozenset(f"{name}.npy" for name in fields or {})
        self._columns = {
            f"{name}.npy": made for name, (dtype, shape) in (fields or {}).items() if (made := _column(dtype, shape))
        }
        self._fixed = sum(each.nbytes for each in self._columns.values())
        self._checks = {name: decoder.finite_check(each.dtype) for name, each in self._columns.items()}
        self._plans: dict[tuple[str, ...], _Plan] = {}
        self._buffers = Buffers()

    def read(self, keyed: Sequence[tuple[int, Span]], count: int) -> tuple[SampleBatch, list[int]]:
        """The rows that ``keyed`` names of a batch of ``count``, and the rows that must be read by themselves.

        Rows not read hold an empty sample.
        """
        whole = {name: self._take(each, count) for name, each in self._columns.items()}
        raw = {name: array.view(np.uint8).reshape(-1).data for name, array in whole.items()}
        rows = {name.removesuffix(".npy"): _read_only(array) for name, array in whole.items()}
        scratch = self._buffers.take(sum(self._rest(span) for _, span in keyed))
        view = scratch.data
        batch = SampleBatch({} for _ in range(count))
        batch.columns = {name.removesuffix(".npy"): array for name, array in whole.items()}
        failed, fresh, used = [], [], 0
        for row, span in keyed:
            try:
                batch[row], used = self._sample(span, row, raw, rows, scratch, view, used)
            except (_ReadAlone, Flaw, OSError):
                failed.append(row)
                continue
            if not span.known:
                fresh.append(row)
        failed += self._not_finite(whole, fresh)
        return batch, failed

    def _take(self, each: _Column, count: int) -> np.ndarray:
        size = each.nbytes * count
        return self._buffers.take(size)[:size].view(each.dtype).reshape(count, *each.shape)

    def _rest(self, span: Span) -> int:
        """The most scratch that a sample takes."""
        index, own = span.shard_index, span.own
        return 0 if index.unfit.item(own) else max(index.lengths.item(own) - self._fixed, 0)

    def _sample(
        self,
        span: Span,
        row: int,
        raw: dict[str, memoryview],
        rows: dict[str, np.ndarray],
        scratch: np.ndarray,
        view: memoryview,
        used: int,
    ) -> tuple[Sample, int]:
        descriptor, index, own, known = span
        plan = self._plans.get(index.members) or self._plan(index.members)
        if index.missing is not None or index.unfit.item(own):
            raise _ReadAlone
        length, headers, others = index.lengths.item(own), [], []
        pieces = list[memoryview]()
        cursor, moved, last = 0, used, 0
        parts, checked = list[_Part](), list[tuple[int, list[memoryview]]]()
        for number, ((name, made, wanted), (offset, size)) in enumerate(
            zip(plan.members, index.places[own].tolist(), strict=True)
        ):
            if offset < last:
                raise _ReadAlone
            last = offset + size
            place = offset + moved
            if not wanted:
                # What lies between the last wanted member and this one is read along: a tar header or two.
                end = used + offset - cursor
                parts.append(_Part([*pieces, view[used:end]], last))
                pieces, used, cursor, moved = [], end, last, moved - size
                continue
            if made is None:
                others.append((name, (place, size)))
                if plan.in_parts:
                    checked.append((number, [view[place : place + size]]))
                continue
            header, nbytes = made.header, made.nbytes
            payload = offset + len(header)
            if size != len(header) + nbytes:
                raise _ReadAlone
            end = used + payload - cursor
            of_row = raw[name][row * nbytes : (row + 1) * nbytes]
            pieces += [view[used:end], of_row]
            headers.append((place, header))
            if plan.in_parts:
                checked.append((number, [view[place : place + len(header)], of_row]))
            used, cursor, moved = end, payload + nbytes, moved - nbytes
        end = used + length - cursor
        pieces.append(view[used:end])
        begin = index.begins.item(own)
        if plan.in_parts:
            _read_parts(descriptor, begin, [*parts, _Part(pieces, length)])
            if not known:
                _check_members(index, own, checked)
        else:
            if os.preadv(descriptor, pieces, begin) != length:
                raise _ReadAlone
            if not known and _crc(pieces) != index.crcs.item(own):
                raise _ReadAlone
        for place, header in headers:
            if view[place : place + len(header)] != header:
                raise _ReadAlone
        sample = self._decoder.decode(scratch, others, not known)
        sample["key"] = index.key(own)
        for field, array in rows.items():
            sample[field] = array[row]
        return sample, end

    def _plan(self, members: tuple[str, ...]) -> "_Plan":
        if not self._members.issubset(members):
            raise _ReadAlone
        found = [(name, self._columns.get(name), name not in self._decoder.skipped) for name in members]
        plan = self._plans[members] = _Plan(found, not all(wanted for _, _, wanted in found))
        return plan

    def _not_finite(self, whole: dict[str, np.ndarray], fresh: list[int]) -> list[int]:
        """The rows, of those read for the first time, that hold NaN or infinity."""
        found = set()
        for name, array in whole.items():
            check = self._checks[name]
            if check is None or not fresh:
                continue
            flat = array.reshape(len(array), -1)
            if not check(flat if len(fresh) == len(flat) else flat[fresh]):
                found |= {row for row in fresh if not check(flat[row])}
        return sorted(found)


class _Plan(NamedTuple):
    """A sample's members in order: name, column where it has one, whether it is read; and whether some are not."""

    members: list[tuple[str, _Column | None, bool]]
    in_parts: bool


def _read_parts(descriptor: int, begin: int, parts: list[_Part]) -> None:
    place = begin
    for part in parts:
        if os.preadv(descriptor, part.pieces, place) != sum(len(piece) for piece in part.pieces):
            raise _ReadAlone
        place = begin + part.next


def _check_members(index: ShardIndex, own: int, members: list[tuple[int, list[memoryview]]]) -> None:
    if index.member_crcs is None:
        raise _ReadAlone  # written without: the whole sample's checksum decides
    for number, pieces in members:
        if _crc(pieces) != index.member_crcs.item(own, number):
            raise _ReadAlone


def _crc(pieces: list[memoryview]) -> int:
    crc = 0
    for piece in pieces:
        crc = crc32(piece, crc)
    return crc


def _read_only(array: np.ndarray) -> np.ndarray:
    view = array.view()
    view.flags.writeable = False
    return view


def _column(dtype: str, shape: Sequence[int | None]) -> _Column | None:
    kind = bfloat16.dtype_of(dtype)
    if any(size is None for size in shape) or kind.hasobject:
        return None
    sizes = tuple(int(size) for size in shape if size is not None)
    nbytes = int(np.prod(sizes, dtype=np.int64)) * kind.itemsize
    if nbytes == 0 or nbytes % _ALIGNED:
        return None
    header = io.BytesIO()
    described = {"descr": bfloat16.stored_name(dtype), "fortran_order": False, "shape": sizes}
    np.lib.format.write_array_header_1_0(header, described)
    return _Column(header.getvalue(), kind, sizes, nbytes)
