"""Progress that a person can follow: done, rate and ETA, as plain lines and as a status file.

A step process reports here; the local ledger and the terminal read the status file named by
``ATELIER_STATUS_FILE``, so that progress is visible from another process too.
"""

import json
import os
import sys
import time
from pathlib import Path


def format_duration(seconds: float) -> str:
    """Seconds as ``m:ss`` or ``h:mm:ss``."""
    minutes, secs = divmod(round(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{secs:02d}" if hours else f"{minutes}:{secs:02d}"


class Progress:
    """Counts work of a known total and reports it at most every ``every_s`` seconds.

    Args:
        label: what is being done, e.g. ``"encoding"``.
        total: how many units there are; None where it cannot be known.
        unit: the unit's plural, e.g. ``"images"``.
        start: units already done by an earlier, interrupted run (not counted in the rate).
        every_s: least seconds between two reports.
    """

    def __init__(self, label: str, total: int | None, unit: str, start: int = 0, every_s: float = 2.0) -> None:
        self.label, self.total, self.unit, self.every_s = label, total, unit, every_s
        self.done = self.start = start
        self._began = self._reported = time.monotonic()

    def advance(self, count: int = 1, **fields: object) -> None:
        """Adds ``count`` units; ``fields`` (e.g. loss) are shown behind the rate."""
        self.to(self.done + count, **fields)

    def to(self, done: int, **fields: object) -> None:
        """Sets the count of done units."""
        self.done = done
        now = time.monotonic()
        if now - self._reported >= self.every_s or done == self.total:
            self._reported = now
            self._report(now, fields)

    def _report(self, now: float, fields: dict[str, object]) -> None:
        rate = (self.done - self.start) / max(now - self._began, 1e-6)
        eta = (self.total - self.done) / rate if self.total is not None and rate > 0 else None
        of = f"/{self.total:,}" if self.total is not None else ""
        share = f" {100 * self.done / self.total:.0f}%" if self.total else ""
        line = f"{self.label}: {self.done:,}{of} {self.unit}{share}, {rate:,.1f}/s"
        if eta is not None:
            line += f", ETA {format_duration(eta)}"
        for name, value in fields.items():
            line += f", {name} {value:.4g}" if isinstance(value, float) else f", {name} {value}"
        print(line, file=sys.stderr, flush=True)
        write_status(
            {
                "label": self.label,
                "done": self.done,
                "total": self.total,
                "unit": self.unit,
                "rate": rate,
                "eta_s": eta,
                "fields": fields,
                "line": line,
            }
        )


def write_status(status: dict[str, object]) -> None:
    """Replaces the status file (``ATELIER_STATUS_FILE``) in one rename; silent where there is none."""
    name = os.environ.get("ATELIER_STATUS_FILE")
    if not name:
        return
    path = Path(name)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        temporary.write_text(json.dumps({**status, "time": time.time()}, default=str))
        temporary.replace(path)
    except OSError:
        # A status nobody can write must not end the work it describes.
        pass
