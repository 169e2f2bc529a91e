"""Saves while the training goes on: a copy between two steps, everything else in a thread.

A save has three parts: ``start`` copies what this rank owns to host memory, its thread writes, hashes and delivers the
file, and once all ranks have delivered rank 0 publishes the checkpoint and prunes older ones, in a thread as well. That
all have delivered is learnt from the collective that the ranks hold after every step anyway.
"""

import math
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from torch import distributed

from atelier.errors import AtelierError, TrainingError
from atelier.storage.atomic import os_errors, write_bytes
from atelier.storage.digest import sha256_bytes
from atelier.training import checkpoint as checkpoints
from atelier.training.masters import Fragment
from atelier.training.parts import SUFFIX, Snapshot, part_name, write_part
from atelier.training.retention import Retention
from atelier.training.runtime import Ranks
from atelier.training.series import Series


class Saver:
    """Saves into a series; every method is called by all ranks at the same step.

    Args:
        retention: which of the older checkpoints stay.

    Attributes:
        kept: step of the newest whole checkpoint, as far as this rank knows (rank 0 publishes, and knows); 0: none.
    """

    def __init__(self, series: Series, retention: Retention, ranks: Ranks) -> None:
        self.series, self.retention, self.ranks = series, retention, ranks
        self._snapshot = Snapshot()
        self._logs: dict[str, bytes] = {}
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._work: Future[None] | None = None
        self._unpublished: tuple[int, dict[str, Any]] | None = None
        self.kept = 0

    @property
    def busy(self) -> bool:
        """Whether this rank has work going on; raises what went wrong in it.

        Raises:
            StorageError, ServiceError: the file could not be written or delivered.
            TrainingError: what was to be saved is not finite.
        """
        if self._work is None:
            return False
        if not self._work.done():
            return True
        work, self._work = self._work, None
        work.result()
        return False

    @property
    def delivered(self) -> bool:
        """Whether a checkpoint waits to be published (the same on every rank)."""
        return self._unpublished is not None

    def start(self, step: int, held: list[Fragment], state: dict[str, Any], logs: list[Path]) -> None:
        """Begins a save; an earlier one is completed first.

        Args:
            logs: small files that go along with rank 0's part, as they are now.
        """
        self.finish()
        if self.ranks.first:
            self.series.begin(step)
        self._snapshot.take([fragment for fragment in held if fragment.owned])
        self._logs = _contents(logs, self.ranks)
        _barrier(self.ranks)  # nobody writes before rank 0 has cleared
        self._unpublished = (step, state)
        self._work = self._pool.submit(self._deliver, self.series, step)

    def publish(self) -> None:
        """Makes what all ranks have delivered visible; called when no rank is ``busy``."""
        assert self._unpublished is not None
        (step, state), self._unpublished = self._unpublished, None
        if self.ranks.first:
            self._work = self._pool.submit(self._publish, step, state)

    def finish(self) -> None:
        """Waits for all that was begun, on all ranks."""
        self._wait()
        if self.delivered:
            _barrier(self.ranks)
            self.publish()
            self._wait()
            _barrier(self.ranks)

    def save_now(self, single: Series, held: list[Fragment], step: int, state: dict[str, Any]) -> None:
        """Writes a checkpoint into another series, and comes back when it is there."""
        self.finish()
        if self.ranks.first:
            single.begin(step)
        self._snapshot.take([fragment for fragment in held if fragment.owned])
        self._logs = {}
        _barrier(self.ranks)
        self._deliver(single, step)
        _barrier(self.ranks)
        if self.ranks.first:
            single.publish(step, self.ranks.world, state)
        _barrier(self.ranks)

    def close(self) -> None:
        """Ends the thread."""
        self._pool.shutdown(wait=True)

    def _wait(self) -> None:
        if self._work is not None:
            work, self._work = self._work, None
            work.result()

    def _deliver(self, series: Series, step: int) -> None:
        scratch, rank = series.scratch(step), self.ranks.rank
        _require_finite(self._snapshot.fragments, step)
        with os_errors(scratch):
            scratch.mkdir(parents=True, exist_ok=True)
            entries = [write_part(scratch / part_name(rank), self._snapshot.fragments)]
            for name, content in self._logs.items():
                write_bytes(scratch / name, content)
                entries.append({"path": name, "bytes": len(content), "sha256": sha256_bytes(content)})
            series.deliver(step, rank, entries)

    def _publish(self, step: int, state: dict[str, Any]) -> None:
        self.series.publish(step, self.ranks.world, state)
        self.kept = step
        try:
            self.retention.apply(self.series, step)
            self.series.sweep()
        except AtelierError as error:
            print(f"warning: older checkpoints were not removed: {error}", flush=True)


def _require_finite(held: list[Fragment], step: int) -> None:
    """A training that has diverged between two log lines must not push its last good checkpoint out."""
    for fragment in held:
        for field, tensor in fragment.tensors.items():
            # A sum is one pass over the memory and carries every NaN and infinity on.
            if not math.isfinite(float(tensor.sum())) and not bool(tensor.isfinite().all()):
                raise TrainingError(
                    f"{field} of {fragment.name} is not finite at step {step}, which is not saved; those before it "
                    "are intact",
                    "lower the learning rate or set clip_norm; look at metrics.jsonl for where it began",
                )


def _contents(logs: list[Path], ranks: Ranks) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in logs if path.exists()} if ranks.first else {}


def _barrier(ranks: Ranks) -> None:
    if ranks.world > 1:
        distributed.barrier()


def find_newest(
    series: Series, ranks: Ranks, own_file_does: Any, newer_than: int = -1
) -> checkpoints.Checkpoint | None:
    """The newest checkpoint that verifies, the same on all ranks; its files are here when this returns.

    Args:
        newer_than: only checkpoints of later steps are looked at.
        own_file_does: a function of a checkpoint: whether a rank needs no file but its own (same ranks, same ZeRO
            stage); otherwise every rank gets all of them.

    Raises:
        StorageError, ServiceError: the series cannot be read (which is not the same as finding nothing).
    """
    steps = agreed(series.steps() if ranks.first else None, ranks)
    for step in steps:
        if step <= newer_than:
            break
        checkpoint = series.read(step)
        fine = checkpoint is not None
        if checkpoint is not None:
            names = checkpoint.names
            others = [name for name in names if name.endswith(SUFFIX)]
            needed = [part_name(ranks.rank)] if own_file_does(checkpoint) else others
            if ranks.first:
                needed += [name for name in names if not name.endswith(SUFFIX)]
            try:
                series.obtain(checkpoint, needed, share=names[ranks.rank :: ranks.world])
            except ValueError as error:
                checkpoints.report_damage(f"{series.place}/{checkpoints.folder_name(step)}", error)
                fine = False
        if all(everyones(fine, ranks)):
            return checkpoint
    return None


def agreed(value: Any, ranks: Ranks) -> Any:
    """Rank 0's value, on every rank."""
    if ranks.world == 1:
        return value
    held = [value]
    distributed.broadcast_object_list(held, src=0)
    return held[0]


def everyones(value: Any, ranks: Ranks) -> list[Any]:
    """Each rank's value, in rank order, on every rank."""
    if ranks.world == 1:
        return [value]
    found: list[Any] = [None] * ranks.world
    distributed.all_gather_object(found, value)
    return found
