"""Memory to read into, used again as soon as nothing refers to it: fresh memory costs a page fault every 4 kB."""

import sys
import threading
from collections.abc import Sequence

import numpy as np

_STEP = 2**16
_KEPT = 64


def _references(stock: list[np.ndarray]) -> list[int]:
    """How many references each buffer has, counted the same way for all."""
    return [sys.getrefcount(buffer) for buffer in stock]


_FREE = _references([np.empty(1, np.uint8)])[0]  # of one that only a list holds; differs between Python versions


class Buffers(threading.local):
    """Each thread's own stock of buffers.

    A buffer counts as free when only the stock refers to it: an array that views it, and a tensor over such an
    array, hold a reference, so whoever keeps an array keeps its memory.
    """

    def __init__(self) -> None:
        self._stock: list[np.ndarray] = []

    def take(self, size: int) -> np.ndarray:
        """A uint8 buffer of at least ``size`` bytes with any content; the caller must keep a reference to it."""
        for number, references in enumerate(_references(self._stock)):
            if references == _FREE and size <= len(self._stock[number]) <= 4 * size + _STEP:
                return self._stock[number]
        buffer = np.empty(-(-size // _STEP) * _STEP, np.uint8)
        if len(self._stock) >= _KEPT:
            self._stock.pop(0)
        self._stock.append(buffer)
        return buffer


_batches = Buffers()


def stack(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """``np.stack`` of arrays of one shape and dtype into memory that is used again once nobody holds the batch."""
    first = arrays[0]
    size = first.nbytes * len(arrays)
    out = _batches.take(size)[:size].view(first.dtype).reshape(len(arrays), *first.shape)
    return np.stack(arrays, out=out)
