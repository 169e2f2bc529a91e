"""Shards of the size that an SDXL recipe reads, in our form and with the same content in upstream's."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from atelier.data.buffers import stack
from atelier.data.shards import ShardWriter
from atelier.storage.folder import OutputFolder
from atelier.storage.manifest import Manifest

FIELDS = {"latent": (4, 64, 64), "prompt": (77, 2048), "pooled": (1280,), "phrases": (10, 768), "boxes": (10, 4)}
"""fp16 arrays of a sample, 366 kB: a 512-pixel latent, text states of a prompt, phrase embeddings, boxes."""

_POOL = 2**22


def samples(shard: int, count: int) -> Iterator[tuple[str, dict[str, np.ndarray], dict[str, Any]]]:
    """(key, arrays, record) of each sample: normal numbers, the same for the same arguments."""
    rng = np.random.default_rng(shard)
    pool = rng.standard_normal(_POOL, dtype=np.float32).astype(np.float16)
    for number in range(count):
        arrays = {}
        for name, shape in FIELDS.items():
            size = int(np.prod(shape))
            begin = int(rng.integers(0, _POOL - size))
            arrays[name] = pool[begin : begin + size].reshape(shape)
        key = f"sa_{shard * 100_000 + number}"
        record = {"key": key, "caption": "a photograph of " + "many things " * 12, "phrases": ["a thing"] * 10}
        yield key, arrays, record


def write_shards(folder: Path, shards: int, per_shard: int) -> Manifest:
    """WebDataset tars with their indices, published at ``folder``."""
    out = OutputFolder(str(folder), folder.with_name(folder.name + ".work"))
    entries, fields = [], {}
    for shard in range(shards):
        writer = ShardWriter(out, f"sa_{shard:06d}.tar")
        for key, arrays, record in samples(shard, per_shard):
            writer.add(key, arrays, record)
        index = writer.close({})
        fields = index["fields"]
        entries.append({"name": index["shard"], "samples": per_shard})
    return out.finish("shards", {"samples": shards * per_shard, "fields": fields, "shards": entries}, {})


def write_pickled(folder: Path, shards: int, per_shard: int) -> list[Path]:
    """Upstream's form: a shard's arrays as one dict pickled into an ``.npy``, boxes and texts in a second one."""
    folder.mkdir(parents=True)
    paths = []
    for shard in range(shards):
        rows = list(samples(shard, per_shard))
        arrays: Any = {name: np.stack([row[1][name] for row in rows]) for name in FIELDS if name != "boxes"}
        path = folder / f"sa_{shard:06d}.npy"
        np.save(path, np.array({"indices": list(range(per_shard)), **arrays}, dtype=object), allow_pickle=True)
        table = np.empty((per_shard, 4), object)
        for number, (key, fields, record) in enumerate(rows):
            table[number] = [key, record["caption"], fields["boxes"], record["phrases"]]
        np.save(folder / f"boxes_{shard:06d}.npy", table, allow_pickle=True)
        paths.append(path)
    return paths


def read_pickled(paths: list[Path], batch_size: int) -> Iterator[dict[str, Any]]:
    """Upstream's loop (facts/gligen.md §3.2): a whole shard into memory, its rows shuffled, batches of them."""
    for path in paths:
        data = np.load(path, allow_pickle=True).item()
        table = np.load(path.with_name(path.name.replace("sa_", "boxes_")), allow_pickle=True)
        rows = np.random.default_rng(0).permutation(len(table))
        for begin in range(0, len(rows) - batch_size + 1, batch_size):
            chosen = rows[begin : begin + batch_size]
            batch = {name: np.stack([data[name][row] for row in chosen]) for name in FIELDS if name != "boxes"}
            batch["boxes"] = np.stack([table[row, 2] for row in chosen])
            yield batch | {"json": [(table[row, 1], table[row, 3]) for row in chosen]}


def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Arrays stacked, records in a list."""
    batch: dict[str, Any] = {name: stack([sample[name] for sample in samples]) for name in FIELDS}
    return batch | {"json": [sample["json"] for sample in samples]}
