import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from atelier.data.order import ShuffledOrder
from atelier.data.read_ahead import ReadAhead


class Shards:
    """Twelve shards of ten samples; notes what is opened."""

    shard_starts = np.arange(0, 130, 10)
    remote, cache_bytes = True, 10**9

    def __init__(self) -> None:
        self.prepared: list[int] = []

    def shard_bytes(self, number: int) -> int:
        return 100

    def prepare(self, number: int) -> None:
        self.prepared.append(number)

    def release(self, number: int) -> None:
        self.prepared.remove(number)


class AtOnce:
    """Threads that are quicker than whoever starts them."""

    def submit(self, call: Callable[..., Any], *arguments: Any) -> None:
        call(*arguments)


@pytest.fixture
def shards() -> Shards:
    return Shards()


def ahead_of(shards: Shards, threads: int) -> ReadAhead:
    order = ShuffledOrder(shards.shard_starts, seed=3, window=2)
    ahead = ReadAhead(shards, order, threads, rank=0, world=1, lag=5)  # type: ignore[arg-type]
    ahead.close()
    ahead._pool = AtOnce()  # type: ignore[assignment]
    return ahead


def test_what_is_wanted_is_fetched_however_quick_the_threads_are(shards: Shards) -> None:
    ahead = ahead_of(shards, threads=2)
    windows = itertools.islice(ahead._order.upcoming(0), 6)
    coming = [number for _, shards_of_one in windows for number in shards_of_one.tolist()]
    ahead.advance(0)
    assert shards.prepared == coming[: 2 + 4], "the present window, and two for each thread"
    ahead.advance(20)
    assert shards.prepared == coming[: 2 + 4 + 2]
    ahead.advance(25)
    assert shards.prepared == coming[2 : 2 + 4 + 2], "what was read is let go of, a little later"
