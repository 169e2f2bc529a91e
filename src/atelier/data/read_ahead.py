"""Opens the shards of the order's next windows in the background, while this window's samples are read."""

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from atelier.errors import AtelierError, ConfigError
from atelier.storage.shard_cache import LIMIT_VARIABLE

if TYPE_CHECKING:
    from atelier.data.mixture import MixedOrder, Mixture
    from atelier.data.order import ShuffledOrder
    from atelier.data.shard_reader import ShardDataset


class ReadAhead:
    """Keeps the shards of the present window, and as many after them as fit, fetched and open.

    As many ahead as there are present, and never fewer than two for each that can be fetched at a time: then no
    connection waits for readers.

    Args:
        dataset: whose shards.
        order: in which its samples are drawn.
        threads: shards that are fetched at a time.
        rank, world: ranks begin at different shards, so that those that share a cache share the work.
        lag: positions that may still be read behind the one last told to ``advance``.
    """

    def __init__(
        self,
        dataset: "ShardDataset | Mixture",
        order: "ShuffledOrder | MixedOrder",
        threads: int,
        rank: int,
        world: int,
        lag: int,
    ) -> None:
        self._dataset, self._order, self._rank, self._world, self._lag = dataset, order, rank, world, lag
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="read-ahead")
        self._threads = threads
        self._wanted: set[int] = set()
        self._leaving: set[int] = set()
        self._leave_at = self._until = 0

    def advance(self, position: int) -> None:
        """Says that samples from ``position`` on are about to be read; cheap inside a window.

        Raises:
            ConfigError: the window's shards do not fit in the cache.
        """
        if self._leaving and position >= self._leave_at:
            for number in self._leaving:
                self._dataset.release(number)
            self._leaving = set()
        if position < self._until:
            return
        present, ahead = self._wanted_from(position)
        wanted = {*present, *ahead}
        self._leaving = (self._leaving | self._wanted) - wanted
        self._leave_at = position + self._lag
        turn = len(present) * self._rank // self._world
        new = [number for number in [*present[turn:], *present[:turn], *ahead] if number not in self._wanted]
        self._wanted = wanted  # before a thread can look whether its shard is still wanted
        for number in new:
            self._pool.submit(self._prepare, number)

    def _wanted_from(self, position: int) -> tuple[list[int], list[int]]:
        """The shards of the present windows, and those after them that there is room for."""
        present: dict[int, None] = {}
        ahead: dict[int, None] = {}
        used, limit, shards = 0, self._dataset.cache_bytes, len(self._dataset.shard_starts) - 1
        remote = self._dataset.remote
        until = None
        for first, numbers in self._order.upcoming(position):
            if first > position and until is None:
                self._until = until = first
                if used > limit and remote:
                    raise ConfigError(
                        f"the shuffle mixes {len(present)} shards of {used / 1e9:.2f} GB at a time, the cache for "
                        f"fetched shards holds {limit / 1e9:.2f} GB",
                        f"set {LIMIT_VARIABLE} to at least {1.5 * used / 1e9:.2f}, or write smaller shards",
                    )
            for number in numbers.tolist():
                if number in present or number in ahead:
                    continue
                size = self._dataset.shard_bytes(number)
                if first <= position:
                    present[number] = None
                elif len(ahead) < max(len(present), 2 * self._threads) and (not remote or used + size <= limit):
                    ahead[number] = None
                else:
                    return list(present), list(ahead)
                used += size
            if len(present) + len(ahead) == shards and first > position:
                break
        return list(present), list(ahead)

    def _prepare(self, number: int) -> None:
        if number not in self._wanted:
            return
        try:
            self._dataset.prepare(number)
        except AtelierError:
            # Whoever reads a sample of this shard meets the same error, and can say which sample it was.
            return

    def close(self) -> None:
        """Ends the threads."""
        self._pool.shutdown(wait=True, cancel_futures=True)
