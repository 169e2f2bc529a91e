"""The order in which samples are drawn: a function of (seed, epoch), the same for any number of ranks."""

import functools

import numpy as np

WINDOW = 64


class ShuffledOrder:
    """Every sample once an epoch, shuffled anew each epoch.

    Shards are shuffled, then the samples of each ``window`` consecutive shards among themselves: with no more
    shards than that it is a full shuffle, with more only a window's shards are read at a time.

    Args:
        shard_starts: int64 [shards + 1], the first sample number of each shard, then the total.
        seed: names the order.
        window: shards that are mixed.
    """

    def __init__(self, shard_starts: np.ndarray, seed: int, window: int = WINDOW) -> None:
        self.starts, self.seed, self.window = shard_starts, seed, window
        self.total = int(shard_starts[-1])

    def index(self, position: int) -> tuple[int, int]:
        """(epoch, sample number) at global ``position``, 0 being the first sample ever drawn."""
        epoch, place = divmod(position, self.total)
        _, ends = self._shards(epoch)
        group = int(np.searchsorted(ends, place, side="right"))
        first = int(ends[group - 1]) if group else 0
        return epoch, int(self._window(epoch, group)[place - first])

    @functools.lru_cache(maxsize=4)  # noqa: B019  a loader lives as long as its process
    def _shards(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The epoch's order of shards, and the place where each window ends."""
        count = len(self.starts) - 1
        shards = np.random.default_rng([self.seed, epoch, 0]).permutation(count)
        ends = np.cumsum(np.diff(self.starts)[shards])
        lasts = np.minimum(np.arange(self.window, count + self.window, self.window), count) - 1
        return shards, ends[lasts]

    @functools.lru_cache(maxsize=4)  # noqa: B019
    def _window(self, epoch: int, group: int) -> np.ndarray:
        shards = self._shards(epoch)[0][group * self.window : (group + 1) * self.window]
        samples = np.concatenate([np.arange(self.starts[shard], self.starts[shard + 1]) for shard in shards])
        return np.random.default_rng([self.seed, epoch, 1, group]).permutation(samples)
