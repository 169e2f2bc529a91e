"""The loader beside plain WebDataset, beside upstream's pickled shards, and beside an S3 server's raw speed."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil

from atelier.data.loader import Loader, ShardDataset
from atelier.storage.manifest import Manifest
from benchmarks.harness import Result, side_by_side
from benchmarks.support.memory import peak_mb
from benchmarks.support.sample_shards import collate, write_shards
from benchmarks.support.upstream_shards import UpstreamDataset, collate_ours, read_upstream, write_ours, write_upstream
from tests.servers import S3Server

Collate = Callable[[list[dict[str, Any]]], Any]

SHARDS, PER_SHARD, BATCH, WORKERS = 6, 192, 16, 2


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="atelier-bench-") as name:
        yield Path(name)


def _epoch(dataset: ShardDataset, workers: int, collate: Collate = collate) -> int:
    """One epoch by a fresh loader."""
    with Loader(dataset, BATCH, workers=workers, collate=collate, window=2 if dataset.remote else 64) as loader:
        return sum(len(next(loader)["latent"]) for _ in range(len(dataset) // BATCH))


def _beside(name: str, bar: float, manifest: Manifest, other: Callable[[], object], label: str) -> Result:
    """Epochs of a data set that stays open, as in a training; the first, which checks every sample, is in the note."""
    count = SHARDS * PER_SHARD
    dataset = ShardDataset(manifest)
    ours, theirs = side_by_side(lambda: _epoch(dataset, WORKERS), other, rounds=5)
    single, first = side_by_side(lambda: _epoch(dataset, 0), lambda: _epoch(ShardDataset(manifest), WORKERS), rounds=3)
    note = (
        f"{count / ours:,.0f} samples/s with {WORKERS} workers ({count / single:,.0f} with none; "
        f"{count / first:,.0f} in the first epoch, which verifies checksums and values), "
        f"{label} {count / theirs:,.0f}; {count} samples of 0.37 MB"
    )
    return Result(name, theirs / ours, "x", bar, note=note)


def loader_vs_webdataset() -> Result:
    """Samples a second of our loader over ``WebDataset(…).shuffle(1000).decode().batched(n)``, same shards."""
    import webdataset

    with _folder() as folder:
        manifest = write_shards(folder / "shards", SHARDS, PER_SHARD)
        urls = [f"{manifest.uri}/{shard['name']}" for shard in manifest.metadata["shards"]]

        def theirs() -> int:
            pipeline = webdataset.WebDataset(urls, shardshuffle=100).shuffle(1000).decode().batched(BATCH)
            return sum(len(batch["latent.npy"]) for batch in pipeline)

        return _beside("loader_vs_webdataset", 2.0, manifest, theirs, "WebDataset")


def loader_vs_pickled_npy() -> Result:
    """Samples a second over upstream's loop on upstream's files: latents, boxes and phrases of SA-1B at 512 pixels.

    Upstream reads in DataLoader workers (with none it crashes, facts/gligen.md §6): one here, beside one thread of
    ours. Each of our passes meets every sample for the first time, as a training on 11 million samples nearly always
    does. The note has both loops in one process too.
    """
    from torch.utils.data import DataLoader

    shards, per_shard = 2, 8000
    count = shards * per_shard
    with _folder() as folder:
        manifest = write_ours(folder / "shards", shards, per_shard)
        paths = write_upstream(folder / "upstream", shards, per_shard)
        batches = iter(DataLoader(UpstreamDataset(paths, BATCH), batch_size=None, num_workers=1))

        def theirs() -> int:
            return sum(len(next(batches)["latent"]) for _ in range(count // BATCH))

        def their_loop() -> int:
            return sum(len(batch["latent"]) for batch in read_upstream(paths, BATCH))

        def ours(workers: int) -> int:
            return _epoch(ShardDataset(manifest), workers, collate_ours)

        thread, upstream = side_by_side(lambda: ours(1), theirs, rounds=5)
        alone, loop = side_by_side(lambda: ours(0), their_loop, rounds=3)
        note = (
            f"{count / thread:,.0f} samples/s with one thread, checksums and values verified, upstream's DataLoader "
            f"with one worker {count / upstream:,.0f}; in one process {count / alone:,.0f} and {count / loop:,.0f}"
        )
        return Result("loader_vs_pickled_npy", upstream / thread, "x", 3.0, note=note)


def loader_finite_check_pct() -> Result:
    """What looking for NaN and infinity in every array costs, in percent of the loader's time on one thread."""
    with _folder() as folder:
        manifest = write_shards(folder / "shards", SHARDS, PER_SHARD)
        checked, unchecked = side_by_side(
            lambda: _epoch(ShardDataset(manifest), 0),
            lambda: _epoch(ShardDataset(manifest, check_finite=False), 0),
            rounds=9,
        )
        note = f"first epoch {checked:.3f} s with the check, {unchecked:.3f} s without; later epochs: nothing"
        return Result("loader_finite_check_pct", 100 * (checked / unchecked - 1), "%", better="lower", note=note)


def loader_memory_vs_pickled_npy() -> Result:
    """Growth of the peak resident memory over a pass through three shards of 0.26 GB, each side in its own process."""
    shards, per_shard = 3, 8000
    with _folder() as folder:  # one form at a time: a gigabyte of disk each
        write_upstream(folder / "upstream", shards, per_shard)
        theirs = _growth("upstream", folder / "upstream" / "latents")
    with _folder() as folder:
        write_ours(folder / "shards", shards, per_shard)
        ours = _growth("ours", folder / "shards")
    note = f"{ours:,.0f} MB against {theirs:,.0f} MB, {shards} shards of {per_shard} samples, batch {BATCH}"
    return Result("loader_memory_vs_pickled_npy", ours / theirs, "x", 0.1, "lower", note)


def _growth(side: str, folder: Path) -> float:
    """MB that a subprocess's peak grows by while it reads everything once."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.loader", side, str(folder)], capture_output=True, text=True, check=True
    )
    return float(json.loads(done.stdout.splitlines()[-1]))


def _read_once(side: str, folder: Path) -> None:
    """Runs in the subprocess of ``_growth``."""
    manifest = Manifest.load(folder) if side == "ours" else None
    before = peak_mb()
    if manifest is not None:
        _epoch(ShardDataset(manifest), WORKERS, collate_ours)
    else:
        for _ in read_upstream(sorted(folder.glob("sa_*.npy")), BATCH):
            pass
    print(peak_mb() - before)


def loader_vs_s3_get() -> Result:
    """An epoch from a loopback S3 server over plain GETs of the same objects with as many connections.

    Server and reader have a core each where there are two, so that what is compared is the server's own speed and not
    what a busier reader leaves of it; the note has both sides sharing all cores as well, and another server, which
    serves from memory.
    """
    from tests.servers import moto_server, s3rver

    ratio, rates = _beside_get(s3rver, own_cores=True)
    shared, _ = _beside_get(s3rver, own_cores=False)
    other, other_rates = _beside_get(moto_server, own_cores=True)
    other_shared, _ = _beside_get(moto_server, own_cores=False)
    note = (
        f"s3rver: {rates}; all cores shared {shared:.2f}; "
        f"moto: {other:.2f} ({other_rates}), all cores shared {other_shared:.2f}"
    )
    return Result("loader_vs_s3_get", ratio, "x", 0.8, note=note)


@contextlib.contextmanager
def _apart() -> Iterator[None]:
    """Gives the processes that this one started the first core and this one the others."""
    cores = os.sched_getaffinity(0)
    if len(cores) < 2:
        yield
        return
    first = min(cores)
    for child in psutil.Process().children(recursive=True):
        for thread in child.threads():
            os.sched_setaffinity(thread.id, {first})
    os.sched_setaffinity(0, cores - {first})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def _beside_get(
    serve: Callable[[Path], contextlib.AbstractContextManager[S3Server]], own_cores: bool
) -> tuple[float, str]:
    """(our share of the server's raw throughput, both rates in words)."""
    from atelier.data.loader import FETCHERS
    from atelier.storage import s3
    from atelier.storage import uri as uris
    from atelier.storage.folder import OutputFolder

    with _folder() as folder, serve(folder) as server:
        os.environ.update(server.env)
        # Long enough that the first batch, which waits for the first window's shards, is a small part.
        local = write_shards(folder / "shards", SHARDS * 8, PER_SHARD // 2)
        out = OutputFolder(f"{server.uri}/bench", folder / "work")
        for entry in local.files:
            (folder / "shards" / entry.path).rename(out.path / entry.path)
        manifest = out.finish("shards", local.metadata, {}, drop_local=True)

        def get(name: str) -> int:
            bucket, key = s3.split(uris.join(manifest.uri, name))
            body, count = s3.client().get_object(Bucket=bucket, Key=key)["Body"], 0
            while chunk := body.read(2**20):
                count += len(chunk)
            return count

        def raw() -> int:
            with ThreadPoolExecutor(FETCHERS) as pool:
                return sum(pool.map(get, [entry.path for entry in manifest.files]))

        def ours() -> int:
            # A cold cache each time, thrown away when the measuring is over.
            return _epoch(ShardDataset(manifest, Path(tempfile.mkdtemp(dir=folder))), WORKERS)

        size = sum(entry.bytes for entry in manifest.files)
        with _apart() if own_cores else contextlib.nullcontext():
            seconds, plain = side_by_side(ours, raw, rounds=3)
        rates = f"{size / seconds / 1e6:,.0f} MB/s to batches, {size / plain / 1e6:,.0f} MB/s by GET"
        return plain / seconds, f"{rates}, {FETCHERS} connections"


BENCHES = {
    bench.__name__: bench
    for bench in (
        loader_vs_webdataset,
        loader_vs_pickled_npy,
        loader_memory_vs_pickled_npy,
        loader_finite_check_pct,
        loader_vs_s3_get,
    )
}

if __name__ == "__main__":
    _read_once(sys.argv[1], Path(sys.argv[2]))
