import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from atelier.data.loader import Loader, ShardDataset
from atelier.data.preprocess import Settings, preprocess
from atelier.data.quarantine import Quarantine
from atelier.errors import DataError
from atelier.storage.folder import OutputFolder
from atelier.storage.manifest import Manifest
from tests.data import raw
from tests.data.encoders import PixelEncoder


def run(
    folder: Path, place: Path, work: Path, encoder: PixelEncoder | None = None, share: float = 0.1, per_shard: int = 10
) -> Manifest:
    out = OutputFolder(str(place), work)
    metadata = preprocess(
        raw.source(folder),
        encoder or PixelEncoder(),
        out,
        Settings(res=64, samples_per_shard=per_shard, batch=4),
        Quarantine(share, out.path / "quarantine.jsonl"),
    )
    return out.finish("shards", metadata, {})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return raw.make(tmp_path_factory.mktemp("raw"), 50, 2)


@pytest.fixture(scope="module")
def shards(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    base = tmp_path_factory.mktemp("shards")
    return run(folder, base / "out", base / "work")


def test_metadata_and_samples(shards: Manifest) -> None:
    assert shards.metadata["samples"] == 50
    assert shards.metadata["fields"] == {"latent": ["<f2", [3, 16, 16]], "phrases": ["<f2", [None, 8]]}
    assert [shard["samples"] for shard in shards.metadata["shards"]] == [10, 10, 5, 10, 10, 5]
    dataset = ShardDataset(shards)
    assert len(dataset) == 50
    sample = dataset.sample(27)
    assert sample["key"] == sample["json"]["key"] == "sa_28"
    assert sample["latent"].shape == (3, 16, 16)
    assert len(sample["phrases"]) == len(sample["json"]["boxes"]) == len(sample["json"]["phrases"])
    height, width, top, left, *target = sample["json"]["time_ids"]
    assert [height, width] == sample["json"]["original_size"]
    assert [top, left] == sample["json"]["crop_top_left"]
    assert target == [64, 64]
    with pytest.raises(IndexError):
        dataset.sample(50)


def test_other_readers_understand_the_shards(shards: Manifest) -> None:
    import webdataset

    paths = [f"{shards.uri}/{shard['name']}" for shard in shards.metadata["shards"]]
    found = {s["__key__"]: s for s in webdataset.WebDataset(paths, shardshuffle=False).decode()}
    dataset = ShardDataset(shards)
    for index in range(50):
        sample = dataset.sample(index)
        assert (found[sample["key"]]["latent.npy"] == sample["latent"]).all()
        assert found[sample["key"]]["json"] == sample["json"]


def test_same_input_same_digest(folder: Path, shards: Manifest, tmp_path: Path) -> None:
    assert run(folder, tmp_path / "again", tmp_path / "work").digest == shards.digest


def test_continues_after_a_kill_with_the_same_bytes(folder: Path, shards: Manifest, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(folder, tmp_path / "out", tmp_path / "work", PixelEncoder(fail_after=32))
    encoder = PixelEncoder()
    manifest = run(folder, tmp_path / "out", tmp_path / "work", encoder)
    assert manifest.digest == shards.digest
    assert encoder.encoded == 50 - 25  # the three shards of the first tar, committed before the kill


def test_quarantine_survives_a_kill_and_ends_the_run_above_its_share(tmp_path: Path) -> None:
    folder = raw.make(tmp_path / "raw", 40)
    content = raw.members(folder / "sa_000000.tar")
    content["sa_3.jpg"] = content["sa_3.jpg"][:900]  # a header that can be read, a body that ends early
    content["sa_30.jpg"] = b"none"
    raw.rewrite(folder / "sa_000000.tar", content)
    with pytest.raises(KeyboardInterrupt):
        run(folder, tmp_path / "out", tmp_path / "work", PixelEncoder(fail_after=15))
    manifest = run(folder, tmp_path / "out", tmp_path / "work")
    assert manifest.metadata["samples"] == 38
    assert manifest.metadata["quarantined"] == {"not a readable image": 2}
    lines = (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()
    assert [json.loads(line)["key"] for line in lines] == ["sa_3", "sa_30"]
    with pytest.raises(DataError, match=r"2 of 40 samples are unusable \(5\.0%, allowed 4\.0%\)"):
        run(folder, tmp_path / "strict", tmp_path / "work2", share=0.04)


def test_shards_that_end_with_their_tar(tmp_path: Path) -> None:
    folder = raw.make(tmp_path / "raw", 20, 2)
    manifest = run(folder, tmp_path / "out", tmp_path / "work")
    assert [shard["name"] for shard in manifest.metadata["shards"]] == ["sa_000000-0000.tar", "sa_000001-0000.tar"]
    assert len(manifest.files) == 5


def keys(batches: list[Any]) -> list[str]:
    return [sample["key"] for batch in batches for sample in batch]


@pytest.mark.parametrize("workers", [0, 2])
def test_every_sample_once_an_epoch_in_another_order_each(shards: Manifest, workers: int) -> None:
    with Loader(ShardDataset(shards), 10, seed=5, workers=workers) as loader:
        batches = [next(loader) for _ in range(10)]
    first, second = keys(batches[:5]), keys(batches[5:])
    assert sorted(first) == sorted(second) == sorted(f"sa_{n}" for n in range(1, 51))
    assert first != second
    assert {sample["epoch"] for sample in batches[4]} == {0}
    assert {sample["epoch"] for sample in batches[5]} == {1}


def test_any_number_of_ranks_sees_one_order(shards: Manifest) -> None:
    dataset = ShardDataset(shards)

    def steps(world: int) -> list[list[str]]:
        loaders = [Loader(dataset, 12 // world, rank, world, seed=1) for rank in range(world)]
        return [[key for loader in loaders for key in keys([next(loader)])] for _ in range(9)]

    assert steps(1) == steps(2) == steps(4)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_resume_is_a_number(shards: Manifest, workers: int) -> None:
    dataset = ShardDataset(shards)
    whole = Loader(dataset, 7, seed=2)
    expected = [keys([next(whole)]) for _ in range(20)]
    with Loader(dataset, 7, seed=2, workers=workers) as part:
        for _ in range(6):
            next(part)
        position = part.position
    assert position == 42
    with Loader(dataset, 7, seed=2, start=position, workers=workers) as rest:
        assert [keys([next(rest)]) for _ in range(14)] == expected[6:]


def test_windowed_shuffle_is_still_complete(shards: Manifest) -> None:
    dataset = ShardDataset(shards)
    loader = Loader(dataset, 5, seed=3, window=2)
    batches = [next(loader) for _ in range(10)]
    assert sorted(keys(batches)) == sorted(f"sa_{n}" for n in range(1, 51))
    first = {int(np.searchsorted(dataset.shard_starts, s["index"], side="right")) for b in batches[:2] for s in b}
    assert len(first) <= 2


def test_flipped_bits_in_a_shard_are_named(folder: Path, tmp_path: Path) -> None:
    manifest = run(folder, tmp_path / "out", tmp_path / "work")
    path = tmp_path / "out" / "sa_000001-0001.tar"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    dataset = ShardDataset(manifest)
    with pytest.raises(DataError, match=r"sa_000001-0001\.tar: sample sa_\d+ is damaged"):
        [dataset.sample(index) for index in range(len(dataset))]


def test_another_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="without samples"):
        ShardDataset(Manifest("train", str(tmp_path), ()))
