"""Shards read straight from S3: bounded cache, read-ahead, faults of server and line."""

import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest

from atelier.data.loader import Loader, ShardDataset
from atelier.errors import ConfigError, ServiceError
from atelier.storage import s3
from atelier.storage import uri as uris
from atelier.storage.manifest import Manifest
from tests.data import small_shards
from tests.faulty_proxy import FaultyProxy

SIZES = (10,) * 12


@pytest.fixture(autouse=True, params=["1", "0"], ids=["by memory", "by disk"])
def shard_memory(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Shards are read from the memory that they were received in; without it, from the cache's files."""
    monkeypatch.setenv("ATELIER_SHARD_MEMORY_GB", request.param)
    return str(request.param)


def write(place: str, tmp_path: Path) -> Manifest:
    return small_shards.write(place, tmp_path / "work", SIZES)


def epoch(dataset: ShardDataset, workers: int = 2, **more: Any) -> list[str]:
    with Loader(dataset, 10, seed=6, workers=workers, window=3, **more) as loader:
        found = [sample["key"] for _ in SIZES for sample in next(loader)]
        assert loader.quarantined == {}
    dataset.settle()
    return found


def held(cache: Path) -> int:
    """Bytes in the shard cache."""
    return sum(path.stat().st_size for path in (cache / "shards").rglob("*") if path.is_file())


def shard_size(manifest: Manifest) -> int:
    return max(entry.bytes for entry in manifest.files if entry.path.endswith(".tar"))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_equals_the_local_one_in_a_bounded_cache(s3_bucket: str, tmp_path: Path, workers: int) -> None:
    manifest = write(s3_bucket, tmp_path)
    local = small_shards.write(tmp_path / "local", tmp_path / "work2", SIZES)
    limit = 6 * shard_size(manifest)
    cache = tmp_path / "cache"
    dataset = ShardDataset(manifest, cache, limit)
    expected = epoch(ShardDataset(local), workers=0)
    assert sorted(expected) == sorted(f"k{number}" for number in range(120))
    assert epoch(dataset, workers) == expected
    total = sum(entry.bytes for entry in manifest.files)
    assert 0 < held(cache) <= limit < total / 2
    assert epoch(dataset, workers) == expected, "what was evicted is fetched again"


def test_a_cache_smaller_than_the_shuffle_needs_is_refused(s3_bucket: str, tmp_path: Path) -> None:
    manifest = write(s3_bucket, tmp_path)
    dataset = ShardDataset(manifest, tmp_path / "cache", 2 * shard_size(manifest))
    with pytest.raises(ConfigError, match=r"mixes 3 shards .* ATELIER_SHARD_CACHE_GB|mixes 3 shards") as error:
        epoch(dataset)
    assert "ATELIER_SHARD_CACHE_GB" in str(error.value)


def _read(manifest: str, cache: str, limit: int, expected: list[str], rank: int) -> None:
    dataset = ShardDataset(Manifest.parse(manifest), Path(cache), limit)
    with Loader(dataset, 5, rank, 2, seed=6, workers=2, window=3) as loader:
        found = [sample["key"] for _ in SIZES for sample in next(loader)]
    assert found == [expected[step * 10 + rank * 5 + place] for step in range(len(SIZES)) for place in range(5)]


def test_several_processes_share_a_cache(s3_bucket: str, tmp_path: Path) -> None:
    manifest = write(s3_bucket, tmp_path)
    limit, cache = 5 * shard_size(manifest), tmp_path / "cache"
    expected = epoch(ShardDataset(manifest, tmp_path / "other"), workers=0)
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=_read, args=(manifest.to_json(), str(cache), limit, expected, rank)) for rank in (0, 1)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
    assert held(cache) <= limit + 16 * shard_size(manifest)


def test_a_fifth_of_the_requests_fail(s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = write(s3_bucket, tmp_path)
    expected = epoch(ShardDataset(manifest, tmp_path / "plain"))
    faults = ("error 500", "reset", "cut", "late")
    with FaultyProxy(os.environ["AWS_ENDPOINT_URL"], 0.2, seed=1, late_s=2.0, faults=faults) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        monkeypatch.setenv("ATELIER_S3_TIMEOUT_S", "1")
        assert epoch(ShardDataset(manifest, tmp_path / "cache")) == expected
    assert set(proxy.done) >= set(faults), f"the network was too good: {proxy.done}"


def test_each_shard_is_fetched_once(s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read-ahead and readers want the same shard at the same time, and nothing is quarantined for lack of it."""
    manifest = write(s3_bucket, tmp_path)
    with FaultyProxy(os.environ["AWS_ENDPOINT_URL"], 0.0) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        epoch(ShardDataset(manifest, tmp_path / "cache"))
    assert len(proxy.paths) == 2 * len(SIZES)
    assert set(proxy.paths.values()) == {1}


def test_a_server_that_is_gone_is_no_bad_data(s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = write(s3_bucket, tmp_path)
    from atelier.storage import transfer

    monkeypatch.setattr(transfer, "ATTEMPTS", 1)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(ServiceError, match=r"127\.0\.0\.1:9"):
        ShardDataset(manifest, tmp_path / "cache").sample(0)


def test_a_shard_that_vanished_is_quarantined(s3_bucket: str, tmp_path: Path) -> None:
    manifest = write(s3_bucket, tmp_path)
    bucket, key = s3.split(uris.join(manifest.uri, "s-4.tar"))
    s3.client().delete_object(Bucket=bucket, Key=key)
    with Loader(ShardDataset(manifest, tmp_path / "cache"), 40, seed=6, max_bad=0.1, workers=1) as loader:
        keys = {sample["key"] for _ in range(3) for sample in next(loader)}
        assert loader.quarantined == {"missing shard": 10}
        assert {entry.key for entry in loader.bad_samples} == {f"k{number}" for number in range(40, 50)}
    assert keys == {f"k{number}" for number in range(120)} - {f"k{number}" for number in range(40, 50)}


def test_a_shard_of_another_size_is_quarantined(s3_bucket: str, tmp_path: Path) -> None:
    manifest = write(s3_bucket, tmp_path)
    s3.write_bytes(uris.join(manifest.uri, "s-4.tar"), b"short")
    with Loader(ShardDataset(manifest, tmp_path / "cache"), 120, seed=6, max_bad=0.1) as loader:
        next(loader)
        assert loader.quarantined == {"damaged shard": 10}


def test_a_damaged_cached_copy_is_fetched_again(s3_bucket: str, tmp_path: Path) -> None:
    manifest, cache = write(s3_bucket, tmp_path), tmp_path / "cache"
    expected = epoch(ShardDataset(manifest, cache))
    for path in (cache / "shards").rglob("s-*.tar"):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    assert epoch(ShardDataset(manifest, cache)) == expected


def test_damage_in_the_source_is_found_by_the_checksum(s3_bucket: str, tmp_path: Path) -> None:
    manifest = write(s3_bucket, tmp_path)
    place = uris.join(manifest.uri, "s-7.tar")
    data = bytearray(s3.read_bytes(place))
    data[len(data) // 2] ^= 1
    s3.write_bytes(place, bytes(data))
    with Loader(ShardDataset(manifest, tmp_path / "cache"), 120, seed=6, max_bad=0.1) as loader:
        next(loader)
        assert loader.quarantined == {"checksum": 1}
