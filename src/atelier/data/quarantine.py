"""Bad samples, each with its reason: counted, written down, and too many of them end the run."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from atelier.errors import DataError
from atelier.storage.atomic import write_bytes

MAX_TEXT = 500
"""Characters of a key or reason that are kept."""


@dataclass(frozen=True)
class Quarantined:
    """A sample that cannot be used.

    Attributes:
        key: its name, e.g. ``"sa_223750"``, or the member's or file's name.
        reason: a short text; the part before a colon is what is counted.
    """

    key: str
    reason: str

    def __post_init__(self) -> None:
        # Both may quote the data, which may hold anything; they are written down as UTF-8.
        for name in ("key", "reason"):
            text = getattr(self, name)[:MAX_TEXT].encode("utf-8", "backslashreplace").decode()
            object.__setattr__(self, name, text)


@dataclass(frozen=True)
class Filtered:
    """A sample that is not wanted, though nothing is wrong with it: counted, and no flaw of the data.

    Attributes:
        key: its name.
        reason: as a quarantined one's.
    """

    key: str
    reason: str

    @property
    def counted(self) -> str:
        """The part of the reason that is counted."""
        return self.reason.split(":", 1)[0]


class Quarantine:
    """Collects bad samples.

    Args:
        threshold: the share of bad samples above which ``check`` fails, 0 to 1.
        path: where ``write`` puts them, one JSON object a line.
    """

    def __init__(self, threshold: float, path: Path) -> None:
        self.threshold, self.path = threshold, path
        self.entries: list[Quarantined] = []

    def add(self, key: str, reason: str) -> None:
        """Notes a bad sample."""
        self.entries.append(Quarantined(key, reason))

    def counts(self) -> dict[str, int]:
        """How many for each reason (its part before a colon), most frequent first."""
        return dict(Counter(entry.reason.split(":", 1)[0] for entry in self.entries).most_common())

    def replace(self, entries: Iterable[Quarantined]) -> None:
        """Takes these in the place of all noted so far: the same ones in their order, once that is known."""
        self.entries = list(entries)

    def write(self) -> None:
        """Replaces the file with all entries."""
        lines = [json.dumps({"key": entry.key, "reason": entry.reason}, ensure_ascii=False) for entry in self.entries]
        write_bytes(self.path, "".join(line + "\n" for line in lines).encode())

    def check(self, total: int) -> None:
        """Fails when the bad ones' share of ``total`` samples exceeds the threshold, or nothing good is left.

        Raises:
            DataError: names the counts by reason and the first samples.
        """
        bad = len(self.entries)
        if bad and (bad > self.threshold * total or bad >= total):
            raise self._error(f"{bad} of {total} samples are unusable ({bad / max(total, 1):.1%}, ")

    def check_ahead(self, images: int) -> None:
        """Fails as soon as ``check`` is bound to fail in the end.

        Args:
            images: in the whole source; what else lies in its tars counts as bad, so it raises no hopes.

        Raises:
            DataError: as ``check``'s.
        """
        bad = len(self.entries)
        if bad > self.threshold * (images + bad):
            raise self._error(f"already {bad} of {images} samples are unusable (")

    def _error(self, what: str) -> DataError:
        first = "; ".join(f"{entry.key}: {entry.reason}" for entry in self.entries[:3])
        reasons = ", ".join(f"{count} × {reason}" for reason, count in self.counts().items())
        return DataError(
            f"{what}allowed {self.threshold:.1%}): {reasons}. First: {first}",
            f"repair the source, or raise the allowed share; all of them are in {self.path}",
        )
