"""Running means between two log lines: losses, samples/s, share of time spent waiting for data."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import distributed

from atelier.training.runtime import Ranks


class Meter:
    """Sums on the device what the loss returns and reads it only when a line is due, so that no step waits for it."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._sums: torch.Tensor | None = None
        self._seen = 0
        self._samples = 0
        self._waited = 0.0
        self._aside = 0.0
        self._saved = 0.0
        self._began = time.monotonic()

    def start(self) -> None:
        """The clock starts here: what came before is no training time."""
        self._began = time.monotonic()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Times the block as waiting for data."""
        began = time.monotonic()
        yield
        self._waited += time.monotonic() - began

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Times the block as held up by a checkpoint."""
        began = time.monotonic()
        with self.aside():
            yield
        self._saved += time.monotonic() - began

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Takes the block (checkpoints, previews) out of what ``samples_per_s`` and ``data_wait`` are shares of."""
        began = time.monotonic()
        yield
        self._aside += time.monotonic() - began

    def add(self, losses: dict[str, torch.Tensor], samples: int) -> None:
        """Adds a micro-batch's scalars, each a mean over its samples."""
        self._names = sorted(losses, key=lambda name: (name != "loss", name))
        values = torch.stack([losses[name].reshape(()).double() for name in self._names]) * samples
        self._sums = values if self._sums is None else self._sums + values
        self._seen += samples

    def count_step(self, samples: int) -> None:
        """A step over this many samples is done."""
        self._samples += samples

    def take(self, ranks: Ranks) -> dict[str, float]:
        """The means since the last call, over all ranks, with ``samples_per_s`` and ``data_wait``; collective."""
        assert self._sums is not None, "a log line is due before the first micro-batch"
        totals = torch.cat([self._sums, self._sums.new_tensor([float(self._seen)])])
        if ranks.world > 1:
            distributed.all_reduce(totals)
        *sums, count = totals.tolist()
        elapsed = max(time.monotonic() - self._began - self._aside, 1e-9)
        line = {name: total / count for name, total in zip(self._names, sums, strict=True)}
        line |= {"samples_per_s": round(self._samples / elapsed, 2), "data_wait": round(self._waited / elapsed, 4)}
        line["saving_s"] = round(self._saved, 4)
        self._sums, self._seen, self._samples, self._waited, self._aside, self._saved = None, 0, 0, 0.0, 0.0, 0.0
        self._began = time.monotonic()
        return line

    def state(self, ranks: Ranks) -> dict[str, Any]:
        """What a resume needs to write the next line with the same numbers; collective."""
        mine = ([] if self._sums is None else self._sums.tolist(), self._seen)
        everyones: list[Any] = [mine]
        if ranks.world > 1:
            everyones = [None] * ranks.world
            distributed.all_gather_object(everyones, mine)
        return {"names": self._names, "sums": [sums for sums, _ in everyones], "seen": [seen for _, seen in everyones]}

    def restore(self, state: dict[str, Any], ranks: Ranks) -> None:
        """Takes up the running sums of ``state``: each rank its own; of another number of ranks, rank 0 them all."""
        sums, seen = state["sums"], state["seen"]
        self._names = list(state["names"])
        if not sums[0]:
            return
        if len(sums) == ranks.world:
            mine, self._seen = sums[ranks.rank], int(seen[ranks.rank])
        elif ranks.first:
            mine, self._seen = [math.fsum(column) for column in zip(*sums, strict=True)], int(sum(seen))
        else:
            mine, self._seen = [0.0] * len(self._names), 0
        self._sums = torch.tensor(mine, dtype=torch.float64, device=ranks.device)
