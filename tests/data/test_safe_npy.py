import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from atelier.data.safe_npy import load_object_array
from atelier.errors import DataError


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def save(path: Path, value: object) -> Path:
    array = np.empty(1, object)
    array[0] = value
    np.save(path, array, allow_pickle=True)
    return path


def test_reads_what_is_published(tmp_path: Path) -> None:
    rows = {"indices": [1, 2], "latents": np.ones((2, 4), np.float16), "n": np.int64(3), "t": (1.5, b"x", None, True)}
    found = load_object_array(save(tmp_path / "a.npy", rows))[0]
    assert found["n"] == 3
    assert found["t"] == rows["t"]
    assert found["latents"].dtype == np.float16
    # The latents' form: a dict in an array without dimensions.
    np.save(tmp_path / "b.npy", np.array(rows, object), allow_pickle=True)
    assert load_object_array(tmp_path / "b.npy").item()["indices"] == [1, 2]
    np.save(tmp_path / "c.npy", np.arange(3))
    assert load_object_array(tmp_path / "c.npy").tolist() == [0, 1, 2]


@pytest.mark.parametrize("protocol", range(6))
def test_every_pickle_protocol(tmp_path: Path, protocol: int) -> None:
    array = np.empty(1, object)
    array[0] = [np.arange(4, dtype=np.float16), "text", np.float32(2)]
    with (tmp_path / "a.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": (1,)})
        pickle.dump(array, file, protocol=protocol)
    assert load_object_array(tmp_path / "a.npy")[0][0].tolist() == [0, 1, 2, 3]


def test_a_bomb_is_refused_by_name_and_does_not_go_off(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"posix\.mkdir"):
        load_object_array(save(tmp_path / "a.npy", Bomb(tmp_path / "exploded")))
    assert not (tmp_path / "exploded").exists()


def test_damaged_files(tmp_path: Path) -> None:
    good = save(tmp_path / "a.npy", list(range(100))).read_bytes()
    for number, data in enumerate((b"", b"text", good[:50], good[:-30], good[:130] + b"\xff" * 40)):
        path = tmp_path / f"{number}.npy"
        path.write_bytes(data)
        with pytest.raises(DataError, match=path.name):
            load_object_array(path)
