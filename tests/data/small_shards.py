"""Small published shards for the reader's tests: every sample can be told from every other."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from atelier.data.shards import ShardWriter
from atelier.storage.folder import OutputFolder
from atelier.storage.manifest import Manifest

Arrays = dict[str, np.ndarray]


def arrays(number: int) -> Arrays:
    """A latent, and as many phrases as the number's last digit says."""
    return {
        "latent": np.full((4, 8, 8), number / 100, np.float16),
        "phrases": np.full((number % 10, 6), -number, np.float32),
    }


class _Unchecked(ShardWriter):
    """Writes what the real one refuses: the reader has to find it by itself."""

    def problem(self, arrays: Arrays) -> str:
        return ""


def write(
    place: str | Path,
    work: Path,
    sizes: Sequence[int] = (10, 10, 5),
    make: Callable[[int], Arrays] = arrays,
    fields: dict[str, Any] | None = None,
) -> Manifest:
    """Shards ``s-0.tar``, … with keys ``k0``, ``k1``, … throughout.

    Args:
        sizes: samples of each shard.
        make: the arrays of a sample by its number.
        fields: the manifest's, where they shall be others than the arrays'.
    """
    out = OutputFolder(str(place), work)
    number, shards = 0, []
    for shard, size in enumerate(sizes):
        writer = _Unchecked(out, f"s-{shard}.tar")
        for _ in range(size):
            writer.add(f"k{number}", make(number), {"number": number})
            number += 1
        writer.close({})
        shards.append({"name": f"s-{shard}.tar", "samples": size})
    known = {"latent": ["<f2", [4, 8, 8]], "phrases": ["<f4", [None, 6]]}
    metadata = {"samples": number, "fields": known if fields is None else fields, "shards": shards}
    return out.finish("shards", metadata, {}, drop_local=True)
