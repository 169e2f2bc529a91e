"""A remote file being read."""

from dataclasses import dataclass
from typing import Any, Self


@dataclass
class Stream:
    """Bytes of a remote file from ``start`` on.

    Attributes:
        body: has ``read(n)`` and ``close()``.
        start: first byte's position; 0 where the server ignored the wish for a range.
        total: size of the whole file in bytes; None where the server does not tell.
        version: a text that changes when the content does (ETag or date); may be empty.
        sha256: the server's own hex digest of the whole file; empty where it names none.
    """

    body: Any
    start: int
    total: int | None
    version: str
    sha256: str = ""

    def read(self, count: int) -> bytes:
        """Up to ``count`` bytes; empty at the end."""
        return self.body.read(count)  # type: ignore[no-any-return]

    def read_into(self, view: memoryview) -> int:
        """Fills the beginning of ``view`` and returns how many bytes came; 0 at the end."""
        if hasattr(self.body, "readinto"):
            return self.body.readinto(view)  # type: ignore[no-any-return]
        found = self.body.read(len(view))
        view[: len(found)] = found
        return len(found)

    def close(self) -> None:
        """Closes the connection."""
        self.body.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
