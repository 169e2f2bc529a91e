"""An array's ``.npy`` header (version 1.0), read without Python's parser.

numpy reads it with ``ast.literal_eval``, and before CPython 3.11.8 two threads that parse at once can end in
``SystemError: AST constructor recursion depth mismatch`` (python/cpython#106905): the loader's threads did.
"""

import math
import re

import numpy as np

MAGIC = b"\x93NUMPY\x01\x00"

# The keys in numpy's order, which its format demands (alphabetic); a dtype with fields is a list and does not match.
_SAID = re.compile(
    rb"\s*\{\s*'descr'\s*:\s*'([^'\\]{1,32})'\s*,\s*'fortran_order'\s*:\s*(True|False)\s*,"
    rb"\s*'shape'\s*:\s*\(\s*((?:\d{1,18}\s*,\s*)*(?:\d{1,18}\s*)?)\)\s*,?\s*\}\s*"
)


def parse(header: bytes) -> tuple[str, bool, tuple[int, ...]]:
    """What a header says.

    Args:
        header: all of it, from the magic to the newline before the data.

    Returns:
        The dtype as numpy writes it (``<f4``), whether in Fortran's order, the shape.

    Raises:
        ValueError: another version, or not of this form: damaged, or an array of objects or of a dtype with fields.
    """
    if not header.startswith(MAGIC):
        raise ValueError("no .npy of version 1.0")
    said = _SAID.fullmatch(header[len(MAGIC) + 2 :])
    if said is None:
        raise ValueError(f"unreadable header {header[len(MAGIC) + 2 :][:80]!r}")
    descr, fortran, sizes = said[1].decode("latin-1"), said[2] == b"True", said[3].decode("ascii")
    try:
        dtype = np.dtype(descr)
    except TypeError as error:
        raise ValueError(f"{descr} is no dtype") from error
    if dtype.hasobject or dtype.itemsize == 0:
        raise ValueError(f"an array of {dtype}")
    return descr, fortran, tuple(int(size) for size in sizes.split(",") if size.strip())


def array_of(raw: bytes) -> np.ndarray:
    """A whole ``.npy``, as ``numpy.load`` reads it; the array is a view of ``raw``.

    Raises:
        ValueError: as ``parse``; or more or fewer bytes than the header states.
    """
    length = len(MAGIC) + 2 + int.from_bytes(raw[len(MAGIC) : len(MAGIC) + 2], "little")
    descr, fortran, shape = parse(raw[:length])
    flat = np.frombuffer(raw, descr, offset=length)
    if flat.size != math.prod(shape):
        raise ValueError(f"{flat.size:,} numbers, its header says {math.prod(shape):,}")
    return flat.reshape(shape, order="F" if fortran else "C")
