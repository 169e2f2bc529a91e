"""What the commands' files share: defaults from the environment, and rows as a table. Light to import."""

import argparse
import os
from collections.abc import Callable, Iterator, Sequence

Command = Callable[[str, Callable[[argparse.Namespace], int], str], argparse.ArgumentParser]
"""(name, function, help) → the command's parser."""


def given(name: str) -> str:
    """What ``make`` was given as ``name``; "" where it was not."""
    return os.environ.get(f"ATELIER_{name}", "")


def true(name: str) -> bool:
    """Whether ``make`` was given ``name`` as a yes."""
    return given(name).lower() in ("1", "true", "yes", "on")


def table(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    """Rows as aligned columns, a line at a time."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
