"""Several data sets drawn from at fixed rates, addressed by position like one."""

import bisect
import heapq
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from atelier.data.bad_samples import BadSample
from atelier.data.batch_reader import SampleBatch
from atelier.data.order import WINDOW, ShuffledOrder
from atelier.data.shard_reader import Sample, ShardDataset
from atelier.errors import ConfigError


class Mixture:
    """Draws from several shard data sets, each at its rate.

    Position p of the mixture belongs to one data set by a fixed rule (``Apportionment``), so that every prefix of
    the order holds each data set's share to within about one sample. Each data set goes through its own passes
    (every sample once a pass, a new shuffle each): a small one is repeated, a large one goes on where it was.

    An **epoch of the mixture** is the least number of positions in which every data set has been passed through at
    least once (``epoch_size``). A sample's ``"epoch"`` is the pass of its own data set and its ``"index"`` is
    offset by the sizes of the data sets before it, so (epoch, index) stays unique and random draws do too.

    Args:
        parts: name → (data set, rate). Rates are relative: 3 and 1 are the same as 0.75 and 0.25.

    Raises:
        ConfigError: no part, or a rate that is not a positive, finite number.
    """

    def __init__(self, parts: Mapping[str, tuple[ShardDataset, float]]) -> None:
        if not parts:
            raise ConfigError("a mixture without data sets", "give at least one data set with its rate")
        wrong = {name: rate for name, (_, rate) in parts.items() if not _is_rate(rate)}
        if wrong:
            raise ConfigError(
                "mixture: "
                + ", ".join(f"rate {rate!r} of {name!r}" for name, rate in wrong.items())
                + " cannot be used",
                "rates are positive, finite numbers; leave out a data set that is not wanted",
            )
        self.names = list(parts)
        self.datasets = [dataset for dataset, _ in parts.values()]
        self.weights = whole_weights([rate for _, rate in parts.values()])
        sizes = [len(dataset) for dataset in self.datasets]
        self.offsets = [sum(sizes[:part]) for part in range(len(sizes))]
        self._total = sum(sizes)
        shards = [len(dataset.shard_starts) - 1 for dataset in self.datasets]
        self._first_shards = [sum(shards[:part]) for part in range(len(shards))]
        ends = [dataset.shard_starts[1:] + offset for dataset, offset in zip(self.datasets, self.offsets, strict=True)]
        self.shard_starts = np.concatenate([[0], *ends])

    def __len__(self) -> int:
        """Different samples, over all data sets."""
        return self._total

    @property
    def remote(self) -> bool:
        """Whether any data set has to be fetched."""
        return any(dataset.remote for dataset in self.datasets)

    @property
    def cache_bytes(self) -> int:
        """The least room for fetched shards among the remote data sets, in bytes (they share one place)."""
        return min((dataset.cache_bytes for dataset in self.datasets if dataset.remote), default=0)

    @property
    def epoch_size(self) -> int:
        """Positions in an epoch of the mixture."""
        split = Apportionment(self.weights)
        return max(split.position(part, len(dataset)) for part, dataset in enumerate(self.datasets))

    def sample(self, index: int) -> Sample:
        """Sample ``index`` of all data sets laid end to end, see ``ShardDataset.sample``."""
        if not 0 <= index < self._total:
            raise IndexError(f"sample {index} of {self._total}")
        part = bisect.bisect_right(self.offsets, index) - 1
        return self.datasets[part].sample(index - self.offsets[part])

    def batch(self, indices: Sequence[int], replace: Callable[[int, BadSample], Sample]) -> SampleBatch:
        """See ``ShardDataset.batch``; without columns, since data sets need not have the same fields."""
        batch = SampleBatch({} for _ in indices)
        batch.columns = {}
        parts = [bisect.bisect_right(self.offsets, index) - 1 for index in indices]
        for part, dataset in enumerate(self.datasets):
            rows = [row for row, owner in enumerate(parts) if owner == part]
            if rows:
                own = [indices[row] - self.offsets[part] for row in rows]
                read = dataset.batch(own, lambda row, bad, rows=rows: replace(rows[row], bad))  # type: ignore[misc]
                for row, sample in zip(rows, read, strict=True):
                    batch[row] = sample
        return batch

    def order(self, seed: int, window: int = WINDOW) -> "MixedOrder":
        """The order of its samples."""
        orders = [
            # The first keeps the plain name: a mixture of one data set has that data set's order.
            ShuffledOrder(dataset.shard_starts, seed, window, (part,) if part else ())
            for part, dataset in enumerate(self.datasets)
        ]
        return MixedOrder(orders, self.weights, self.offsets, self._first_shards)

    def shard_bytes(self, number: int) -> int:
        """Size of a shard that has to be fetched, 0 for a local one; shards are numbered over all data sets."""
        part, own = self._part_of_shard(number)
        return self.datasets[part].shard_bytes(own)

    def prepare(self, number: int) -> None:
        """See ``ShardDataset.prepare``."""
        part, own = self._part_of_shard(number)
        self.datasets[part].prepare(own)

    def release(self, number: int) -> None:
        """See ``ShardDataset.release``."""
        part, own = self._part_of_shard(number)
        self.datasets[part].release(own)

    def _part_of_shard(self, number: int) -> tuple[int, int]:
        part = bisect.bisect_right(self._first_shards, number) - 1
        return part, number - self._first_shards[part]


class MixedOrder:
    """The order of a mixture; the interface of ``ShuffledOrder``.

    Args:
        orders: of the data sets.
        weights: whole numbers in the ratio of the rates.
        offsets: the first sample number of each data set in the mixture.
        first_shards: the first shard number of each.
    """

    def __init__(
        self,
        orders: Sequence[ShuffledOrder],
        weights: Sequence[int],
        offsets: Sequence[int],
        first_shards: Sequence[int],
    ) -> None:
        self.orders, self.offsets, self.first_shards = list(orders), list(offsets), list(first_shards)
        self.split = Apportionment(weights)

    def index(self, position: int) -> tuple[int, int]:
        """(pass of its data set, sample number in the mixture) at global ``position``."""
        part, own = self.split.place(position)
        epoch, index = self.orders[part].index(own)
        return epoch, self.offsets[part] + index

    def indices(self, position: int, count: int) -> list[tuple[int, int]]:
        """``index`` of ``count`` positions from ``position`` on."""
        return [self.index(place) for place in range(position, position + count)]

    def replacement(self, position: int, attempt: int) -> int:
        """As ``ShuffledOrder.replacement``, from the same data set."""
        part, own = self.split.place(position)
        return self.offsets[part] + self.orders[part].replacement(own, attempt)

    def upcoming(self, position: int) -> Iterator[tuple[int, np.ndarray]]:
        """(first position, shard numbers) of every data set's present window, then the later ones as they come."""
        return heapq.merge(
            *(self._upcoming(part, position) for part in range(len(self.orders))), key=lambda window: window[0]
        )

    def _upcoming(self, part: int, position: int) -> Iterator[tuple[int, np.ndarray]]:
        for first, shards in self.orders[part].upcoming(self.split.count(part, position)):
            yield self.split.position(part, first + 1) - 1, shards + self.first_shards[part]


class Apportionment:
    """Gives each position to one of several parts so that every prefix has each part's share, exactly computed.

    Parts are halved by weight, and the halves again, into a binary tree; at each node the left child's count among
    the first p positions is p · w_left / w rounded to the nearest. Two parts never deviate by more than half a
    sample; with more, a node adds at most another half, scaled down by the shares below it. Whole numbers
    throughout: there is no drift however long the run.

    Args:
        weights: positive whole numbers.
    """

    def __init__(self, weights: Sequence[int]) -> None:
        self.weights = list(weights)
        self._total = sum(weights)
        self._paths: dict[int, list[tuple[int, int, bool]]] = {}
        by_weight = sorted(range(len(weights)), key=lambda part: (-weights[part], part))
        self._root = self._tree(by_weight, [])

    def _tree(self, parts: list[int], path: list[tuple[int, int, bool]]) -> Any:
        if len(parts) == 1:
            self._paths[parts[0]] = path
            return parts[0]
        total = sum(self.weights[part] for part in parts)
        sums = [sum(self.weights[part] for part in parts[:cut]) for cut in range(1, len(parts))]
        cut = 1 + min(range(len(sums)), key=lambda each: abs(2 * sums[each] - total))
        left = sums[cut - 1]
        return (
            self._tree(parts[:cut], [*path, (left, total, True)]),
            self._tree(parts[cut:], [*path, (left, total, False)]),
            left,
            total,
        )

    def place(self, position: int) -> tuple[int, int]:
        """(part, its own position) of a global position."""
        node = self._root
        while not isinstance(node, int):
            left, right, weight, total = node
            before = _rounded(position, weight, total)
            if _rounded(position + 1, weight, total) > before:
                node, position = left, before
            else:
                node, position = right, position - before
        return node, position

    def count(self, part: int, prefix: int) -> int:
        """How many of the first ``prefix`` positions belong to ``part``."""
        for weight, total, is_left in self._paths[part]:
            before = _rounded(prefix, weight, total)
            prefix = before if is_left else prefix - before
        return prefix

    def position(self, part: int, count: int) -> int:
        """The least prefix that holds ``count`` positions of ``part``."""
        guess = count * self._total // self.weights[part]
        slack = (len(self.weights) + 1) * (self._total // self.weights[part] + 1)
        low = max(guess - slack, 0)
        return low + bisect.bisect_left(range(2 * slack + 1), count, key=lambda more: self.count(part, low + more))


def whole_weights(rates: Sequence[float]) -> list[int]:
    """Whole numbers in exactly the ratio of the rates as they are written: 0.7, 0.2, 0.1 → 7, 2, 1."""
    fractions = [Fraction(str(rate)) for rate in rates]
    denominator = math.lcm(*(fraction.denominator for fraction in fractions))
    weights = [int(fraction * denominator) for fraction in fractions]
    divisor = math.gcd(*weights)
    return [weight // divisor for weight in weights]


def _rounded(count: int, weight: int, total: int) -> int:
    return (2 * count * weight + total) // (2 * total)


def _is_rate(rate: object) -> bool:
    return isinstance(rate, (int, float)) and not isinstance(rate, bool) and math.isfinite(rate) and rate > 0
