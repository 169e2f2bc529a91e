"""bfloat16 through shards: the same bits come out, read by torch without a copy, and what is no number is found."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from atelier.data import bfloat16
from atelier.data.bad_samples import BadSample
from atelier.data.batch_reader import column
from atelier.data.loader import Loader, ShardDataset
from atelier.data.shards import ShardWriter
from atelier.errors import DataError
from atelier.storage.folder import OutputFolder
from atelier.storage.manifest import Manifest
from tests.data import small_shards

FIELDS = {
    "moments_32": ["bfloat16", [8, 8]],
    "moments_64": ["bfloat16", [8, 32]],
    "text": ["bfloat16", [None, 4]],
    "tokens": ["<i4", []],
}


def tensors(number: int) -> dict[str, torch.Tensor]:
    drawn = torch.randn(8 * 8 + 8 * 32 + 3 * 4, generator=torch.Generator().manual_seed(number)).bfloat16()
    small, large, text = drawn.split([64, 256, 12])
    return {"moments_32": small.view(8, 8), "moments_64": large.view(8, 32), "text": text.view(3, 4)[: number % 4]}


def arrays(number: int) -> small_shards.Arrays:
    made = {name: bfloat16.array(tensor.float()) for name, tensor in tensors(number).items()}
    return {**made, "tokens": np.array(number, np.int32)}


@pytest.fixture
def shards(tmp_path: Path) -> Manifest:
    return small_shards.write(tmp_path / "shards", tmp_path / "work", (6, 4), arrays, FIELDS)


def test_the_writer_names_them(tmp_path: Path) -> None:
    writer = ShardWriter(OutputFolder(str(tmp_path / "out"), tmp_path / "work"), "a.tar")
    for number in range(3):
        writer.add(f"k{number}", arrays(number), {})
    assert writer.fields == FIELDS
    assert "text is <f2, not bfloat16" in writer.problem(arrays(1) | {"text": np.zeros((1, 4), np.float16)})
    broken = torch.ones(8, 8)
    broken[3, 3] = -torch.inf
    assert writer.problem(arrays(1) | {"moments_32": bfloat16.array(broken)}) == "non-finite moments_32"
    with pytest.raises(DataError, match="non-finite text"):
        writer.add("k9", arrays(1) | {"text": bfloat16.array(torch.full((1, 4), torch.nan))}, {})


@pytest.mark.parametrize("only", [None, {"moments_32", "text", "tokens"}, {"moments_64", "text", "tokens"}, {"text"}])
def test_every_bit_comes_back(shards: Manifest, only: set[str] | None) -> None:
    """Whole samples and some of their fields, by themselves and in batches, with and without known checksums."""
    dataset = ShardDataset(shards, only=only)
    with Loader(dataset, 5, seed=3) as loader:
        for _ in range(4):
            batch = next(loader)
            for sample in [*batch, *(dataset.sample(sample["index"]) for sample in batch)]:
                number = int(sample["key"][1:])
                wanted = {n: t for n, t in tensors(number).items() if only is None or n in only}
                assert {n: t for n, t in sample.items() if n in FIELDS and n != "tokens"}.keys() == wanted.keys()
                for name, tensor in wanted.items():
                    assert torch.equal(bfloat16.tensor(sample[name]), tensor)
                if only is None or "tokens" in only:
                    assert sample["tokens"].shape == ()
                    assert sample["tokens"].item() == number
            if only is None or "moments_32" in only:
                stacked = bfloat16.tensor(column(batch, "moments_32"))
                assert torch.equal(stacked, torch.stack([bfloat16.tensor(sample["moments_32"]) for sample in batch]))
                assert stacked.data_ptr() == batch.columns["moments_32"].__array_interface__["data"][0]
    assert not loader.quarantined


def test_any_npy_reader_sees_the_bits(shards: Manifest, tmp_path: Path) -> None:
    with tarfile.open(Path(shards.uri) / "s-0.tar") as archive:
        member = archive.extractfile("k1.moments_32.npy")
        assert member is not None
        found = np.load(io.BytesIO(member.read()))
    assert found.dtype == np.uint16
    assert torch.equal(torch.from_numpy(found).view(torch.bfloat16), tensors(1)["moments_32"])


def test_what_is_no_number_is_found_when_it_is_read(tmp_path: Path) -> None:
    def broken(number: int) -> small_shards.Arrays:
        made = arrays(number)
        if number == 2:
            made["moments_32"].view(np.uint16)[1, 1] = 0xFF80  # -infinity
        return made

    shards = small_shards.write(tmp_path / "shards", tmp_path / "work", (6,), broken, FIELDS)
    with pytest.raises(BadSample, match=r"not finite \(moments_32"):
        ShardDataset(shards).sample(2)
    with Loader(ShardDataset(shards, only={"moments_32"}), 6, max_bad=1.0) as loader:
        next(loader)
    assert loader.quarantined == {"not finite": 1}


def test_a_flaw_in_what_is_not_read_disturbs_nobody(shards: Manifest) -> None:
    """Checksums are of members: a byte of the other resolution is not even read, one of the own is found."""
    dataset = ShardDataset(shards)
    dataset.sample(0)
    index = dataset._shard(0).index  # type: ignore[union-attr]
    place = dict(zip(index.members, index.places[1].tolist(), strict=True))["moments_64.npy"][0] + int(index.begins[1])
    path = Path(shards.uri) / "s-0.tar"
    data = bytearray(path.read_bytes())
    data[place + 200] ^= 1
    path.write_bytes(data)
    for only, bad in (({"moments_32", "text"}, {}), ({"moments_64", "text"}, {"checksum": 1})):
        with Loader(ShardDataset(shards, only=only), 10, max_bad=1.0) as loader:
            next(loader)
        assert loader.quarantined == bad


def test_shards_without_checksums_of_members_are_read_whole(shards: Manifest) -> None:
    """As they were written before: the sample's own checksum decides."""
    for path in Path(shards.uri).glob("*.index.json"):
        index = json.loads(path.read_bytes())
        index["samples"] = [row[:5] for row in index["samples"]]
        path.write_text(json.dumps(index))
    with Loader(ShardDataset(shards, only={"moments_32", "text"}), 10) as loader:
        batch = next(loader)
    assert not loader.quarantined
    for sample in batch:
        wanted = tensors(int(sample["key"][1:]))["moments_32"]
        assert torch.equal(bfloat16.tensor(sample["moments_32"]), wanted)
        assert "moments_64" not in sample


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", ["bfloat16", "<f4"])
def test_read_only_memory_is_handed_over_in_silence(dtype: str) -> None:
    made = bfloat16.array(torch.arange(12.0)) if dtype == "bfloat16" else np.arange(12, dtype=dtype)
    kept = np.frombuffer(made.tobytes(), made.dtype)
    assert not kept.flags.writeable
    tensor, part = bfloat16.tensor(kept), bfloat16.tensor(kept.reshape(3, 4)[:, 1:3])
    assert tensor.data_ptr() == kept.ctypes.data, "no copy"
    assert not kept.flags.writeable
    del kept  # the tensors keep the memory
    assert tensor.tolist() == list(range(12))
    assert part.tolist() == [[1, 2], [5, 6], [9, 10]]
    assert bfloat16.tensor(np.frombuffer(b"", made.dtype)).shape == (0,)


def test_numpy_and_torch_refuse_what_was_not_meant() -> None:
    with pytest.raises(TypeError):
        torch.from_numpy(bfloat16.array(torch.ones(3)))
    assert bfloat16.tensor(np.ones(3, np.float16)).dtype == torch.float16
    assert bfloat16.is_finite(bfloat16.array(torch.tensor([3.38e38, -3.38e38, 0.0, 1e-40])))
    assert not bfloat16.is_finite(bfloat16.array(torch.tensor([1.0, torch.nan])))
    assert bfloat16.is_finite(bfloat16.array(torch.zeros(0, 4)))
