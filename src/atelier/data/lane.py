"""One pipeline from raw units (tars, say) to committed shards, around one encoder: every stage at work at once.

fetch (thread) → read, join (thread) → select boxes, decode, crop (threads) → encode, batched (the caller's
thread) → write, checksum (thread) → hash and upload (threads). Between the stages lie bounded queues, so memory does
not grow with the data, and the slowest stage alone sets the pace. Threads serve, because Pillow, zlib, hashlib, torch
and sockets let go of the interpreter; what a second process brings is a second accelerator (``worker_pool``).

The encoder has the caller's thread, so that Ctrl-C reaches the stage that is always busy. An error in any stage ends
all of them and is raised by ``run``.

A shard covers a fixed range of its unit's examples and a batch a fixed range of its shard's, whatever was interrupted
and whoever does it: floating-point results depend on a batch's composition, so the same input gives the same bytes.
"""

import itertools
import os
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from atelier.data.channel import Channel, Stopped
from atelier.data.encoder import Encoder, TakesLatents
from atelier.data.geometry import decode_image
from atelier.data.quarantine import Quarantined
from atelier.data.raw_example import RawExample
from atelier.data.raw_source import Examples, RawSource, stem
from atelier.data.sa1b_latents import flaw
from atelier.data.settings import Settings
from atelier.data.shards import ShardWriter
from atelier.data.summary import committed
from atelier.errors import ConfigError, DataError
from atelier.storage.folder import OutputFolder

UNITS_HELD = 2  # on disk at once: the one being read and the next one
UPLOADS = 2  # shards hashed and uploaded at once
ENDING_S = 10.0  # how long a stage in the middle of a download may take to notice that all is over

_Fetched = tuple[str, Callable[[], Examples]]
_Encode = Callable[[np.ndarray, list[RawExample]], list[dict[str, np.ndarray]]]
#: An example with its pixels, or its ready-made latent.
Decoded = tuple[RawExample, np.ndarray] | Quarantined
#: Called with the number of examples done and those of them that are of no use, from the writer's thread.
Report = Callable[[int, list[Quarantined]], None]


@dataclass(frozen=True)
class _Batch:
    """Consecutive examples of one shard."""

    shard: str
    items: list[Future[Decoded]]
    ends_shard: bool
    ends_unit: bool


@dataclass(frozen=True)
class _Encoded:
    batch: _Batch
    items: list[Quarantined | tuple[RawExample, dict[str, np.ndarray]]]


class Lane:
    """See the module's text.

    Args:
        decoders: threads that decode; 0 is one a core, at most 16.

    Raises:
        ConfigError: the source brings latents and the encoder wants images.
    """

    def __init__(
        self,
        source: RawSource,
        encoder: Encoder,
        out: OutputFolder,
        settings: Settings,
        report: Report,
        decoders: int = 0,
    ) -> None:
        self._source, self._out = source, out
        self._settings, self._report = settings, report
        self._encode: _Encode = encoder.encode
        self._latent_shape: tuple[int, ...] = ()
        if source.brings_latents:
            if not isinstance(encoder, TakesLatents):
                raise ConfigError(
                    f"{source.manifest.uri} holds ready-made latents, which this recipe's encoder does not take",
                    "give it images",
                )
            self._encode, self._latent_shape = encoder.encode_latents, encoder.latent_shape(settings.res)
        self._decoders = decoders or min(16, max(2, len(os.sched_getaffinity(0))))

    def run(self, units: Iterable[str]) -> None:
        """Encodes units, each asked for when a place for it is free; committed shards are read past.

        Raises:
            AtelierError: of whatever stage. Anything that the encoder raises.
        """
        # Deep enough that every decoder has something to do while a batch is encoded.
        depth = max(2, -(-4 * self._decoders // self._settings.batch))
        fetched, batches, encoded = Channel[_Fetched](UNITS_HELD), Channel[_Batch](depth), Channel[_Encoded](4)
        places, over = threading.Semaphore(UNITS_HELD), threading.Event()
        pool = ThreadPoolExecutor(self._decoders, thread_name_prefix="decode")
        writer = _Writer(encoded, self._source, self._out, self._settings.res, self._report)
        threads = [
            _start(fetched, self._fetched(units, places, over)),
            _start(batches, self._batches(fetched, pool, places)),
            writer.thread,
        ]
        try:
            for batch in batches:
                encoded.put(self._encoded(batch))
            encoded.end()
            writer.thread.join()
        except Stopped:
            pass  # the writer's error, raised below
        except BaseException as error:
            encoded.end(error)
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
        size = self._settings.samples_per_shard
        done = self._out.committed()
        for number in itertools.count():
            shard = shard_name(name, number)
            summary = committed(self._out, shard, done)
            if summary is not None:
                for _ in itertools.islice(stream, summary.covers):
                    pass
            else:
                for begin in range(0, size, self._settings.batch):
                    chunk = itertools.islice(stream, min(self._settings.batch, size - begin))
                    items = [pool.submit(self._decoded, item) for item in chunk]
                    ends_unit = stream.ended
                    ends_shard = ends_unit or begin + self._settings.batch >= size
                    yield _Batch(shard, items, ends_shard, ends_unit)
                    if ends_shard:
                        break
            if stream.ended:
                return

    def _decoded(self, item: RawExample | Quarantined) -> Decoded:
        if isinstance(item, Quarantined):
            return item
        if item.latent is not None:
            array, problem = item.latent, flaw(item.latent, self._latent_shape)
            if problem:
                return Quarantined(item.key, problem)
        else:
            try:
                array = decode_image(item.image, self._settings.res)
            except ValueError as error:
                return Quarantined(item.key, str(error))
        # The image's file has served: a batch that waits holds its pixels alone.
        return replace(self._source.select(item, self._settings), image=b"", latent=None), array

    def _encoded(self, batch: _Batch) -> _Encoded:
        decoded = [item.result() for item in batch.items]
        good = [item for item in decoded if not isinstance(item, Quarantined)]
        arrays: list[dict[str, np.ndarray]] = []
        if good:
            arrays = self._encode(np.stack([array for _, array in good]), [example for example, _ in good])
        if len(arrays) != len(good):
            raise DataError(
                f"the encoder returned {len(arrays)} samples for {len(good)} images",
                "this is an error of the recipe's encoder",
            )
        rest = iter(arrays)
        return _Encoded(batch, [item if isinstance(item, Quarantined) else (item[0], next(rest)) for item in decoded])


def shard_name(unit: str, number: int) -> str:
    """``"tars/sa_000001.tar"``, 2 → ``"sa_000001-0002.tar"``."""
    return f"{stem(unit)}-{number:04d}.tar"


class _Writer:
    """Takes encoded batches in order; shards are closed, hashed and uploaded beside the writing of the next ones."""

    def __init__(
        self, encoded: Channel[_Encoded], source: RawSource, out: OutputFolder, res: int, report: Report
    ) -> None:
        self._encoded, self._source, self._out, self._res, self._report = encoded, source, out, res, report
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._run, name="write", daemon=True)
        self.thread.start()

    def _run(self) -> None:
        shard: _Shard | None = None
        closing: deque[Future[Any]] = deque()
        uploads = ThreadPoolExecutor(UPLOADS, thread_name_prefix="upload")
        try:
            for encoded in self._encoded:
                if shard is None:
                    shard = _Shard(ShardWriter(self._out, encoded.batch.shard), self._source, self._res)
                bad = shard.add(encoded.items)
                if encoded.batch.ends_shard:
                    closing.append(uploads.submit(shard.close, encoded.batch.ends_unit))
                    shard = None
                    if len(closing) > UPLOADS:
                        closing.popleft().result()
                self._report(len(encoded.items), bad)
            for future in closing:
                future.result()
        except BaseException as error:
            self.error = error
            self._encoded.stop()
            if shard is not None:
                shard.writer.abandon()
        finally:
            uploads.shutdown()  # whole shards are kept, whatever ended the run


class _Shard:
    """A shard being written, and what is counted of it."""

    def __init__(self, writer: ShardWriter, source: RawSource, res: int) -> None:
        self.writer, self._source, self._res = writer, source, res
        self._covers, self._quarantined, self._boxes = 0, list[Quarantined](), Counter[str]()

    def add(self, items: list[Quarantined | tuple[RawExample, dict[str, np.ndarray]]]) -> list[Quarantined]:
        """Writes a batch's good samples; returns the others."""
        bad = []
        for item in items:
            if not isinstance(item, Quarantined):
                example, arrays = item
                if not (problem := self.writer.problem(arrays)):
                    self.writer.add(example.key, arrays, self._source.record(example, self._res))
                    self._boxes.update(kept=len(example.boxes), clipped=example.clipped, dropped=example.dropped)
                    continue
                item = Quarantined(example.key, problem)
            bad.append(item)
        self._covers += len(items)
        self._quarantined += bad
        return bad

    def close(self, ends_unit: bool) -> None:
        """Completes and commits it."""
        self.writer.close(
            {
                "covers": self._covers,
                "last": ends_unit,
                "quarantined": [[entry.key, entry.reason] for entry in self._quarantined],
                "boxes": dict(self._boxes),
            }
        )


class _Lookahead:
    """An iterator that knows whether anything is left; a unit gives one item at the least."""

    def __init__(self, items: Iterator[RawExample | Quarantined]) -> None:
        self._items = items
        self._next = next(items, None)

    @property
    def ended(self) -> bool:
        return self._next is None

    def __iter__(self) -> Iterator[RawExample | Quarantined]:
        return self

    def __next__(self) -> RawExample | Quarantined:
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
