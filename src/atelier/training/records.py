"""What the ranks of a group left behind of how they ended, as the launcher reads it."""

import contextlib
import json
from pathlib import Path
from typing import Any

import psutil

from atelier import errors
from atelier.training.process import record_path

SETTLE_S = 1.0
"""Between the first sign of a rank's death and the question which rank died first: a peer that lost its connection
may have said so before the dead one is buried."""

Record = dict[str, Any]
"""``{"pid", "started"}`` of a rank that runs or was killed; with ``"outcome"`` and ``"ended"`` it ended by itself."""


def read_records(logs: Path, processes: int) -> dict[int, Record]:
    """The records there are, by rank."""
    found: dict[int, Record] = {}
    for rank in range(processes):
        with contextlib.suppress(OSError, ValueError):
            found[rank] = json.loads(record_path(logs, rank).read_text())
    return found


def has_failed(record: Record) -> bool:
    """Whether a rank of this machine raised or is gone without a word."""
    if "outcome" in record:
        return bool(record["outcome"] == "failed")
    try:
        return bool(psutil.Process(int(record["pid"])).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def first_failure(records: dict[int, Record]) -> int | None:
    """The rank whose end caused the others': one that left no outcome was killed, else the first that raised."""
    killed = [rank for rank, record in records.items() if "outcome" not in record]
    if killed:
        return killed[0]
    raised = [(float(record["ended"]), rank) for rank, record in records.items() if record["outcome"] == "failed"]
    return min(raised)[1] if raised else None


def raised_again(record: Record) -> errors.AtelierError | None:
    """The error of a rank's record, when it is one of ours."""
    kind = getattr(errors, str(record.get("error")), None)
    if isinstance(kind, type) and issubclass(kind, errors.AtelierError):
        return kind(record["what"], record["fix"])
    return None
