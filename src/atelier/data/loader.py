"""Batches for training: addressed by position, so that any number of ranks sees one order and resume is a number."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol, Self

import numpy as np

from atelier.data.bad_samples import BadEntry, BadSample, BadSamples
from atelier.data.mixture import MixedOrder, Mixture
from atelier.data.order import WINDOW, ShuffledOrder
from atelier.data.read_ahead import ReadAhead
from atelier.data.shard_reader import OPEN_SHARDS, Sample, ShardDataset

__all__ = ["Loader", "Mixture", "ShardDataset"]

AHEAD = 2
"""Batches prepared ahead by each worker."""

FETCHERS = 8
"""Shards of a remote data set that are fetched at a time."""

REPLACEMENTS = 1000
"""Samples in a row that may be bad before the search for a good one is given up."""


class Samples(Protocol):
    """What a loader reads from: ``ShardDataset``, ``Mixture``, or anything with numbered samples."""

    @property
    def shard_starts(self) -> np.ndarray:
        """int64 [shards + 1]: the first sample number of each shard, then the total."""
        ...

    def __len__(self) -> int: ...

    def sample(self, index: int) -> Sample: ...


class Loader:
    """An endless iterator over this rank's batches.

    Global batch b takes the positions b·G to (b+1)·G, G = batch_size · world; rank r takes its r-th part. Runs
    of 1, 2 or 4 ranks with equal G train on the same samples in the same steps. Epochs follow each other without
    a gap and nothing is dropped or padded: where G does not divide the samples of an epoch, a batch holds the last
    samples of one epoch and the first of the next.

    Each sample dict also has ``"epoch"`` and ``"index"``, which address its random draws.

    A sample that turns out bad is quarantined (``quarantined``, ``bad_samples``, stderr) and the next good one in
    the epoch's order stands in for it, under the bad one's epoch and index: the same for any number of ranks and
    after a resume, and its draws are its own.

    Args:
        dataset: where samples come from.
        batch_size: samples a batch of this rank.
        rank, world: this process and how many there are.
        seed: names the order.
        start: global samples already consumed; the state to resume from (``position``).
        workers: threads that read ahead; 0 reads when asked (shards of a remote data set are fetched ahead anyway).
        collate: turns a list of samples into a batch, in the worker; None hands on the list.
        window: shards mixed by the shuffle, see ``ShuffledOrder``; part of the order's name like ``seed``.
        max_bad: share of bad samples above which the run ends with a DataError, see ``BadSamples``.
    """

    def __init__(
        self,
        dataset: Samples | Mixture,
        batch_size: int,
        rank: int = 0,
        world: int = 1,
        seed: int = 0,
        start: int = 0,
        workers: int = 0,
        collate: Callable[[list[Sample]], Any] | None = None,
        window: int = WINDOW,
        max_bad: float = 0.01,
    ) -> None:
        if batch_size < 1 or not 0 <= rank < world or start < 0 or workers < 0 or window < 1 or not 0 <= max_bad <= 1:
            raise ValueError(
                f"batch_size {batch_size}, rank {rank} of {world}, start {start}, workers {workers}, "
                f"window {window}, max_bad {max_bad}"
            )
        self.dataset, self.batch_size, self.rank, self.world = dataset, batch_size, rank, world
        self.position = start
        self._order: ShuffledOrder | MixedOrder
        if isinstance(dataset, Mixture):
            self._order = dataset.order(seed, window)
        else:
            self._order = ShuffledOrder(dataset.shard_starts, seed, window)
        self._collate = collate
        self._bad = BadSamples(max_bad, len(dataset))
        self._drawn = 0
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="loader") if workers else None
        self._ahead: deque[Future[Any]] = deque()
        self._depth = workers * AHEAD
        self._asked = start
        self._shards: ReadAhead | None = None
        if isinstance(dataset, (ShardDataset, Mixture)):
            for part in dataset.datasets if isinstance(dataset, Mixture) else [dataset]:
                part.max_open = max(OPEN_SHARDS, 2 * window)
            if dataset.remote or workers:
                lag = (self._depth + 1) * batch_size * world
                threads = FETCHERS if dataset.remote else 1
                self._shards = ReadAhead(dataset, self._order, threads, rank, world, lag)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        step = self.batch_size * self.world
        if self._pool is None:
            batch = self._batch(self._places(self.position))
        else:
            while len(self._ahead) <= self._depth:
                # The order is worked out here, by one thread; only reading and collating run in the workers.
                self._ahead.append(self._pool.submit(self._batch, self._places(self._asked)))
                self._asked += step
            batch = self._ahead.popleft().result()
        self.position += step
        return batch

    @property
    def quarantined(self) -> dict[str, int]:
        """How many different samples this loader found unusable, by reason."""
        return self._bad.counts()

    @property
    def unusable(self) -> dict[int, str]:
        """The numbers of the samples that this loader found unusable, and why."""
        return self._bad.reasons()

    @property
    def bad_samples(self) -> list[BadEntry]:
        """The samples that this loader found unusable, in the order in which they were met."""
        return list(self._bad.entries.values())

    def _places(self, position: int) -> list[tuple[int, int, int]]:
        """(position, epoch, sample number) of each sample of this rank's batch."""
        if self._shards is not None:
            self._shards.advance(position)
        self._drawn += self.batch_size
        first = position + self.rank * self.batch_size
        drawn = self._order.indices(first, self.batch_size)
        return [(first + row, epoch, index) for row, (epoch, index) in enumerate(drawn)]

    def _batch(self, places: list[tuple[int, int, int]]) -> Any:
        def replace(row: int, bad: BadSample) -> Sample:
            return self._replacement(*places[row], bad)

        if isinstance(self.dataset, (ShardDataset, Mixture)):
            samples: list[Sample] = self.dataset.batch([index for _, _, index in places], replace)
        else:
            samples = [self._alone(row, index, replace) for row, (_, _, index) in enumerate(places)]
        for sample, (_, epoch, index) in zip(samples, places, strict=True):
            sample["epoch"], sample["index"] = epoch, index
        return self._collate(samples) if self._collate else samples

    def _alone(self, row: int, index: int, replace: Callable[[int, BadSample], Sample]) -> Sample:
        try:
            return self.dataset.sample(index)
        except BadSample as bad:
            return replace(row, bad)

    def _replacement(self, position: int, epoch: int, index: int, bad: BadSample) -> Sample:
        for attempt in range(1, REPLACEMENTS + 1):
            self._bad.add(index, bad, self._drawn)
            index = self._order.replacement(position, attempt)
            try:
                return self.dataset.sample(index)
            except BadSample as another:
                bad = another
        raise self._bad.error("samples", f"{REPLACEMENTS} in a row in epoch {epoch}")

    def close(self) -> None:
        """Ends the workers."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
        if self._shards is not None:
            self._shards.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
