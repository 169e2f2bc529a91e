"""Running means between two log lines: losses, samples/s, share of time spent waiting for data."""

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
        self._micro_batches = 0
        self._samples = 0
        self._waited = 0.0
        self._aside = 0.0
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
    def aside(self) -> Iterator[None]:
        """Takes the block (checkpoints, previews) out of what ``samples_per_s`` and ``data_wait`` are shares of."""
        began = time.monotonic()
        yield
        self._aside += time.monotonic() - began

    def add(self, losses: dict[str, torch.Tensor]) -> None:
        """Adds a micro-batch's scalars."""
        self._names = sorted(losses, key=lambda name: (name != "loss", name))
        values = torch.stack([losses[name].reshape(()).double() for name in self._names])
        self._sums = values if self._sums is None else self._sums + values
        self._micro_batches += 1

    def count_step(self, samples: int) -> None:
        """A step over this many samples is done."""
        self._samples += samples

    def take(self, ranks: Ranks) -> dict[str, float]:
        """The means since the last call, over all ranks, with ``samples_per_s`` and ``data_wait``; collective."""
        assert self._sums is not None, "a log line is due before the first micro-batch"
        totals = torch.cat([self._sums, self._sums.new_tensor([float(self._micro_batches)])])
        if ranks.world > 1:
            distributed.all_reduce(totals)
        *sums, count = totals.tolist()
        elapsed = max(time.monotonic() - self._began - self._aside, 1e-9)
        line = {name: total / count for name, total in zip(self._names, sums, strict=True)}
        line |= {"samples_per_s": round(self._samples / elapsed, 2), "data_wait": round(self._waited / elapsed, 4)}
        self._sums, self._micro_batches, self._samples, self._waited, self._aside = None, 0, 0, 0.0, 0.0
        self._began = time.monotonic()
        return line

    def state(self, ranks: Ranks) -> dict[str, Any]:
        """What a resume needs to write the next line with the same numbers; collective."""
        mine = [] if self._sums is None else self._sums.tolist()
        everyones: list[Any] = [mine]
        if ranks.world > 1:
            everyones = [None] * ranks.world
            distributed.all_gather_object(everyones, mine)
        return {"names": self._names, "sums": everyones, "micro_batches": self._micro_batches}

    def restore(self, state: dict[str, Any], ranks: Ranks) -> None:
        """Takes up the running means of ``state``, saved by as many ranks."""
        sums = state["sums"][ranks.rank]
        self._names = list(state["names"])
        self._sums = torch.tensor(sums, dtype=torch.float64, device=ranks.device) if sums else None
        self._micro_batches = int(state["micro_batches"]) if sums else 0
