"""Batches for training: addressed by position, so that any number of ranks sees one order and resume is a number."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Self

from atelier.data.order import WINDOW, ShuffledOrder
from atelier.data.shard_reader import Sample, ShardDataset

__all__ = ["Loader", "ShardDataset"]

AHEAD = 2  # batches prepared ahead by each worker


class Loader:
    """An endless iterator over this rank's batches.

    Global batch b takes the positions b·G to (b+1)·G, G = batch_size · world; rank r takes its r-th part. Runs
    of 1, 2 or 4 ranks with equal G train on the same samples in the same steps. Epochs follow each other without
    a gap: a batch may hold the last samples of one and the first of the next.

    Args:
        dataset: where samples come from.
        batch_size: samples a batch of this rank.
        rank, world: this process and how many there are.
        seed: names the order.
        start: global samples already consumed; the state to resume from (``position``).
        workers: threads that read ahead; 0 reads when asked.
        collate: turns a list of samples into a batch, in the worker; None hands on the list.
        window: shards mixed by the shuffle, see ``ShuffledOrder``.

    Each sample dict also has ``"epoch"`` and ``"index"``, which address its random draws.
    """

    def __init__(
        self,
        dataset: ShardDataset,
        batch_size: int,
        rank: int = 0,
        world: int = 1,
        seed: int = 0,
        start: int = 0,
        workers: int = 0,
        collate: Callable[[list[Sample]], Any] | None = None,
        window: int = WINDOW,
    ) -> None:
        if batch_size < 1 or not 0 <= rank < world or start < 0:
            raise ValueError(f"batch_size {batch_size}, rank {rank} of {world}, start {start}")
        self.dataset, self.batch_size, self.rank, self.world = dataset, batch_size, rank, world
        self.position = start
        self._order = ShuffledOrder(dataset.shard_starts, seed, window)
        self._collate = collate
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="loader") if workers else None
        self._ahead: deque[Future[Any]] = deque()
        self._depth = workers * AHEAD
        self._asked = start

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if self._pool is None:
            batch = self._batch(self._places(self.position))
        else:
            while len(self._ahead) <= self._depth:
                # The order is worked out here, by one thread; only reading and collating run in the workers.
                self._ahead.append(self._pool.submit(self._batch, self._places(self._asked)))
                self._asked += self.batch_size * self.world
            batch = self._ahead.popleft().result()
        self.position += self.batch_size * self.world
        return batch

    def _places(self, position: int) -> list[tuple[int, int]]:
        first = position + self.rank * self.batch_size
        return [self._order.index(place) for place in range(first, first + self.batch_size)]

    def _batch(self, places: list[tuple[int, int]]) -> Any:
        samples = [self.dataset.sample(index) | {"epoch": epoch, "index": index} for epoch, index in places]
        return self._collate(samples) if self._collate else samples

    def close(self) -> None:
        """Ends the workers."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
