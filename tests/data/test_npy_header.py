"""Headers of .npy files: numpy's own are read as numpy reads them, all else is refused by name."""

import gc
import io
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import numpy as np
import pytest

from atelier.data import npy_header


def saved(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def header_of(array: np.ndarray) -> bytes:
    raw = saved(array)
    return raw[: 10 + int.from_bytes(raw[8:10], "little")]


@pytest.mark.parametrize("dtype", ["<f2", "<f4", ">f8", "|u1", "<i8", "|b1", "<U7", "<c8"])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (1, 6), (8, 64, 64), (2, 0, 5)])
def test_numpys_headers(dtype: str, shape: tuple[int, ...]) -> None:
    assert npy_header.parse(header_of(np.zeros(shape, dtype))) == (dtype, False, shape)


def test_fortrans_order() -> None:
    assert npy_header.parse(header_of(np.asfortranarray(np.zeros((2, 3), "<f4")))) == ("<f4", True, (2, 3))


@pytest.mark.parametrize("order", ["C", "F"])
def test_a_whole_array(order: Literal["C", "F"]) -> None:
    array = np.arange(6, dtype="<f2").reshape(2, 3).copy(order)
    assert np.array_equal(npy_header.array_of(saved(array)), array)
    with pytest.raises(ValueError, match="5 numbers, its header says 6"):
        npy_header.array_of(saved(array)[:-2])


def body(text: str) -> bytes:
    return npy_header.MAGIC + len(text).to_bytes(2, "little") + text.encode("latin-1")


@pytest.mark.parametrize(
    "text",
    [
        "{'descr': '|O', 'fortran_order': False, 'shape': (1,), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1 1,), }",
        "{'descr': '<q9', 'fortran_order': False, 'shape': (1,), }",
        "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,), }",
        "{'descr': '<f4', 'shape': (1,), }",
        "__import__('os').system('true')",
        "",
        "\x00\xff",
    ],
)
def test_other_headers_are_refused(text: str) -> None:
    with pytest.raises(ValueError):
        npy_header.parse(body(text))


def test_another_version() -> None:
    with pytest.raises(ValueError, match=r"version 1\.0"):
        npy_header.parse(b"\x93NUMPY\x02\x00" + bytes(120))


def test_threads_parse_at_once() -> None:
    # A collection that lets other threads run, in the middle of a parse: with numpy's reader (ast.literal_eval) this
    # ends in SystemError on CPython 3.11.7, every time.
    header = header_of(np.zeros((1, 6), "<f4"))
    thresholds = gc.get_threshold()

    def let_others_run(_phase: str, _info: dict[str, int]) -> None:
        time.sleep(0)

    gc.callbacks.append(let_others_run)
    gc.set_threshold(5)
    try:
        with ThreadPoolExecutor(8) as pool:
            found = set(pool.map(npy_header.parse, [header] * 500))
    finally:
        gc.set_threshold(*thresholds)
        gc.callbacks.remove(let_others_run)
    assert found == {("<f4", False, (1, 6))}
