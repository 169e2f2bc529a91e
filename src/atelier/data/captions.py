"""Captions by image key from parquet files of any size: the keys are indexed once, then only asked-for rows read."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from atelier.errors import DataError


class _File(NamedTuple):
    path: Path
    parquet: Any


class CaptionTable:
    """Parquet files with the columns ``key`` ("sa_<id>") and ``caption``.

    The index holds two integers a row (11 million rows: 180 MB); captions themselves are read for a tar's keys
    at a time, whole row groups, only the groups that hold any of them.

    Args:
        paths: the parquet files.

    Raises:
        DataError: a file is no parquet, is damaged, or has no column of text of that name.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._files = [_File(path, _open(path)) for path in paths]
        self._groups: list[tuple[_File, int]] = []
        ids, groups = [np.empty(0, np.int64)], [np.empty(0, np.int32)]
        for file in self._files:
            for group in range(file.parquet.num_row_groups):
                (keys,) = _columns(file, group, "key")
                ids.append(np.fromiter((image_id(key) for key in keys), np.int64, len(keys)))
                groups.append(np.full(len(keys), len(self._groups), np.int32))
                self._groups.append((file, group))
        all_ids, all_groups = np.concatenate(ids), np.concatenate(groups)
        order = np.argsort(all_ids, kind="stable")
        self._ids, self._group_of = all_ids[order], all_groups[order]

    def __len__(self) -> int:
        return len(self._ids)

    def lookup(self, ids: Iterable[int]) -> dict[int, str]:
        """Captions of the images that have one (the first, where there are several)."""
        wanted = np.unique(np.fromiter(ids, np.int64))
        places = np.searchsorted(self._ids, wanted)
        known = places < len(self._ids)
        known[known] = self._ids[places[known]] == wanted[known]
        found: dict[int, str] = {}
        asked = set(wanted[known].tolist())
        for number in np.unique(self._group_of[places[known]]).tolist():
            file, group = self._groups[number]
            for key, caption in zip(*_columns(file, group, "key", "caption"), strict=True):
                number_of_key = image_id(key)
                if number_of_key in asked and caption is not None:
                    found.setdefault(number_of_key, caption)
        return found


def image_id(key: str | None) -> int:
    """``"sa_223750"`` → 223750; -1 where the key has another form."""
    digits = (key or "").rpartition("_")[2]
    return int(digits) if digits.isdecimal() and len(digits) < 19 else -1


def _columns(file: _File, group: int, *names: str) -> list[list[str | None]]:
    """Columns of a row group.

    Raises:
        DataError: the row group is damaged.
    """
    import pyarrow

    try:
        table = file.parquet.read_row_group(group, columns=list(names))
        return [table[name].to_pylist() for name in names]
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"{file.path}: row group {group} is not readable ({why})",
            "it is damaged; download it again",
        ) from error


def _open(path: Path) -> Any:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(
            f"{path}: not a readable parquet file ({str(error).splitlines()[0]})",
            "it is damaged or incomplete; download it again",
        ) from error
    missing = {"key", "caption"} - set(file.schema_arrow.names)
    if missing:
        raise DataError(
            f"{path}: has no column {', '.join(sorted(missing))} (it has {', '.join(file.schema_arrow.names)})",
            "captions need the columns key and caption",
        )
    for name in ("key", "caption"):
        kind = file.schema_arrow.field(name).type
        if kind not in (pyarrow.string(), pyarrow.large_string(), pyarrow.string_view()):
            raise DataError(f"{path}: column {name} holds {kind}, not text", "captions need two columns of text")
    return file
