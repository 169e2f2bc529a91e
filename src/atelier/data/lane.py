"""One pipeline from raw units (tars, say) to committed shards, around one model: every stage at work at once.

fetch (thread) → read, join (thread) → prepare: decode, crop (threads) → finish: encode, batched (the caller's
thread) → write, checksum (thread) → hash and upload (threads). Between the stages lie bounded queues, so memory does
not grow with the data, and the slowest stage alone sets the pace. Threads serve, because Pillow, zlib, hashlib, torch
and sockets let go of the interpreter; what a second process brings is a second accelerator (``worker_pool``).

The accelerator has the caller's thread, so that Ctrl-C reaches the stage that is always busy. An error in any stage
ends all of them and is raised by ``run``.

A shard covers a fixed range of its unit's examples and a batch a fixed range of its shard's, whatever was interrupted
and whoever does it: floating-point results depend on a batch's composition, so the same input gives the same bytes.
"""

import itertools
import os
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from atelier.data.channel import Channel, Stopped
from atelier.data.quarantine import Filtered, Quarantined
from atelier.data.raw_example import RawExample
from atelier.data.raw_source import Examples, stem
from atelier.data.shards import ShardWriter
from atelier.data.summary import committed
from atelier.data.work import Sample, Work
from atelier.storage.folder import OutputFolder

UNITS_HELD = 2  # on disk at once: the one being read and the next one
UPLOADS = 2  # shards hashed and uploaded at once
ENDING_S = 10.0  # how long a stage in the middle of a download may take to notice that all is over

_Fetched = tuple[str, Callable[[], Examples]]
#: Called from the writer's thread with the number of examples done, those of them that are of no use, and the number of
#: those that were filtered out.
Report = Callable[[int, list[Quarantined], int], None]


@dataclass(frozen=True)
class _Batch:
    """Consecutive examples of one shard."""

    shard: str
    items: list[Future[Any]]  # what ``Work.prepare`` returns, or Filtered, or Quarantined
    ends_shard: bool
    ends_unit: bool


@dataclass(frozen=True)
class _Finished:
    batch: _Batch
    items: list[Quarantined | Filtered | Sample]


class Lane:
    """See the module's text.

    Args:
        decoders: threads that prepare; 0 is one a core, at most 16.
    """

    def __init__(self, work: Work, out: OutputFolder, report: Report, decoders: int = 0) -> None:
        self._work, self._source, self._out, self._report = work, work.source, out, report
        self._decoders = decoders or min(16, max(2, len(os.sched_getaffinity(0))))

    def run(self, units: Iterable[str]) -> None:
        """Works through units, each asked for when a place for it is free; committed shards are read past.

        Raises:
            AtelierError: of whatever stage. Anything that the work raises.
        """
        # Deep enough that every decoder has something to do while a batch is finished.
        depth = max(2, -(-4 * self._decoders // self._work.batch))
        fetched, batches, finished = Channel[_Fetched](UNITS_HELD), Channel[_Batch](depth), Channel[_Finished](4)
        places, over = threading.Semaphore(UNITS_HELD), threading.Event()
        pool = ThreadPoolExecutor(self._decoders, thread_name_prefix="decode")
        writer = _Writer(finished, self._out, self._report)
        threads = [
            _start(fetched, self._fetched(units, places, over)),
            _start(batches, self._batches(fetched, pool, places)),
            writer.thread,
        ]
        try:
            for batch in batches:
                finished.put(self._finished(batch))
            finished.end()
            writer.thread.join()
        except Stopped:
            pass  # the writer's error, raised below
        except BaseException as error:
            finished.end(error)
            raise
        finally:
            batches.stop()
            fetched.stop()
            over.set()
            places.release()  # wakes a fetcher that waits for one
            for thread in threads:
                thread.join(ENDING_S)
            pool.shutdown(cancel_futures=True)
        if writer.error is not None:
            raise writer.error

    def _fetched(self, units: Iterable[str], places: threading.Semaphore, over: threading.Event) -> Iterator[_Fetched]:
        names = iter(units)
        while places.acquire() and not over.is_set() and (name := next(names, None)) is not None:
            yield name, self._source.fetch(name)

    def _batches(
        self, fetched: Iterable[_Fetched], pool: ThreadPoolExecutor, places: threading.Semaphore
    ) -> Iterator[_Batch]:
        for name, read in fetched:
            yield from self._of_unit(name, read(), pool)
            self._source.forget(name)
            places.release()

    def _of_unit(self, name: str, examples: Examples, pool: ThreadPoolExecutor) -> Iterator[_Batch]:
        stream = _Lookahead(examples)
        size, length = self._work.samples_per_shard, self._work.batch
        done = self._out.committed()
        for number in itertools.count():
            shard = shard_name(name, number)
            summary = committed(self._out, shard, done)
            if summary is not None:
                for _ in itertools.islice(stream, summary.covers):
                    pass
            else:
                covered, ends_shard = 0, False
                while not ends_shard:
                    items = [pool.submit(self._prepared, item) for item in self._chunk(stream, length, size - covered)]
                    covered += len(items)
                    ends_shard = stream.ended or covered >= size
                    yield _Batch(shard, items, ends_shard, stream.ended)
            if stream.ended:
                return

    def _chunk(self, stream: "_Lookahead", length: int, most: int) -> Examples:
        """The next ``most`` items or fewer, of which ``length`` are not filtered out: batches are full, whatever the
        filters drop."""
        left = length
        for item in itertools.islice(stream, most):
            if isinstance(item, RawExample) and (reason := self._work.unwanted(item)):
                item = Filtered(item.key, reason)
            yield item
            left -= not isinstance(item, Filtered)
            if not left:
                return

    def _prepared(self, item: RawExample | Quarantined | Filtered) -> Any:
        if not isinstance(item, RawExample):
            return item
        try:
            return self._work.prepare(item)
        except ValueError as error:
            return Quarantined(item.key, str(error))

    def _finished(self, batch: _Batch) -> _Finished:
        prepared = [item.result() for item in batch.items]
        good = [item for item in prepared if not isinstance(item, Quarantined | Filtered)]
        rest = iter(self._work.finish(good) if good else ())
        return _Finished(batch, [item if isinstance(item, Quarantined | Filtered) else next(rest) for item in prepared])


def shard_name(unit: str, number: int) -> str:
    """``"tars/sa_000001.tar"``, 2 → ``"sa_000001-0002.tar"``."""
    return f"{stem(unit)}-{number:04d}.tar"


class _Writer:
    """Takes finished batches in order; shards are closed, hashed and uploaded beside the writing of the next ones."""

    def __init__(self, finished: Channel[_Finished], out: OutputFolder, report: Report) -> None:
        self._finished, self._out, self._report = finished, out, report
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._run, name="write", daemon=True)
        self.thread.start()

    def _run(self) -> None:
        shard: _Shard | None = None
        closing: deque[Future[Any]] = deque()
        uploads = ThreadPoolExecutor(UPLOADS, thread_name_prefix="upload")
        try:
            for finished in self._finished:
                if shard is None:
                    shard = _Shard(ShardWriter(self._out, finished.batch.shard))
                bad, filtered = shard.add(finished.items)
                if finished.batch.ends_shard:
                    closing.append(uploads.submit(shard.close, finished.batch.ends_unit))
                    shard = None
                    if len(closing) > UPLOADS:
                        closing.popleft().result()
                self._report(len(finished.items), bad, filtered)
            for future in closing:
                future.result()
        except BaseException as error:
            self.error = error
            self._finished.stop()
            if shard is not None:
                shard.writer.abandon()
        finally:
            uploads.shutdown()  # whole shards are kept, whatever ended the run


class _Shard:
    """A shard being written, and what is counted of it."""

    def __init__(self, writer: ShardWriter) -> None:
        self.writer = writer
        self._covers, self._quarantined = 0, list[Quarantined]()
        self._boxes, self._filtered, self._counts = Counter[str](), Counter[str](), Counter[str]()

    def add(self, items: list[Quarantined | Filtered | Sample]) -> tuple[list[Quarantined], int]:
        """Writes a batch's good samples; returns the bad ones, and how many were filtered out."""
        bad, before = [], self._filtered.total()
        for item in items:
            if isinstance(item, Filtered):
                self._filtered[item.counted] += 1
            elif isinstance(item, Quarantined):
                bad.append(item)
            elif problem := self.writer.problem(item.arrays):
                bad.append(Quarantined(item.key, problem))
            else:
                self.writer.add(item.key, item.arrays, item.record)
                self._boxes.update(item.boxes)
                self._counts.update(item.counts)
        self._covers += len(items)
        self._quarantined += bad
        return bad, self._filtered.total() - before

    def close(self, ends_unit: bool) -> None:
        """Completes and commits it."""
        self.writer.close(
            {
                "covers": self._covers,
                "last": ends_unit,
                "quarantined": [[entry.key, entry.reason] for entry in self._quarantined],
                "boxes": dict(self._boxes),
                "filtered": dict(self._filtered),
                "counts": dict(self._counts),
            }
        )


class _Lookahead:
    """An iterator that knows whether anything is left; a unit gives one item at the least."""

    def __init__(self, items: Examples) -> None:
        self._items = items
        self._next = next(items, None)

    @property
    def ended(self) -> bool:
        return self._next is None

    def __iter__(self) -> Examples:
        return self

    def __next__(self) -> RawExample | Quarantined | Filtered:
        if self._next is None:
            raise StopIteration
        item, self._next = self._next, next(self._items, None)
        return item


def _start(channel: Channel[Any], items: Iterator[Any]) -> threading.Thread:
    """A thread that moves items into a channel, and in the end their end or error."""

    def move() -> None:
        try:
            for item in items:
                channel.put(item)
            channel.end()
        except Stopped:
            pass
        except BaseException as error:
            channel.end(error)

    thread = threading.Thread(target=move, daemon=True)
    thread.start()
    return thread
