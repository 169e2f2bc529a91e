"""Shards of the size that an SDXL recipe reads."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from atelier.data.batch_reader import column
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


def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Arrays stacked, records in a list."""
    batch: dict[str, Any] = {name: column(samples, name) for name in FIELDS}
    return batch | {"json": [sample["json"] for sample in samples]}
