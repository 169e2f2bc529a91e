"""The ends of logs: the last lines for an error message, the new lines for a person who watches."""

import sys
from pathlib import Path

TAIL_LINES = 30


def tail(path: Path, lines: int = TAIL_LINES) -> str:
    """A log's last lines, indented."""
    if not path.exists():
        return "  (no output)"
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - 64_000, 0))
        text = file.read().decode(errors="replace")
    return "\n".join(f"  {line}" for line in text.splitlines()[-lines:]) or "  (no output)"


class Follower:
    """Copies what is new in a log to stderr, whole lines only."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._shown = 0

    def show(self) -> None:
        """Shows what was written since the last call."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self._shown)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]
        if whole:
            sys.stderr.write(whole.decode(errors="replace"))
            sys.stderr.flush()
            self._shown += len(whole)
