"""Members of plain tars by key and field (``<key>.<field>``), each read by its place when it is asked for."""

import os
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from atelier.errors import DataError
from atelier.storage.atomic import os_errors


class _Span(NamedTuple):
    """Where a member's content lies."""

    tar: int
    offset: int
    size: int


class TarMembers:
    """Only where each member lies is kept.

    Args:
        paths: plain tars.
        needed: the field that every key must have.
        fix: what to do about a tar that is of no use, for the error.

    Raises:
        DataError: one is no tar or ends early, holds nothing, lacks a needed field, or two hold the same key.
    """

    def __init__(self, paths: Sequence[Path], needed: str, fix: str) -> None:
        self._paths, self._needed, self._fix = list(paths), needed, fix
        self._spans: dict[str, dict[str, _Span]] = {}
        for number, path in enumerate(self._paths):
            self._scan(number, path)

    def __iter__(self) -> Iterator[str]:
        return iter(self._spans)

    def __contains__(self, key: str) -> bool:
        return key in self._spans

    def read(self, key: str, field: str) -> bytes | None:
        """A member's content; None: there is none."""
        span = self._spans.get(key, {}).get(field)
        if span is None:
            return None
        path = self._paths[span.tar]
        with os_errors(path), path.open("rb") as file:
            return os.pread(file.fileno(), span.size, span.offset)

    def place(self, key: str) -> str:
        """The tar of a key, for an error."""
        return str(self._paths[self._spans[key][self._needed].tar])

    def _scan(self, number: int, path: Path) -> None:
        with os_errors(path):
            size = path.stat().st_size
        own: set[str] = set()
        try:
            with os_errors(path), tarfile.open(path, "r:") as tar:
                while (member := tar.next()) is not None:
                    key, _, field = member.name.partition(".")
                    if member.offset_data + member.size > size:
                        raise tarfile.ReadError(f"it ends within {member.name}")
                    if key in self._spans and key not in own:
                        raise DataError(f"{path}: image {key} is in another shard too", "give each shard once")
                    own.add(key)
                    self._spans.setdefault(key, {})[field] = _Span(number, member.offset_data, member.size)
                    tar.members.clear()  # type: ignore[attr-defined]  # tarfile keeps every header that it saw
        except tarfile.TarError as error:
            raise DataError(f"{path}: not a readable shard ({error})", self._fix) from error
        without = next((key for key in sorted(own) if self._needed not in self._spans[key]), None)
        if without is not None or not own:
            what = f"no {without}.{self._needed}" if own else "empty"
            raise DataError(f"{path}: {what}", f"{self._fix}, whole")
