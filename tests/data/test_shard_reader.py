"""What reading does with every kind of damage, and how compactly an index is held."""

import json
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from atelier.data.bad_samples import BadSample
from atelier.data.batch_reader import column
from atelier.data.loader import Loader, ShardDataset
from atelier.data.shard_index import ShardIndex
from atelier.data.shards import INDEX
from atelier.errors import DataError, StorageError
from atelier.storage.manifest import Manifest
from tests.data import small_shards


@pytest.fixture
def shards(tmp_path: Path) -> Manifest:
    return small_shards.write(tmp_path / "shards", tmp_path / "work")


def folder(manifest: Manifest) -> Path:
    return Path(manifest.uri)


def edit_index(manifest: Manifest, change: Callable[[list[list[Any]]], object], shard: int = 1) -> None:
    path = folder(manifest) / f"s-{shard}.tar{INDEX}"
    index = json.loads(path.read_bytes())
    change(index["samples"])
    path.write_text(json.dumps(index))


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 4
    path.write_bytes(data)


def reasons(dataset: ShardDataset) -> dict[int, str]:
    """Why each unreadable sample is so: the same whether it is read by itself or in a batch."""
    in_batches: dict[int, str] = {}
    replaced = {"key": "none", "latent": np.zeros((4, 8, 8), np.float16)}
    again, rng = ShardDataset(dataset.manifest), np.random.default_rng(0)

    def replace(row: int, bad: BadSample) -> dict[str, Any]:
        in_batches[int(chosen[row])] = bad.reason
        return replaced

    for _ in range(2):  # the second time checksums are known
        for chosen in np.array_split(rng.permutation(len(again)), 4):
            batch = again.batch(chosen, replace)
            for row, (index, sample) in enumerate(zip(chosen.tolist(), batch, strict=True)):
                if sample is not replaced:
                    assert_sound(index, sample)
                if "latent" in batch.columns:
                    assert (batch.columns["latent"][row] == sample["latent"]).all()
    found = one_by_one(dataset)
    assert in_batches == found
    return found


def assert_sound(index: int, sample: dict[str, Any]) -> None:
    assert sample["key"] == f"k{index}"
    assert (sample["latent"] == np.float16(index / 100)).all()
    assert sample["phrases"].shape == (index % 10, 6)
    assert (sample["phrases"] == -index).all()
    assert sample["json"] == {"number": index}


def one_by_one(dataset: ShardDataset) -> dict[int, str]:
    found = {}
    for index in range(len(dataset)):
        try:
            sample = dataset.sample(index)
        except BadSample as bad:
            found[index] = bad.reason
        else:
            assert_sound(index, sample)
    return found


def test_sound_shards(shards: Manifest) -> None:
    assert reasons(ShardDataset(shards)) == {}


def test_arrays_are_read_only(shards: Manifest) -> None:
    with pytest.raises(ValueError, match="read-only"):
        ShardDataset(shards).sample(3)["latent"][0] = 1


def test_a_batch_lies_in_one_array_a_field(shards: Manifest) -> None:
    dataset = ShardDataset(shards)

    def never(row: int, bad: BadSample) -> dict[str, Any]:
        raise bad

    batch = dataset.batch([7, 3, 24, 11], never)
    assert list(batch.columns) == ["latent"], "phrases differ in number"
    assert column(batch, "latent") is batch.columns["latent"]
    for row, sample in enumerate(batch):
        assert np.shares_memory(sample["latent"], batch.columns["latent"][row])
        assert not sample["latent"].flags.writeable
    kept = [dataset.batch(range(first, first + 5), never) for first in range(0, 25, 5)]
    for first, batch in zip(range(0, 25, 5), kept, strict=True):
        for row, sample in enumerate(batch):
            assert_sound(first + row, sample)
    plain = [{"latent": sample["latent"]} for sample in kept[0]]
    assert np.array_equal(column(plain, "latent"), kept[0].columns["latent"])


def test_members_in_another_order_are_read_by_themselves(shards: Manifest) -> None:
    def turn(samples: list[list[Any]]) -> None:
        for sample in samples:
            sample[4] = dict(reversed(sample[4].items()))

    edit_index(shards, turn)
    assert reasons(ShardDataset(shards)) == {}


def test_kept_arrays_keep_their_content(shards: Manifest) -> None:
    dataset = ShardDataset(shards)
    kept = [dataset.sample(index)["latent"][0, 0] for index in range(25)]
    assert [float(row[0]) for row in kept] == [float(np.float16(index / 100)) for index in range(25)]


def test_truncated_shard_loses_only_what_is_cut_off(shards: Manifest) -> None:
    path = folder(shards) / "s-1.tar"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    found = reasons(ShardDataset(shards))
    assert set(found.values()) == {"truncated shard"}
    assert max(found) == 19
    assert 10 < min(found) < 18


def test_flipped_bit(shards: Manifest) -> None:
    path = folder(shards) / "s-1.tar"
    flip(path, path.stat().st_size // 2)
    found = reasons(ShardDataset(shards))
    assert list(found.values()) == ["checksum"]
    assert 10 <= next(iter(found)) < 20


def test_a_file_that_changed_is_checked_again(shards: Manifest) -> None:
    dataset = ShardDataset(shards)
    assert reasons(dataset) == {}
    path = folder(shards) / "s-0.tar"
    flip(path, 2000)
    dataset.release(0)
    assert list(reasons(dataset).values()) == ["checksum"]


def test_index_that_does_not_fit_its_shard(shards: Manifest) -> None:
    def change(samples: list[list[Any]]) -> None:
        samples[2][1] = 10**12
        samples[3][1] = -512
        samples[4][2] = 2**40
        samples[5][4]["latent.npy"] = [512, 10**7]
        samples[6][4]["latent.npy"] = [-5, 100]
        samples[7][3] = -1

    edit_index(shards, change)
    found = reasons(ShardDataset(shards))
    assert found == dict.fromkeys(range(12, 18), "index does not fit its shard")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'{"samples": 3}',
        b'{"samples": [[1, 2]]}',
        b'{"samples": []}',
        b"\xff\xfe",
        b'{"samples": null}',
    ],
)
def test_damaged_index(shards: Manifest, content: bytes) -> None:
    (folder(shards) / f"s-1.tar{INDEX}").write_bytes(content)
    assert reasons(ShardDataset(shards)) == dict.fromkeys(range(10, 20), "damaged index")


def test_index_with_another_number_of_samples(shards: Manifest) -> None:
    edit_index(shards, lambda samples: samples.pop())
    with pytest.raises(BadSample, match=r"damaged index .*9 samples, the manifest says 10"):
        ShardDataset(shards).sample(12)


def test_missing_shard_names_the_keys(shards: Manifest) -> None:
    (folder(shards) / "s-1.tar").unlink()
    dataset = ShardDataset(shards)
    assert reasons(dataset) == dict.fromkeys(range(10, 20), "missing shard")
    with pytest.raises(BadSample, match=r"s-1\.tar: sample k13 is damaged: missing shard"):
        dataset.sample(13)


def test_missing_index_and_unlisted_shard(shards: Manifest) -> None:
    (folder(shards) / f"s-1.tar{INDEX}").unlink()
    assert reasons(ShardDataset(shards)) == dict.fromkeys(range(10, 20), "missing index")
    listed = tuple(entry for entry in shards.files if not entry.path.startswith("s-0"))
    unlisted = Manifest(shards.kind, shards.uri, listed, shards.metadata)
    assert reasons(ShardDataset(unlisted)) == dict.fromkeys(range(10), "missing shard") | dict.fromkeys(
        range(10, 20), "missing index"
    )


def test_missing_member(shards: Manifest) -> None:
    edit_index(shards, lambda samples: samples[4][4].pop("phrases.npy"))
    assert reasons(ShardDataset(shards)) == {14: "missing member"}


def test_member_that_no_sample_has(tmp_path: Path) -> None:
    fields = {"latent": ["<f2", [4, 8, 8]], "phrases": ["<f4", [None, 6]], "pooled": ["<f2", [5]]}
    manifest = small_shards.write(tmp_path / "shards", tmp_path / "work", (3,), fields=fields)
    assert reasons(ShardDataset(manifest)) == dict.fromkeys(range(3), "missing member")


@pytest.mark.parametrize(
    "expected", [["<f4", [4, 8, 8]], ["<f2", [4, 8, 9]], ["<f2", [4, 64]], ["<f2", [4, 8, 8, None]]]
)
def test_wrong_dtype_or_shape(tmp_path: Path, expected: list[Any]) -> None:
    fields = {"latent": expected, "phrases": ["<f4", [None, 6]]}
    manifest = small_shards.write(tmp_path / "shards", tmp_path / "work", (3,), fields=fields)
    assert reasons(ShardDataset(manifest)) == dict.fromkeys(range(3), "wrong dtype or shape")


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4", np.complex64])
@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
def test_not_finite(tmp_path: Path, dtype: Any, value: float) -> None:
    extremes = np.finfo(np.float16)

    def make(number: int) -> small_shards.Arrays:
        latent = np.array([0, -0.0, extremes.max, extremes.min, extremes.tiny, -1, 1, 2]).astype(dtype)
        if number == 2:
            latent[5] = value
        return {"latent": latent, "empty": np.zeros((0, 3), np.float16), "flags": np.array([-1, 7], np.int16)}

    manifest = small_shards.write(tmp_path / "shards", tmp_path / "work", (4,), make, fields={})
    dataset = ShardDataset(manifest)
    for index in (0, 1, 3):
        assert np.isfinite(dataset.sample(index)["latent"]).all()
    with pytest.raises(BadSample, match=r"not finite .*latent holds 1 NaN or infinite"):
        dataset.sample(2)


def test_members_that_are_no_arrays(shards: Manifest) -> None:
    """Bytes that were wrong when they were written: the checksum is theirs."""
    path = folder(shards) / "s-1.tar"
    data = bytearray(path.read_bytes())

    def change(samples: list[list[Any]]) -> None:
        for number, (member, old, new) in enumerate(
            [
                ("latent.npy", b"NUMPY", b"MUMPY"),
                ("latent.npy", b"(4, 8, 8)", b"(4, 8, 9)"),
                ("latent.npy", b"(4, 8, 8)", b"(4,-8,-8)"),
                ("latent.npy", b"'<f2'", b"'|O' "),
                ("json", b'"number"', b"'number'"),
            ]
        ):
            _, begin, length, _, members, _ = samples[number]
            place = data.index(old, begin + members[member][0])
            data[place : place + len(new)] = new
            samples[number][3] = zlib.crc32(data[begin : begin + length])

    edit_index(shards, change)
    path.write_bytes(data)
    found = reasons(ShardDataset(shards))
    assert found == {
        10: "not an array",
        11: "wrong dtype or shape",
        12: "not an array",
        13: "not an array",
        14: "damaged json",
    }


def test_fortran_order_is_understood(tmp_path: Path) -> None:
    """The writer makes C order; another writer's arrays are read right all the same."""
    manifest = small_shards.write(
        tmp_path / "shards", tmp_path / "work", (1,), lambda _: {"a": np.arange(6, dtype=np.int32).reshape(2, 3)}, {}
    )
    path = Path(manifest.uri) / "s-0.tar"
    data = path.read_bytes().replace(b"'fortran_order': False", b"'fortran_order': True ")
    path.write_bytes(data)

    def change(samples: list[list[Any]]) -> None:
        samples[0][3] = zlib.crc32(data[samples[0][1] : samples[0][1] + samples[0][2]])

    edit_index(manifest, change, 0)
    assert ShardDataset(manifest).sample(0)["a"].tolist() == [[0, 2, 4], [1, 3, 5]]


def test_a_place_that_may_not_be_read_is_no_bad_sample(shards: Manifest) -> None:
    path = folder(shards) / "s-1.tar"
    path.unlink()
    path.symlink_to(path)  # a loop: an error of the file system
    with pytest.raises(StorageError) as error:
        ShardDataset(shards).sample(11)
    assert not isinstance(error.value, DataError)


def test_an_index_is_held_compactly() -> None:
    count = 11_185
    members = {name: [512, 4000] for name in ("json", "boxes.npy", "latent.npy", "phrases.npy", "prompt.npy")}
    rows = [[f"sa_{number:08d}", number * 5000, 5000, number, members] for number in range(count)]
    index = ShardIndex(json.dumps({"samples": rows}).encode(), count, 5000 * count)
    assert index.nbytes < 90 * count
    assert sys.getsizeof(rows[0]) + sys.getsizeof(members) > 250, "a row of Python objects alone takes more"
    assert index.key(0) == "sa_00000000"
    assert index.key(count - 1) == f"sa_{count - 1:08d}"
    assert not index.unfit.any()


def test_opening_reads_nothing_but_the_manifest(tmp_path: Path) -> None:
    manifest = small_shards.write(tmp_path / "shards", tmp_path / "work", (4,) * 12)
    dataset = ShardDataset(manifest)
    used = set()
    for sample in next(Loader(dataset, 3, seed=5)):
        used.add(int(np.searchsorted(dataset.shard_starts, sample["index"], side="right")) - 1)
    for shard in set(range(12)) - used:
        (folder(manifest) / f"s-{shard}.tar").unlink()
        (folder(manifest) / f"s-{shard}.tar{INDEX}").unlink()
    again = Loader(ShardDataset(manifest), 3, seed=5)
    assert len(next(again)) == 3
    assert again.quarantined == {}
