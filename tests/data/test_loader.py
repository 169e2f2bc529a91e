"""Batches over ranks, workers and restarts, and what bad samples do to them."""

import itertools
from pathlib import Path
from typing import Any

import pytest

from atelier.data.bad_samples import AT_LEAST, SHOWN
from atelier.data.loader import AHEAD, Loader, ShardDataset
from atelier.errors import ConfigError, DataError
from atelier.storage.manifest import Manifest
from tests.data import small_shards


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    base = tmp_path_factory.mktemp("loader")
    return small_shards.write(base / "shards", base / "work")


def keys(batch: list[dict[str, Any]]) -> list[str]:
    return [sample["key"] for sample in batch]


def steps(manifest: Manifest, count: int, world: int, workers: int, batch: int = 64, **more: Any) -> list[list[str]]:
    """The samples of each global batch in order; each rank has a data set of its own, as a process would."""
    loaders = [
        Loader(ShardDataset(manifest), batch // world, rank, world, seed=1, workers=workers, **more)
        for rank in range(world)
    ]
    try:
        return [[key for loader in loaders for key in keys(next(loader))] for _ in range(count)]
    finally:
        for loader in loaders:
            loader.close()


def test_more_ranks_and_workers_than_shards(shards: Manifest) -> None:
    assert steps(shards, 6, world=8, workers=4) == steps(shards, 6, world=1, workers=0)


@pytest.mark.parametrize("window", [1, 2])
def test_windows_are_the_same_for_all_too(shards: Manifest, window: int) -> None:
    assert steps(shards, 4, 4, 2, window=window) == steps(shards, 4, 1, 0, window=window)


def test_epochs_follow_without_gap_or_padding(shards: Manifest) -> None:
    """25 samples, batches of 8: the fourth holds the last one of an epoch and seven of the next."""
    loader = Loader(ShardDataset(shards), 8, seed=3)
    drawn = [sample for _ in range(25) for sample in next(loader)]
    for epoch in range(8):
        of_epoch = drawn[25 * epoch : 25 * (epoch + 1)]
        assert {sample["epoch"] for sample in of_epoch} == {epoch}
        assert sorted(sample["index"] for sample in of_epoch) == list(range(25))
    orders = [tuple(keys(drawn[25 * epoch : 25 * (epoch + 1)])) for epoch in range(8)]
    assert len(set(orders)) == 8


@pytest.mark.parametrize(("world", "workers"), [(1, 0), (1, 3), (4, 2)])
def test_resume_is_a_number_whatever_the_ranks_were_before(shards: Manifest, world: int, workers: int) -> None:
    whole = steps(shards, 12, 1, 0, batch=12)
    assert steps(shards, 7, world, workers, batch=12, start=5 * 12) == whole[5:]


def damage(manifest: Manifest, places: dict[str, list[float]]) -> None:
    """Flips a byte of each shard at these shares of its length."""
    for name, shares in places.items():
        path = Path(manifest.uri) / name
        data = bytearray(path.read_bytes())
        for share in shares:
            data[int(share * len(data))] ^= 1
        path.write_bytes(data)


def test_bad_samples_are_replaced_alike_everywhere(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    manifest = small_shards.write(tmp_path / "shards", tmp_path / "work")
    sound = steps(manifest, 20, 1, 0, batch=12)
    damage(manifest, {"s-0.tar": [0.3], "s-2.tar": [0.2, 0.7]})
    found = steps(manifest, 20, 1, 0, batch=12, max_bad=0.2)
    bad = set(itertools.chain(*sound)) - set(itertools.chain(*found))
    assert len(bad) == 3
    assert steps(manifest, 20, 4, 2, batch=12, max_bad=0.2) == found
    assert steps(manifest, 9, 3, 1, batch=12, start=11 * 12, max_bad=0.2) == found[11:]
    # The next good one of the epoch's order stands in.
    order = list(itertools.chain(*sound))[:25]
    got = list(itertools.chain(*found))[:25]
    for place in range(25):
        following = [order[(place + more) % 25] for more in range(25)]
        assert got[place] == next(each for each in following if each not in bad)
    shown = capfd.readouterr().err
    for key in bad:
        assert f"sample {key} is damaged: checksum" in shown


def test_a_replacement_has_the_address_of_its_place(tmp_path: Path) -> None:
    manifest = small_shards.write(tmp_path / "shards", tmp_path / "work")
    damage(manifest, {"s-1.tar": [0.5]})
    loader = Loader(ShardDataset(manifest), 25, seed=2, max_bad=1.0)
    batch = next(loader)
    assert sorted(sample["index"] for sample in batch) == list(range(25))
    assert len(set(keys(batch))) == 24
    assert loader.quarantined == {"checksum": 1}
    (entry,) = loader.bad_samples
    assert entry.shard.endswith("s-1.tar")
    assert entry.key not in keys(batch)
    next(loader)
    assert loader.quarantined == {"checksum": 1}, "the same sample again is not counted again"


@pytest.mark.parametrize("workers", [0, 2])
def test_too_many_bad_samples_end_the_run_with_counts_and_keys(tmp_path: Path, workers: int) -> None:
    manifest = small_shards.write(tmp_path / "shards", tmp_path / "work")
    (Path(manifest.uri) / "s-1.tar").unlink()
    damage(manifest, {"s-0.tar": [0.5]})
    with Loader(ShardDataset(manifest), 5, seed=2, workers=workers, max_bad=0.42) as loader:
        with pytest.raises(DataError) as error:
            # A worker may find the one too many in a batch that is ahead: it ends the run when its turn comes.
            list(itertools.islice(loader, 5 + 2 * (workers + 1) * AHEAD))
        text = str(error.value)
        assert "11 of 25 samples" in text
        assert "10 × missing shard" in text
        assert "1 × checksum" in text
        assert "s-1.tar: k1" in text
        assert loader.quarantined == {"missing shard": 10, "checksum": 1}


def test_nothing_good_left(tmp_path: Path) -> None:
    manifest = small_shards.write(tmp_path / "shards", tmp_path / "work", (4,))
    (Path(manifest.uri) / "s-0.tar").unlink()
    with pytest.raises(DataError, match=r"4 samples are unusable .*4 × missing shard"):
        next(Loader(ShardDataset(manifest), 2, max_bad=1.0))


def test_a_few_bad_ones_at_the_start_of_a_large_set_are_borne(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The share is of a thousand samples at least; a shard's many bad ones are printed up to a limit."""
    manifest = small_shards.write(tmp_path / "shards", tmp_path / "work", (SHOWN + 10, AT_LEAST), fields={})
    (Path(manifest.uri) / "s-0.tar").unlink()
    loader = Loader(ShardDataset(manifest), AT_LEAST + SHOWN + 10, seed=2, max_bad=0.03)
    assert len(next(loader)) == AT_LEAST + SHOWN + 10
    assert loader.quarantined == {"missing shard": SHOWN + 10}
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("quarantined")]
    assert len(lines) == SHOWN + 1
    assert "counted only" in lines[-1]


def test_arguments_are_checked(shards: Manifest) -> None:
    dataset = ShardDataset(shards)
    for wrong in ({"batch_size": 0}, {"rank": 2, "world": 2}, {"start": -1}, {"workers": -1}, {"max_bad": 1.5}):
        with pytest.raises(ValueError):
            Loader(dataset, **({"batch_size": 4} | wrong))


def test_the_cache_limit_variable_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from atelier.storage.shard_cache import ShardCache

    for value in ("much", "0", "-3", "inf"):
        monkeypatch.setenv("ATELIER_SHARD_CACHE_GB", value)
        with pytest.raises(ConfigError, match="ATELIER_SHARD_CACHE_GB"):
            ShardCache(tmp_path)
    monkeypatch.setenv("ATELIER_SHARD_CACHE_GB", "1.5")
    assert ShardCache(tmp_path).limit == 1_500_000_000
