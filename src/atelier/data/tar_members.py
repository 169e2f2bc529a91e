"""Members of plain tars by key and field (``<key>.<field>``), each read by its place when it is asked for."""

import os
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from atelier.errors import DataError
from atelier.storage.atomic import os_errors

_OFFSET, _SIZE = 48, 48
"""Bits of a place, a tar's number, an offset in it and a size: one whole number takes a third of a tuple of three."""


class TarMembers:
    """Only where each member lies is kept, some 150 bytes a member.

    Args:
        paths: plain tars.
        needed: the field that every key must have.
        fix: what to do about a tar that is of no use, for the error.

    Raises:
        DataError: one is no tar or ends early, holds nothing, lacks a needed field, or two hold the same key.
    """

    def __init__(self, paths: Sequence[Path], needed: str, fix: str) -> None:
        self._paths, self._needed, self._fix = list(paths), needed, fix
        # By field, then key: a dictionary a key would be most of it.
        self._places: dict[str, dict[str, int]] = {needed: {}}
        for number, path in enumerate(self._paths):
            self._scan(number, path)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places[self._needed])

    def __contains__(self, key: str) -> bool:
        return key in self._places[self._needed]

    def read(self, key: str, field: str) -> bytes | None:
        """A member's content; None: there is none."""
        place = self._places.get(field, {}).get(key)
        if place is None:
            return None
        path = self._paths[place >> (_OFFSET + _SIZE)]
        with os_errors(path), path.open("rb") as file:
            return os.pread(file.fileno(), place & ((1 << _SIZE) - 1), (place >> _SIZE) & ((1 << _OFFSET) - 1))

    def place(self, key: str) -> str:
        """The tar of a key, for an error."""
        return str(self._paths[self._places[self._needed][key] >> (_OFFSET + _SIZE)])

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
                    if key not in own and any(key in places for places in self._places.values()):
                        raise DataError(f"{path}: image {key} is in another shard too", "give each shard once")
                    own.add(key)
                    place = (number << _OFFSET | member.offset_data) << _SIZE | member.size
                    self._places.setdefault(field, {})[key] = place
                    tar.members.clear()  # type: ignore[attr-defined]  # tarfile keeps every header that it saw
        except tarfile.TarError as error:
            raise DataError(f"{path}: not a readable shard ({error})", self._fix) from error
        without = next((key for key in sorted(own) if key not in self), None)
        if without is not None or not own:
            what = f"no {without}.{self._needed}" if own else "empty"
            raise DataError(f"{path}: {what}", f"{self._fix}, whole")
