"""Opens ``.npy`` files that hold Python objects, as SA-1B's boxes and latents are published, without trusting them.

numpy's own ``allow_pickle=True`` runs whatever the file says. Here only numpy's array machinery and plain
containers exist; any other name in the pickle is refused before it is called.
"""

import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from atelier.errors import DataError
from atelier.storage.atomic import os_errors

_ALLOWED = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),  # how protocol 2 writes bytes
    *((f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
    *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise _Refused(f"{module}.{name}")
        # Old files name numpy.core, which numpy 2 keeps only as a warning alias.
        return super().find_class(module.replace("numpy.core.", "numpy._core."), name)


class _Refused(Exception):
    pass


def load_object_array(path: Path) -> np.ndarray:
    """Reads an ``.npy`` of any dtype; objects may be numpy arrays and scalars, lists, tuples, dicts, text, numbers.

    Raises:
        DataError: not an ``.npy``, damaged, or its pickle names anything else (the name is in the message).
        StorageError: it cannot be read.
    """
    with os_errors(path), path.open("rb") as file:
        try:
            version = np.lib.format.read_magic(file)
            header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = header(file)
            if not dtype.hasobject:
                stated = math.prod(shape) * dtype.itemsize
                if stated != path.stat().st_size - file.tell():
                    raise ValueError(f"its header states {stated:,} bytes of data, it has another number")
                file.seek(0)
                return np.load(file, allow_pickle=False)
            array = _Unpickler(file).load()
        except _Refused as error:
            raise DataError(
                f"{path}: its pickle names {error}, which is not data: it could run code",
                "do not trust this file; get it from its publisher again",
            ) from error
        except OSError:
            raise
        except Exception as error:
            # A damaged pickle can raise nearly anything.
            raise DataError(
                f"{path}: not a readable .npy file ({type(error).__name__}: {error})",
                "it is damaged or incomplete; download it again",
            ) from error
    if not isinstance(array, np.ndarray) or array.shape != shape:
        raise DataError(
            f"{path}: holds {type(array).__name__}, its header says an array of shape {shape}",
            "it is damaged; download it again",
        )
    return array
