"""The order in which samples are drawn: a function of (seed, epoch), the same for any number of ranks."""

import functools
from collections.abc import Iterator

import numpy as np

WINDOW = 64


class ShuffledOrder:
    """Every sample once an epoch, shuffled anew each epoch.

    Shards are shuffled, then the samples of each ``window`` consecutive shards among themselves: with no more
    shards than that it is a full shuffle, with more only a window's shards are read at a time. Positions run on
    over epochs: position p is place p mod N of epoch p div N, N samples in all.

    Memory: 4 bytes for each sample of a window (two windows are kept), 16 for each shard.

    Args:
        shard_starts: int64 [shards + 1], the first sample number of each shard, then the total.
        seed: names the order.
        window: shards that are mixed.
        stream: further small numbers that name the order, for several data sets under one seed.
    """

    def __init__(self, shard_starts: np.ndarray, seed: int, window: int = WINDOW, stream: tuple[int, ...] = ()) -> None:
        self.starts, self.seed, self.window, self.stream = shard_starts, seed, window, stream
        self.total = int(shard_starts[-1])
        # Per instance: the orders of a mixture would push each other out of a shared cache.
        self._shards = functools.lru_cache(maxsize=2)(self._make_shards)
        self._window = functools.lru_cache(maxsize=2)(self._make_window)

    def index(self, position: int) -> tuple[int, int]:
        """(epoch, sample number) at global ``position``, 0 being the first sample ever drawn."""
        epoch, place = divmod(position, self.total)
        group, first = self._group(epoch, place)
        return epoch, int(self._window(epoch, group)[place - first])

    def indices(self, position: int, count: int) -> list[tuple[int, int]]:
        """``index`` of ``count`` positions from ``position`` on."""
        found: list[tuple[int, int]] = []
        while len(found) < count:
            epoch, place = divmod(position + len(found), self.total)
            group, first = self._group(epoch, place)
            window = self._window(epoch, group)
            taken = window[place - first : place - first + count - len(found)]
            found += [(epoch, index) for index in taken.tolist()]
        return found

    def replacement(self, position: int, attempt: int) -> int:
        """The sample number that stands in for a bad one at ``position``: the ``attempt``-th after it (1, 2, …)
        in the order of the same epoch, which goes round to its beginning."""
        epoch, place = divmod(position, self.total)
        return self.index(epoch * self.total + (place + attempt) % self.total)[1]

    def upcoming(self, position: int) -> Iterator[tuple[int, np.ndarray]]:
        """(first position, shard numbers) of the window that holds ``position`` and of those after it, endlessly."""
        epoch, place = divmod(position, self.total)
        group, _ = self._group(epoch, place)
        while True:
            shards, ends = self._shards(epoch)
            while group < len(ends):
                first = int(ends[group - 1]) if group else 0
                yield epoch * self.total + first, shards[group * self.window : (group + 1) * self.window]
                group += 1
            epoch, group = epoch + 1, 0

    def _group(self, epoch: int, place: int) -> tuple[int, int]:
        """The window that holds a place of an epoch, and the window's first place."""
        _, ends = self._shards(epoch)
        group = int(np.searchsorted(ends, place, side="right"))
        return group, int(ends[group - 1]) if group else 0

    def _make_shards(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The epoch's order of shards, and the place where each window ends."""
        count = len(self.starts) - 1
        shards = np.random.default_rng([self.seed, epoch, 0, *self.stream]).permutation(count)
        ends = np.cumsum(np.diff(self.starts)[shards])
        lasts = np.minimum(np.arange(self.window, count + self.window, self.window), count) - 1
        return shards, ends[lasts]

    def _make_window(self, epoch: int, group: int) -> np.ndarray:
        shards = self._shards(epoch)[0][group * self.window : (group + 1) * self.window]
        dtype = np.uint32 if self.total < 2**32 else np.int64
        samples = np.concatenate(
            [np.arange(self.starts[shard], self.starts[shard + 1], dtype=dtype) for shard in shards]
        )
        np.random.default_rng([self.seed, epoch, 1, group, *self.stream]).shuffle(samples)
        return samples
