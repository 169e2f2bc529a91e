"""What a node tells of its end: a small JSON that Kubernetes keeps as the container's termination message."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

LIMIT = 4096
"""Bytes that Kubernetes keeps of a container's message."""


@dataclass(frozen=True)
class Report:
    """One node's end.

    Attributes:
        outcome: complete, preempted (saved and stopped) or failed.
        cause: see ``causes``; "" where it is complete.
        rank: the rank that failed first, -1 without.
        error, what, fix: the rank's exception: its class, message and advice.
        tail: its last lines.
    """

    outcome: str
    cause: str = ""
    rank: int = -1
    error: str = ""
    what: str = ""
    fix: str = ""
    tail: str = ""

    def to_json(self) -> str:
        """At most ``LIMIT`` bytes; the oldest of its last lines go first, then the end of the message."""
        fields: dict[str, Any] = asdict(self)
        for name in ("tail", "what", "fix"):
            while fields[name] and len(json.dumps(fields)) > LIMIT:
                text = fields[name]
                fields[name] = text[len(text) // 4 + 1 :] if name == "tail" else text[: len(text) * 3 // 4]
        return json.dumps(fields)


def parse(text: str | None) -> Report | None:
    """A report; None for any other text (Kubernetes puts log lines there where there is no message)."""
    try:
        return Report(**json.loads(text or ""))
    except (ValueError, TypeError):
        return None


def write(report: Report) -> None:
    """Leaves it for Kubernetes; where nobody keeps it the log has it all."""
    path = Path(os.environ.get("ATELIER_TERMINATION_LOG") or "/dev/termination-log")
    try:
        with path.open("w") as file:  # a mounted file: it cannot be replaced, and outside a pod it is not there
            file.write(report.to_json())
    except OSError as error:
        print(f"note: no termination message was left: {error}", flush=True)
