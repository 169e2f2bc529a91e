import gc
import json
from typing import Any

import pytest

from atelier.data.shard_index import ShardIndex


def index_of(samples: int) -> bytes:
    rows = [[f"k{n}", 512 * n, 512, n, {"latent.npy": [0, 300], "json": [300, 20]}, [n, n]] for n in range(samples)]
    return json.dumps({"samples": rows}).encode()


def test_parsing_sets_off_no_collection_and_leaves_it_switched_on() -> None:
    """A pass over all that torch and a model hold takes fifty times what the parsing does."""
    passes: list[str] = []

    def noted(phase: str, info: dict[str, Any]) -> None:
        passes.append(phase)

    data = index_of(5000)
    gc.callbacks.append(noted)
    try:
        index = ShardIndex(data, 5000, 512 * 5000)
        assert passes == []
    finally:
        gc.callbacks.remove(noted)
    assert gc.isenabled()
    assert index.key(4999) == "k4999"
    assert not index.unfit.any()
    with pytest.raises(ValueError, match="5000 samples, the manifest says 4"):
        ShardIndex(data, 4, 512 * 5000)
    assert gc.isenabled()


def test_whoever_switched_it_off_keeps_it_off() -> None:
    gc.disable()
    try:
        ShardIndex(index_of(3), 3, 512 * 3)
        assert not gc.isenabled()
    finally:
        gc.enable()
