"""How long a manifest of the full SA-1B takes to open, and what it holds in memory."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.harness import Result
from benchmarks.support.memory import peak_mb

SHARDS, PER_SHARD = 1000, 11_185


def manifest_open_s() -> Result:
    """Seconds until a manifest of 11.2 million samples is open with its loader; the first batch is in the note.

    One real shard of 11,185 tiny samples stands under a thousand names (hard links).
    """
    with tempfile.TemporaryDirectory(prefix="atelier-bench-") as name:
        folder = Path(name, "shards")
        _write(folder)
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.manifest", str(folder)], capture_output=True, text=True, check=True
        )
        found = json.loads(done.stdout.splitlines()[-1])
    note = (
        f"peak {found['opened_mb']:,.0f} MB after opening (bar 300), with Python and imports; first batch of 32 after "
        f"{found['first_s']:.2f} s more, {found['window_mb']:,.0f} MB once every shard of the window was read"
    )
    seconds = found["open_s"] if found["opened_mb"] < 300 else float("inf")
    return Result("manifest_open_s", seconds, "s", 2.0, "lower", note)


def _write(folder: Path) -> None:
    from atelier.data.shards import INDEX, ShardWriter
    from atelier.storage.folder import OutputFolder
    from atelier.storage.manifest import MANIFEST, FileEntry, Manifest, sorted_entries

    out = OutputFolder(str(folder), folder.with_name("work"))
    writer = ShardWriter(out, "one.tar")
    value = {name: np.zeros(4, np.float16) for name in ("boxes", "latent", "phrases", "pooled", "prompt")}
    for number in range(PER_SHARD):
        writer.add(f"sa_{number:08d}", value, {"caption": "x"})
    fields = writer.close({})["fields"]
    entries = out.finish("one", {}, {}).files
    shards = []
    linked = []
    for number in range(SHARDS):
        shard = f"sa_{number:06d}.tar"
        shards.append({"name": shard, "samples": PER_SHARD})
        for entry in entries:
            name = shard + (INDEX if entry.path.endswith(INDEX) else "")
            os.link(folder / entry.path, folder / name)
            linked.append(FileEntry(name, entry.bytes, entry.sha256))
    metadata = {"samples": SHARDS * PER_SHARD, "fields": fields, "shards": shards}
    (folder / MANIFEST).write_text(Manifest("shards", str(folder), sorted_entries(linked), metadata, {}).to_json())


def _open(folder: Path) -> None:
    """Runs in the subprocess of ``manifest_open_s``."""
    import time

    from atelier.data.loader import Loader, ShardDataset
    from atelier.storage.manifest import Manifest

    began = time.perf_counter()
    dataset = ShardDataset(Manifest.load(folder))
    loader = Loader(dataset, 32, seed=1)
    opened = time.perf_counter() - began
    opened_mb = peak_mb()
    next(loader)
    first = time.perf_counter() - began - opened
    for _ in range(40):
        next(loader)
    print(json.dumps({"open_s": opened, "opened_mb": opened_mb, "first_s": first, "window_mb": peak_mb()}))


BENCHES = {"manifest_open_s": manifest_open_s}

if __name__ == "__main__":
    _open(Path(sys.argv[1]))
