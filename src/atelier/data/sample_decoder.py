"""A sample's bytes to its arrays, checked against what the manifest promises."""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import orjson

from atelier.data import bfloat16, npy_header

Sample = dict[str, Any]
_HEADER = 128  # bytes of an .npy header, nearly always
_FIRST_INFINITE = {2: 0x7C00, 4: 0x7F80_0000, 8: 0x7FF0_0000_0000_0000}


class Flaw(Exception):
    """Why a sample cannot be used: a short fixed ``reason`` and the ``detail`` that was found."""

    def __init__(self, reason: str, detail: str) -> None:
        self.reason, self.detail = reason, detail
        super().__init__(f"{reason} ({detail})")


@dataclass(frozen=True)
class _Layout:
    """What an array's header says."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    order: str
    count: int
    nbytes: int
    is_finite: Callable[[np.ndarray], bool] | None


class SampleDecoder:
    """Decodes spans of shards; arrays are views of the span.

    Args:
        fields: name → [dtype, shape with null where a dimension varies], from the manifest; None: unknown.
        check_finite: refuse NaN and infinity in floating-point fields.
        skipped: members that are passed over.
    """

    def __init__(
        self, fields: Mapping[str, Sequence[Any]] | None, check_finite: bool = True, skipped: Collection[str] = ()
    ) -> None:
        self._bfloat16 = {name for name, (dtype, _) in (fields or {}).items() if dtype == bfloat16.NAME}
        self._fields = fields and {name: (bfloat16.stored_name(said[0]), said[1]) for name, said in fields.items()}
        self._check_finite = check_finite
        self.skipped = frozenset(skipped)
        self._layouts: dict[tuple[str, bytes], _Layout] = {}

    def finite_check(self, dtype: np.dtype[Any]) -> Callable[[np.ndarray], bool] | None:
        """What tells whether an array of this dtype is finite; None where that is not asked, or always so."""
        return _finite_check(dtype) if self._check_finite else None

    def check_members(self, members: Iterable[str]) -> None:
        """Whether all fields are there.

        Raises:
            Flaw: names the first that is not.
        """
        if self._fields is not None:
            there = set(members)
            for name in self._fields:
                if f"{name}.npy" not in there:
                    raise Flaw("missing member", f"{name}.npy")

    def decode(self, span: np.ndarray, members: Iterable[tuple[str, tuple[int, int]]], check: bool = True) -> Sample:
        """``{"json": dict, <field>: array, …}``.

        Args:
            span: uint8, the sample's bytes in the tar.
            members: (name, (offset, size)) of each.
            check: look for values that are not finite.

        Raises:
            Flaw: wrong dtype or shape, not finite, not an array, damaged json.
        """
        sample: Sample = {}
        for name, (offset, size) in members:
            if name == "json":
                try:
                    sample["json"] = orjson.loads(span.data[offset : offset + size])
                except ValueError as error:
                    raise Flaw("damaged json", str(error)) from error
            elif name not in self.skipped:
                field = name.removesuffix(".npy")
                sample[field] = self._array(field, span, offset, size, check)
        return sample

    def _array(self, field: str, span: np.ndarray, offset: int, size: int, check: bool) -> np.ndarray:
        head = span[offset : offset + _HEADER].tobytes()
        length = 10 + int.from_bytes(head[8:10], "little")
        header = head[:length] if length <= _HEADER else span[offset : offset + length].tobytes()
        layout = self._layouts.get((field, header))
        if layout is None:
            layout = self._layouts[field, header] = self._meant(field, self._layout(field, header))
        if length + layout.nbytes != size:
            raise Flaw("not an array", f"{field}: {size:,} bytes, its header says {length + layout.nbytes:,}")
        flat = span[offset + length : offset + size].view(layout.dtype)
        if check and layout.is_finite is not None and not layout.is_finite(flat):
            raise Flaw("not finite", f"{field} holds {_not_finite(flat):,} NaN or infinite values")
        return flat.reshape(layout.shape, order=layout.order)  # type: ignore[call-overload]

    def _meant(self, field: str, layout: _Layout) -> _Layout:
        """What is stored under another name, by its own."""
        if field not in self._bfloat16:
            return layout
        check = self.finite_check(bfloat16.DTYPE) if layout.count else None
        return replace(layout, dtype=bfloat16.DTYPE, is_finite=check)

    def _layout(self, field: str, header: bytes) -> _Layout:
        """Parses a header (``.npy`` version 1.0); done once for each that differs."""
        try:
            descr, fortran, shape = npy_header.parse(header)
        except ValueError as error:
            raise Flaw("not an array", f"{field}: {error}") from error
        dtype = np.dtype(descr)
        if self._fields is not None:
            expected = self._fields.get(field)
            if expected is not None and not _fits(descr, shape, expected):
                raise Flaw("wrong dtype or shape", f"{field} is {descr} {list(shape)}, not {list(expected)}")
        count = math.prod(shape)
        check = self.finite_check(dtype) if count else None
        return _Layout(dtype, shape, "F" if fortran else "C", count, count * dtype.itemsize, check)


def _fits(descr: str, shape: tuple[int, ...], expected: Sequence[Any]) -> bool:
    dtype, sizes = expected
    return (
        descr == dtype
        and len(shape) == len(sizes)
        and all(wanted is None or size == wanted for size, wanted in zip(shape, sizes, strict=True))
    )


def _not_finite(flat: np.ndarray) -> int:
    if flat.dtype == bfloat16.DTYPE:
        return int(np.count_nonzero((flat.view(bfloat16.STORED) & 0x7FFF) >= bfloat16.FIRST_INFINITE))
    return int(np.count_nonzero(~np.isfinite(flat)))


def _finite_check(dtype: np.dtype[Any]) -> Callable[[np.ndarray], bool] | None:
    if dtype == bfloat16.DTYPE:
        return bfloat16.is_finite
    if dtype.kind not in "fc":
        return None
    first = _FIRST_INFINITE.get(dtype.itemsize)
    if dtype.kind != "f" or first is None or not dtype.isnative:
        return lambda flat: bool(np.isfinite(flat).all())
    signed, unsigned = np.dtype(f"i{dtype.itemsize}"), np.dtype(f"u{dtype.itemsize}")
    sign = 1 << (8 * dtype.itemsize - 1)

    def check(flat: np.ndarray) -> bool:
        # The patterns of NaN and infinity are the greatest of either sign, so two integer maxima find them; numpy's
        # isfinite takes thirty times as long for half precision.
        return bool(flat.view(signed).max() < first and flat.view(unsigned).max() < sign + first)

    return check
