"""A shard's index in memory: some 60 bytes a sample, where the parsed JSON takes a kilobyte."""

import contextlib
import gc
from collections.abc import Iterator
from typing import Any

import numpy as np
import orjson


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """No garbage collection meanwhile.

    A parsed index is some hundred thousand objects in no cycle. They would set off collections, which look through all
    that the process holds: 180 ms beside torch and diffusers, where the parsing takes 3, with every thread waiting.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


class ShardIndex:
    """Where each sample of a shard lies.

    Attributes:
        members: names of the members that samples have, e.g. ``("json", "latent.npy")``.
        begins, lengths: int64 [n], each sample's span in the tar, in bytes.
        crcs: uint32 [n], CRC-32 of the span.
        places: uint32 [n, members, 2], (offset in the span, size) of each member.
        missing: bool [n, members], or None where every sample has every member.
        member_crcs: uint32 [n, members], CRC-32 of each member; None where they were not asked for, or are not there.
        unfit: bool [n], spans or members that cannot be: negative, past the shard's or the span's end.

    Args:
        data: the index file's JSON.
        samples: how many the manifest says there are.
        shard_bytes: size of the shard by its manifest.
        in_parts: keep what is needed to check a sample that is read in parts.

    Raises:
        ValueError: it is no index, or has another number of samples; the text says what is wrong.
    """

    __slots__ = (
        "_key_ends",
        "_keys",
        "begins",
        "crcs",
        "lengths",
        "member_crcs",
        "members",
        "missing",
        "places",
        "unfit",
    )

    def __init__(self, data: bytes, samples: int, shard_bytes: int, in_parts: bool = False) -> None:
        with _uncollected():
            self._read(data, samples, shard_bytes, in_parts)

    def _read(self, data: bytes, samples: int, shard_bytes: int, in_parts: bool) -> None:
        try:
            rows = orjson.loads(data)["samples"]
            if not isinstance(rows, list) or len(rows) != samples:
                raise ValueError(f"{len(rows)} samples, the manifest says {samples}")
            keys, begins, lengths, crcs, members, *parts = zip(*rows, strict=True)
            encoded = [key.encode() for key in keys]
            self.begins = np.array(begins, np.int64)
            self.lengths = np.array(lengths, np.int64)
            wide_crcs = np.array(crcs, np.int64)
            places, self.missing = self._places(members)
            self.member_crcs: np.ndarray | None = None
            if in_parts and parts and self.missing is None:
                self.member_crcs = np.array(parts[0], np.int64).astype(np.uint32).reshape(len(keys), len(self.members))
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise ValueError(f"{type(error).__name__}: {error}") from error
        self._keys = b"".join(encoded)
        self._key_ends = np.cumsum([len(key) for key in encoded], dtype=np.int64).astype(np.uint32)
        bad = (self.begins < 0) | (self.lengths <= 0) | (self.begins > shard_bytes - self.lengths)
        ends = places[..., 0] + places[..., 1]
        bad |= ((places < 0).any(axis=2) | (ends > self.lengths[:, None])).any(axis=1)
        bad |= (wide_crcs < 0) | (wide_crcs >= 2**32) | (self.lengths >= 2**32)
        self.unfit = bad
        # What does not fit in 32 bits is marked unfit and never read.
        self.crcs = wide_crcs.astype(np.uint32)
        self.places = places.astype(np.uint32)

    def _places(self, members: tuple[dict[str, Any], ...]) -> tuple[np.ndarray, np.ndarray | None]:
        self.members: tuple[str, ...] = tuple(members[0])
        if all(tuple(each) == self.members for each in members):
            flat = [number for each in members for place in each.values() for number in place]
            return np.array(flat, np.int64).reshape(len(members), len(self.members), 2), None
        self.members = tuple(sorted({name for each in members for name in each}))
        rows = [[each.get(name, (0, 0)) for name in self.members] for each in members]
        places = np.array(rows, np.int64).reshape(len(members), len(self.members), 2)
        return places, np.array([[name not in each for name in self.members] for each in members])

    def __len__(self) -> int:
        return len(self.begins)

    def key(self, number: int) -> str:
        """The key of the shard's sample ``number``."""
        begin = self._key_ends.item(number - 1) if number else 0
        return self._keys[begin : self._key_ends.item(number)].decode()

    @property
    def nbytes(self) -> int:
        """Memory of its arrays."""
        arrays = (self.begins, self.lengths, self.crcs, self.places, self.unfit, self._key_ends)
        return sum(array.nbytes for array in arrays) + len(self._keys)
