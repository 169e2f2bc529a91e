"""Samples that turn out unusable when they are read: named, counted, and too many of them end the run."""

import sys
import threading
from collections import Counter
from dataclasses import dataclass

from atelier.errors import DataError

SHOWN = 20
"""Bad samples of one shard that are printed; the rest is counted."""

AT_LEAST = 1000
"""Early in a run the allowed share is of this many samples, so that one bad sample among the first does not end it."""


class BadSample(DataError):
    """A sample that cannot be used.

    Args:
        shard: the shard's path or name.
        key: the sample's key; its number in the shard where the key cannot be known.
        reason: a short fixed text, counted, e.g. ``"checksum"``.
        detail: what exactly was found.
    """

    def __init__(self, shard: str, key: str, reason: str, detail: str = "") -> None:
        self.shard, self.key, self.reason, self.detail = shard, key, reason, detail
        super().__init__(
            f"{shard}: sample {key} is damaged: {reason}" + (f" ({detail})" if detail else ""),
            "delete the folder of this shard; the next run makes it again",
        )


@dataclass(frozen=True)
class BadEntry:
    """A quarantined sample: its shard, key and reason."""

    shard: str
    key: str
    reason: str


class BadSamples:
    """Counts the bad samples that one loader met. Safe for several threads.

    Args:
        allowed: share of bad samples that is still tolerated, 0 to 1: of the different samples among those drawn
            so far, though of no fewer than ``AT_LEAST`` and of no more than there are.
        total: samples in the data set.
    """

    def __init__(self, allowed: float, total: int) -> None:
        self.allowed, self.total = allowed, total
        self.entries: dict[int, BadEntry] = {}
        self._shards: Counter[str] = Counter()
        self._lock = threading.Lock()

    def counts(self) -> dict[str, int]:
        """How many different samples for each reason, most frequent first."""
        with self._lock:
            return dict(Counter(entry.reason for entry in self.entries.values()).most_common())

    def reasons(self) -> dict[int, str]:
        """The number of each sample, and why it is unusable."""
        with self._lock:
            return {index: entry.reason for index, entry in self.entries.items()}

    def add(self, index: int, bad: BadSample, drawn: int) -> None:
        """Notes a bad sample; prints it when it is new.

        Args:
            index: its number.
            drawn: samples that this loader was asked for so far.

        Raises:
            DataError: there are now more than allowed; names the counts and the first ones.
        """
        with self._lock:
            if index in self.entries:
                return
            self.entries[index] = BadEntry(bad.shard, bad.key, bad.reason)
            self._shards[bad.shard] += 1
            of_shard = self._shards[bad.shard]
        if of_shard <= SHOWN:
            print(f"quarantined: {bad.what}", file=sys.stderr, flush=True)
        if of_shard == SHOWN:
            print(f"quarantined: further samples of {bad.shard} are counted only", file=sys.stderr, flush=True)
        base = min(max(drawn, AT_LEAST), self.total)
        if len(self.entries) > self.allowed * base:
            raise self.error(f"of {base:,} samples", f"allowed {self.allowed:.2%}")

    def error(self, of: str, why: str) -> DataError:
        """The error that ends a run for them."""
        with self._lock:
            first = "; ".join(f"{each.shard}: {each.key}: {each.reason}" for each in list(self.entries.values())[:3])
            count = len(self.entries)
        reasons = ", ".join(f"{number} × {reason}" for reason, number in self.counts().items())
        return DataError(
            f"{count} {of} are unusable ({why}): {reasons}. First: {first}",
            "repair the shards (delete their folder; the next run makes them again), or raise the allowed share",
        )
