"""bfloat16 in shards: stored as ``<u2``, named in the manifest, handed to torch without a copy.

numpy has no such type, and an ``.npy`` no name for it. A file therefore holds the bits as unsigned 16-bit integers,
which every reader of ``.npy`` opens; what they mean is said in the manifest's ``fields``, where the dtype is
``"bfloat16"``. In memory such an array has ``DTYPE``, a record of one field: its bits cannot be taken for whole numbers
by mistake, and ``torch.from_numpy`` refuses it where ``tensor`` was forgotten.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

NAME = "bfloat16"
DTYPE = np.dtype([(NAME, "<u2")])
STORED = np.dtype("<u2")
FIRST_INFINITE = 0x7F80
"""The least pattern, beside the sign, that is infinite or not a number."""


def name_of(dtype: np.dtype[Any]) -> str:
    """What a manifest calls a dtype: ``"bfloat16"``, or numpy's own word (``"<f2"``)."""
    return NAME if dtype == DTYPE else dtype.str


def dtype_of(name: str) -> np.dtype[Any]:
    """The dtype that a manifest names, as arrays in memory have it."""
    return DTYPE if name == NAME else np.dtype(name)


def stored(array: np.ndarray) -> np.ndarray:
    """The array as an ``.npy`` can hold it; a view."""
    return array.view(STORED) if array.dtype == DTYPE else array


def stored_name(name: str) -> str:
    """What the ``.npy`` of a field says whose dtype a manifest calls ``name``."""
    return STORED.str if name == NAME else name


def is_finite(array: np.ndarray) -> bool:
    """Whether an array of ``DTYPE`` holds neither NaN nor infinity."""
    return not array.size or bool((array.view(STORED) & 0x7FFF).max() < FIRST_INFINITE)


def array(tensor: "Tensor") -> np.ndarray:
    """A tensor, rounded to bfloat16, as array of ``DTYPE`` on the CPU."""
    import torch

    bits: np.ndarray = tensor.detach().bfloat16().cpu().contiguous().view(torch.uint16).numpy()
    return bits.view(DTYPE)


def tensor(array: np.ndarray) -> "Tensor":
    """An array of a shard as tensor of its own dtype, bfloat16 where it is ``DTYPE``; shares its memory.

    Samples lie in shards that are mapped for reading: such a tensor must not be written to.
    """
    import torch

    if array.dtype != DTYPE:
        return torch.from_numpy(_unmarked(array))
    return torch.from_numpy(_unmarked(array.view(STORED))).view(torch.bfloat16)


class _Unmarked:
    """The memory of a read-only array without the mark, by numpy's array interface; keeps the array alive."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array
        self.__array_interface__ = {**array.__array_interface__, "data": (array.ctypes.data, False)}


def _unmarked(array: np.ndarray) -> np.ndarray:
    """An array that torch takes without a warning: it has no read-only tensors, and warns of each array that is.

    No more than what torch does itself after its warning. It is safe as batches are made by copying: nobody writes to
    a sample, and a write to a mapped file would end the process, not change the data.
    """
    return array if array.flags.writeable else np.asarray(_Unmarked(array))
